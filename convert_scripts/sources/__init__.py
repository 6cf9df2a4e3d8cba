"""Finding and reading checkpoints: the Hub, weights files, and what open_clip knows by name."""
