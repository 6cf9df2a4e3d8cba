"""From open_clip's configurations and state dicts to ours, and back."""
