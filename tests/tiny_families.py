"""A tiny folder of every family of models, with its processor, as a conversion writes them."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from tiny_configs import (
    HF_ENCODERS,
    tiny_clip_cfg,
    tiny_coca_cfg,
    tiny_mammut_cfg,
    tiny_modern_coca_cfg,
    tiny_modern_text_cfg,
    tiny_resnet_cfg,
    tiny_siglip_cfg,
)
from tiny_folders import CLIP_VOCABULARY, COCA_CLIP_VOCABULARY, save_tiny_model
from tiny_models import tiny_siglip_vit_config, tiny_timm_config
from tiny_tokenizers import save_tiny_tokenizer
from transformers import PreTrainedConfig, PreTrainedModel

from open_clip_transformers.configuration.configuration_hf_text import HfTextConfig
from open_clip_transformers.configuration.configuration_open_clip import OpenClipConfig, OpenClipSiglipConfig
from open_clip_transformers.convert_scripts.mapping.config import build_config
from open_clip_transformers.processing.tokenization_open_clip import OpenClipTokenizer


def _siglip_vit() -> PreTrainedConfig:
    text_config = build_config(tiny_siglip_cfg(**CLIP_VOCABULARY)).text_config
    return OpenClipSiglipConfig(vision_config=tiny_siglip_vit_config(), text_config=text_config)


def _timm() -> PreTrainedConfig:
    text_config = build_config(tiny_clip_cfg(**CLIP_VOCABULARY)).text_config
    return OpenClipConfig(vision_config=tiny_timm_config(), text_config=text_config)


def _hf_text() -> PreTrainedConfig:
    encoder = {"model_type": "roberta", **HF_ENCODERS["roberta"], "vocab_size": 700, "max_position_embeddings": 32}
    text_config = HfTextConfig(hf_config=encoder, max_position_embeddings=23, projection_dim=28)
    return OpenClipConfig(vision_config=build_config(tiny_clip_cfg()).vision_config, text_config=text_config)


_CLIP_TEXT = {**CLIP_VOCABULARY["text_cfg"], "bos_id": 49406, "eos_id": 49407}
_MODERN_COCA_CLIP_VOCABULARY = {**COCA_CLIP_VOCABULARY, "text_cfg": _CLIP_TEXT}
# CoCa has all that the others have, and generates; so does MaMMUT, by its text tower.
FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "clip": lambda: build_config(tiny_clip_cfg(**CLIP_VOCABULARY)),
    "siglip": lambda: build_config(tiny_siglip_cfg(**CLIP_VOCABULARY)),
    "coca": lambda: build_config(tiny_coca_cfg(**COCA_CLIP_VOCABULARY)),
    "mammut": lambda: build_config(tiny_mammut_cfg(**CLIP_VOCABULARY)),
    "resnet": lambda: build_config(tiny_resnet_cfg(**CLIP_VOCABULARY)),
    "siglip_vit": _siglip_vit,
    "timm": _timm,
    "hf_text": _hf_text,
    "coca_modern": lambda: build_config(tiny_modern_coca_cfg(**_MODERN_COCA_CLIP_VOCABULARY)),
    "modern_text": lambda: build_config(tiny_modern_text_cfg(**CLIP_VOCABULARY)),
}


def save_tiny_family(name: str, folder: Path) -> PreTrainedModel:
    """Saves a tiny model of a family and its processor, whose vocabulary is CLIP's but for `hf_text`'s own."""
    if name != "hf_text":
        return save_tiny_model(folder, FAMILIES[name]())
    with tempfile.TemporaryDirectory() as tokenizer_folder:
        save_tiny_tokenizer("roberta", Path(tokenizer_folder))
        tokenizer = OpenClipTokenizer.from_hf_tokenizer(tokenizer_folder, context_length=23)
    return save_tiny_model(folder, FAMILIES[name](), tokenizer)
