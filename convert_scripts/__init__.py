"""Conversion: open_clip checkpoints to transformers folders, and their verification."""
