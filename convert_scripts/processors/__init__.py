"""Image processors and tokenizers of checkpoints, in both directions."""
