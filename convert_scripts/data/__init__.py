"""Tables of open_clip's architectures, tags and text encoders, and the script that updates them."""
