"""Class names and prompt templates for zero-shot classification, and the script that updates them."""
