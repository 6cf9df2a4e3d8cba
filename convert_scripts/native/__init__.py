"""Conversion to and from transformers' own CLIP, MetaCLIP 2 and SigLIP."""
