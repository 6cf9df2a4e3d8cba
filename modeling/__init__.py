"""Models: towers, the dual models made of two of them, and CoCa."""
