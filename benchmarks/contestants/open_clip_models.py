"""Load open_clip's models; also in the environment of its captioning."""

from functools import lru_cache
from pathlib import Path

import open_clip
import torch


# All weights in bf16, as the peers have them; open_clip's "bf16" keeps layer norms in fp32.
PRECISIONS = {"float32": "fp32", "bfloat16": "pure_bf16"}


@lru_cache(maxsize=1)
def load(path: Path, dtype: str, device: str) -> torch.nn.Module:
    """Load the model of a folder; the last one is kept for the cells that follow."""
    return open_clip.create_model(f"local-dir:{path}", precision=PRECISIONS[dtype], device=device).eval()
