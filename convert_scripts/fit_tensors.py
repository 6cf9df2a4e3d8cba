"""Changes that open_clip makes to a checkpoint when it loads it (`load_checkpoint` in `factory.py`)."""

import math
from collections.abc import Callable

import torch
from transformers.configuration_utils import PreTrainedConfig

from ..modeling.modeling_text import resize_text_position_embedding
from ..modeling.modeling_vit import resize_position_embedding
from .errors import ConversionError


Tensors = dict[str, torch.Tensor]
# What was changed: key -> how.
Changes = dict[str, str]


def fit_tensors(tensors: Tensors, config: PreTrainedConfig, text_prefix: str) -> tuple[Tensors, Changes]:
    """open_clip's tensors brought to the shapes that open_clip would bring them to; everything else is left alone."""
    tensors, changes = dict(tensors), {}
    _fit_scalars(tensors, changes, config)
    for prefix, part, fits in (
        ("visual.", config.vision_config, VISION_FITS),
        (text_prefix, config.text_config, TEXT_FITS),
    ):
        if part.model_type in fits:
            fits[part.model_type](tensors, changes, prefix, part)
    return tensors, changes


def _fit_scalars(tensors: Tensors, changes: Changes, config: PreTrainedConfig):
    shape = (1,) if config.nonscalar_logit_scale else ()
    for key in ("logit_scale", "logit_bias"):
        if key in tensors and tensors[key].numel() == 1 and tensors[key].shape != shape:
            changes[key] = f"reshaped from {tuple(tensors[key].shape)} to {shape}"
            tensors[key] = tensors[key].reshape(shape)
    if config.logit_bias_init_value is not None and "logit_bias" not in tensors and "logit_scale" in tensors:
        tensors["logit_bias"] = torch.zeros_like(tensors["logit_scale"])
        changes["logit_bias"] = "not in the checkpoint, set to 0"


def _fit_vit(tensors: Tensors, changes: Changes, prefix: str, config: PreTrainedConfig):
    key, new_grid = f"{prefix}positional_embedding", config.grid_size
    table = tensors.get(key)
    if table is None or table.ndim != 2 or len(table) == 1 + math.prod(new_grid):
        return
    side = math.isqrt(len(table) - 1)
    if side**2 != len(table) - 1:
        raise ConversionError(
            f"{key} has {len(table) - 1} patch positions, the model has {new_grid[0]} x {new_grid[1]}, and only "
            "square grids can be resized: correct image_size or patch_size in the configuration."
        )
    tensors[key] = resize_position_embedding(table.float(), (side, side), new_grid)
    changes[key] = f"resized from a grid of {side} x {side} patches to {new_grid[0]} x {new_grid[1]}"


def _fit_text(tensors: Tensors, changes: Changes, prefix: str, config: PreTrainedConfig):
    key, positions = f"{prefix}positional_embedding", config.max_position_embeddings + config.embed_cls
    table = tensors.get(key)
    if table is not None and table.ndim == 2 and len(table) != positions:
        tensors[key] = resize_text_position_embedding(table.float(), positions)
        changes[key] = f"resized from {len(table)} positions to {positions}"


Fit = Callable[[Tensors, Changes, str, PreTrainedConfig], None]
VISION_FITS: dict[str, Fit] = {"open_clip_vit": _fit_vit}
TEXT_FITS: dict[str, Fit] = {"open_clip_text": _fit_text}
