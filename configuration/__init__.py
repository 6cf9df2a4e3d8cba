"""Configurations: what a model is made of, without its weights."""
