"""The architecture of OpenAI's archives, from the shapes of their tensors (open_clip:
`build_model_from_openai_state_dict` in `model.py`)."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..common import ConversionError, argument, listing


Tensors = Mapping[str, torch.Tensor]

# Only OpenAI's archives, whose models all use QuickGELU, hold these.
OPENAI_KEYS = {"input_resolution", "context_length", "vocab_size"}


PREPROCESS_CFG = {
    "mean": list(OPENAI_CLIP_MEAN),
    "std": list(OPENAI_CLIP_STD),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def is_openai(keys: Collection[str]) -> bool:
    """Whether a checkpoint's keys are those of OpenAI's archives."""
    return set(keys) >= OPENAI_KEYS


def infer_openai_architecture(tensors: Tensors) -> dict[str, Any]:
    """Infer open_clip's `model_cfg` of a model of OpenAI's, a vision transformer or a ResNet of any size.

    Heads are 64 wide in all of them. The activation, which does not follow from shapes, is QuickGELU in all of them.

    Args:
        tensors: state dict with the three numbers `OPENAI_KEYS`, which must agree with the shapes.

    Raises:
        ConversionError: tensors are missing, have another rank, or contradict the numbers.
    """
    try:
        vision_cfg = _vision_transformer(tensors) if "visual.proj" in tensors else _resnet(tensors)
        context_length, text_width = tensors["positional_embedding"].shape
        vocab_size = len(tensors["token_embedding.weight"])
        embed_dim = tensors["text_projection"].shape[1]
        stated = {key: int(tensors[key]) for key in sorted(OPENAI_KEYS)}
    except (KeyError, ValueError, IndexError) as error:
        raise ConversionError(
            f"The checkpoint has the keys {', '.join(sorted(OPENAI_KEYS))} of OpenAI's archives, but not their "
            f"tensors ({type(error).__name__}: {error}). Give the architecture with {argument('model_name')} or "
            f"{argument('config')}."
        ) from error
    found = {"context_length": context_length, "input_resolution": vision_cfg["image_size"], "vocab_size": vocab_size}
    if found != stated:
        wrong = [f"{key}: {stated[key]}, by the shapes {found[key]}" for key in found if found[key] != stated[key]]
        raise ConversionError(
            f"The checkpoint contradicts itself:{listing(wrong)}\nGive the architecture with {argument('model_name')} "
            f"or {argument('config')}."
        )
    text_cfg = {
        "context_length": context_length,
        "vocab_size": vocab_size,
        "width": text_width,
        "heads": text_width // 64,
        "layers": _count(tensors, "transformer.resblocks."),
    }
    return {"embed_dim": embed_dim, "quick_gelu": True, "vision_cfg": vision_cfg, "text_cfg": text_cfg}


def _vision_transformer(tensors: Tensors) -> dict[str, Any]:
    width, _, _, patch_size = tensors["visual.conv1.weight"].shape
    return {
        "image_size": patch_size * _side(tensors["visual.positional_embedding"]),
        "layers": _count(tensors, "visual.transformer.resblocks."),
        "width": width,
        "patch_size": patch_size,
    }


def _resnet(tensors: Tensors) -> dict[str, Any]:
    return {
        "image_size": 32 * _side(tensors["visual.attnpool.positional_embedding"]),
        "layers": [_count(tensors, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)],
        "width": len(tensors["visual.layer1.0.conv1.weight"]),
        "patch_size": None,
    }


def _side(position_embedding: torch.Tensor) -> int:
    return math.isqrt(len(position_embedding) - 1)


def _count(tensors: Tensors, prefix: str) -> int:
    """Numbered modules below `prefix`."""
    return len({key.removeprefix(prefix).split(".")[0] for key in tensors if key.startswith(prefix)})
