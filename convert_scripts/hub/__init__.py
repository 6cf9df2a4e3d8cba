"""Repositories on the Hub: bundled code, model cards, provenance and uploads."""
