"""Reduced forms of open_clip's 144 architectures: shallow and narrow, with every switch of the original kept."""

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from tiny_configs import VOCAB_SIZE, tiny_hf_encoder

from open_clip_transformers.convert_scripts.towers import siglip_vit as conversion_siglip_vit
from open_clip_transformers.convert_scripts.towers.hf_text import find_encoder_config
from open_clip_transformers.modeling import modeling_timm_factory


# Beginning of a timm model's name -> arguments that make it shallow.
SHALLOW = {
    "convnext": {"depths": (1, 1, 1, 1)},
    "eva": {"depth": 2},
    "fastvit_mci": {"layers": (1, 1, 1, 1)},
    **{f"fastvit_mci{n}": {"layers": (1, 1, 1, 1, 1)} for n in "34"},
    "swin": {"depths": (1, 1, 1, 1)},
    "vit": {"depth": 2},
    "vit_base_mci": {"depth": 2},
    "vitamin": {"depth": 2},
}


def _narrow_vit(model) -> dict:
    heads = model.blocks[0].attn.num_heads
    return {"embed_dim": model.embed_dim // 4, "num_heads": heads // 4} if heads % 4 == 0 else {}


def _narrow_convnext(model) -> dict:
    return {"dims": tuple(stage["num_chs"] // 4 for stage in model.feature_info)}


# The same -> from the shallow model, arguments that make it narrow. The others are small, or have no such arguments.
NARROW = {"convnext": _narrow_convnext, "eva": _narrow_vit, "vit": _narrow_vit}


def _reduced_siglip_models() -> dict[str, dict]:
    quarters = "hidden_size", "intermediate_size", "num_attention_heads"
    return {
        name: {**fields, "num_hidden_layers": 2, **{field: fields[field] // 4 for field in quarters}}
        for name, fields in conversion_siglip_vit.TIMM_MODELS.items()
    }


@contextmanager
def reduced_timm() -> Iterator[None]:
    """Within it, timm's models, and our SigLIP towers in their place, have few layers and a quarter of the width."""
    import timm

    create_model = timm.create_model

    @functools.cache
    def reduction(name: str) -> dict:
        # The longest beginning is the most special one.
        prefix = max((prefix for prefix in SHALLOW if name.startswith(prefix)), key=len)
        with torch.device("meta"):
            model = create_model(name, **SHALLOW[prefix])
        return {**SHALLOW[prefix], **NARROW.get(prefix, lambda model: {})(model)}

    @functools.wraps(create_model)
    def create_reduced_model(name, **kwargs):
        return create_model(name, **{**reduction(name), **kwargs})

    modeling_timm_factory.describe_architecture.cache_clear()
    with (
        mock.patch.object(timm, "create_model", create_reduced_model),
        mock.patch.object(conversion_siglip_vit, "TIMM_MODELS", _reduced_siglip_models()),
    ):
        yield
    modeling_timm_factory.describe_architecture.cache_clear()


def reduced_cfg(model_cfg: dict) -> dict:
    """A `model_cfg` of open_clip at an eighth of its widths and two layers deep; ratios and switches are kept.

    Towers of timm are to be built within `reduced_timm`; encoders of transformers become tiny ones of the same type.
    """
    cfg = copy.deepcopy(model_cfg)
    vision, text, decoder = cfg["vision_cfg"], cfg["text_cfg"], cfg.get("multimodal_cfg")
    # Without a projection the embedding is as wide as timm's model.
    cfg["embed_dim"] //= 4 if vision.get("timm_proj") == "none" else 8
    if not vision.get("timm_model_name"):
        _reduce_vision(vision)
    if text.get("hf_model_name"):
        model_type = find_encoder_config(text["hf_model_name"]).model_type
        text |= {"hf_model_name": tiny_hf_encoder(model_type), "hf_model_pretrained": False}
        # open_clip takes this for granted.
        cfg["custom_text"] = True
        # The tiny encoders have 17 positions.
        for part in filter(None, (text, decoder)):
            part["context_length"] = 11
    for part in filter(None, (text, decoder)):
        part |= {"width": part.get("width", 512) // 8, "vocab_size": VOCAB_SIZE, "layers": 2}
    if text.get("proj_type") == "none":
        text["width"] = cfg["embed_dim"]
    if decoder and text.get("hf_model_name"):
        # The decoder and the raw patches that it attends to are as wide as the tiny encoder.
        vision |= {"width": 36, "head_width": 18}
        decoder |= {"width": 36, "heads": 4}
    return cfg


def _reduce_vision(vision: dict):
    vision |= {"width": vision["width"] // 8, "head_width": vision.get("head_width", 64) // 8}
    if isinstance(vision["layers"], list):
        vision |= {"layers": [1, 2, 2, 1], "image_size": 64}
        return
    # A third of the patches, of a seventh to a ninth of their side.
    patch_size = vision["patch_size"] // 7
    patches = vision["image_size"] // vision["patch_size"] // 3
    vision |= {"layers": 2, "patch_size": patch_size, "image_size": patches * patch_size}
