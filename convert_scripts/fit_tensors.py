"""Changes that open_clip makes to a checkpoint when it loads it (`load_checkpoint` in `factory.py`)."""

import torch
from transformers.configuration_utils import PreTrainedConfig

from .towers.base import Changes, Tensors
from .towers.tables import TEXT_CONVERSIONS, VISION_CONVERSIONS


def fit_tensors(tensors: Tensors, config: PreTrainedConfig, text_prefix: str) -> tuple[Tensors, Changes]:
    """open_clip's tensors brought to the shapes that open_clip would bring them to; everything else is left alone."""
    tensors, changes = dict(tensors), {}
    _fit_scalars(tensors, changes, config)
    vision, text = config.vision_config, config.text_config
    VISION_CONVERSIONS[vision.model_type].fit(tensors, changes, "visual.", vision)
    TEXT_CONVERSIONS[text.model_type].fit(tensors, changes, text_prefix, text)
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
