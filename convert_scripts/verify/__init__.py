"""Comparison of converted models with those that their checkpoints were made for."""
