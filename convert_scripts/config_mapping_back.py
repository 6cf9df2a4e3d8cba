"""From the configuration of one of our models back to open_clip's `model_cfg` (open_clip: `model_configs/`)."""

import json
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from .common import ConversionError, listing
from .mapping.config import MODEL, TokenIds, build_config
from .mapping.config_table import Cfg
from .towers.coca_decoder import DECODER
from .towers.tables import TEXT_CONVERSIONS, VISION_CONVERSIONS


# Our fields that are no part of an open_clip model -> why.
NOT_IN_MODEL_CFG = {
    "initializer_range": "initialisation of new weights",
    "caption_loss_weight": "chosen for a training run",
    "contrastive_loss_weight": "chosen for a training run",
    "bos_token_id": "the tokenizer's",
    "eos_token_id": "the tokenizer's, or `eos_id`",
}
_UPSTREAM = {field.name for field in fields(PreTrainedConfig)} - {"pad_token_id"}


def build_model_cfg(config: PreTrainedConfig, tokenizer_cfg: Cfg | None = None) -> dict[str, Any]:
    """open_clip's `model_cfg` of the model that `config` describes; fields that are open_clip's defaults are left out.

    Args:
        config: configuration of a dual model or of CoCa.
        tokenizer_cfg: the fields of `text_cfg` that choose the tokenizer, such as `hf_tokenizer_name`.

    Raises:
        ConversionError: settings that open_clip has no field for; all of them are listed.
    """
    vision, text = config.vision_config, config.text_config
    cfg = {
        **MODEL.invert(config),
        "vision_cfg": VISION_CONVERSIONS[vision.model_type].config_table.invert(vision),
        "text_cfg": {**TEXT_CONVERSIONS[text.model_type].config_table.invert(text), **(tokenizer_cfg or {})},
    }
    if "multimodal_config" in config.sub_configs:
        cfg["multimodal_cfg"] = DECODER.invert(config.multimodal_config)
        # open_clip's decoder has no vocabulary of its own: it takes that of the text tower's fields.
        cfg["text_cfg"]["vocab_size"] = config.multimodal_config.vocab_size
        # open_clip's CoCa unpacks what these towers return.
        cfg["vision_cfg"]["output_tokens"] = cfg["text_cfg"]["output_tokens"] = True
    if _is_custom_text(cfg):
        cfg["custom_text"] = True
    cfg = json.loads(json.dumps(cfg))  # tuples become lists, as they will in the file
    _check_nothing_is_lost(config, cfg)
    return cfg


def _is_custom_text(cfg: Cfg) -> bool:
    """Whether open_clip keeps the text tower under `text.`: where it must, and where its own files do by habit."""
    return (
        "multimodal_cfg" in cfg
        or "embed_cls" in cfg["text_cfg"]
        or "init_logit_bias" in cfg
        or "timm_model_name" in cfg["vision_cfg"]
    )


def _check_nothing_is_lost(config: PreTrainedConfig, cfg: Cfg):
    """Translates `cfg` back: what does not come back has no field in open_clip."""
    text = config.text_config
    back = build_config(cfg, TokenIds(text.bos_token_id, text.eos_token_id, getattr(config, "pad_token_id", None)))
    lost = [f"{name} = {ours!r} (open_clip's model has {theirs!r})" for name, ours, theirs in _unequal(config, back)]
    if lost:
        raise ConversionError(
            f"open_clip cannot express these settings of the model:{listing(lost)}\n"
            "Change them in config.json where they make no difference to what you need, such as training alone."
        )


def _unequal(ours: PreTrainedConfig, back: PreTrainedConfig, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    names = {"model_type": None} | dict.fromkeys(field.name for field in fields(ours) if field.name not in _UPSTREAM)
    for name in names:
        first, second = getattr(ours, name), getattr(back, name, None)
        if name in ours.sub_configs:
            yield from _unequal(first, second, f"{prefix}{name}.")
        elif name not in NOT_IN_MODEL_CFG and _plain(first) != _plain(second):
            yield prefix + name, first, second


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
