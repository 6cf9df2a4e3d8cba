"""Load our models, and those of transformers."""

from functools import lru_cache
from pathlib import Path

import torch
from transformers import AutoModel, PreTrainedModel


@lru_cache(maxsize=1)
def load(path: Path, dtype: str, device: str, attention: str | None = None) -> PreTrainedModel:
    """Load the model of a folder; the last one is kept for the cells that follow."""
    return AutoModel.from_pretrained(path, dtype=getattr(torch, dtype), attn_implementation=attention).to(device)
