"""Finding and reading checkpoints: the Hub, weights files, and open_clip's names of architectures and tags."""
