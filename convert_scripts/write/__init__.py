"""Writing converted models."""
