"""The text transformer: fields, tensor names, resizing (open_clip: `CLIPTextCfg`, `TextTransformer`)."""

from transformers.configuration_utils import PreTrainedConfig

from ...configuration.configuration_text import OpenClipTextConfig
from ...modeling.modeling_text import resize_text_position_embedding
from ..mapping.config_table import ConfigTable
from ..mapping.state_dict import Rename, Table, Transpose, under
from .base import (
    ENCODER_INTERMEDIATES,
    ENCODER_LAYER,
    HF_DEFAULTS,
    MODERN_FIELDS,
    SPECIAL_IDS,
    STACK_FIELDS,
    STACK_INVERSE,
    TEXT_DEFAULTS,
    TOKENIZER_FIELDS,
    TOKENS_RETURNED,
    Changes,
    Intermediate,
    Tensors,
    TowerConversion,
)


_CONFIG = ConfigTable(
    name="text_cfg",
    config_class=OpenClipTextConfig,
    defaults=TEXT_DEFAULTS,
    fields={
        **STACK_FIELDS,
        "projection_dim": "embed_dim",
        "num_attention_heads": "heads",
        "vocab_size": "vocab_size",
        "max_position_embeddings": "context_length",
        # open_clip takes every value but "none" for "linear".
        "proj_type": lambda cfg: "none" if cfg["proj_type"] == "none" else "linear",
        "proj_bias": "proj_bias",
        "is_causal": lambda cfg: not cfg["no_causal_mask"],
        "use_pad_mask": "use_pad_mask",
        "embed_cls": "embed_cls",
        "correct_cls_mask": "correct_cls_mask",
        "pool_type": "pool_type",
        "pad_token_id": "pad_id",
    },
    without_effect={
        **TOKENS_RETURNED,
        **TOKENIZER_FIELDS,
        **SPECIAL_IDS,
        **MODERN_FIELDS,
        "final_ln_after_pool": "open_clip does not hand it to its text tower",
        **dict.fromkeys((*HF_DEFAULTS, "hf_model_config"), "read for Hugging Face towers only"),
    },
    refused={"text_arch": 'text towers are "clip" or "modern"'},
    inverse={
        **STACK_INVERSE,
        "proj_type": lambda config: config.proj_type,
        "no_causal_mask": lambda config: not config.is_causal,
        "eos_id": lambda config: config.eos_token_id if config.pool_type == "eos" else TEXT_DEFAULTS["eos_id"],
    },
)

_TEXT: Table = (
    Rename("token_embedding.weight", "embeddings.token_embedding.weight"),
    Rename("positional_embedding", "embeddings.position_embedding.weight"),
    Rename("cls_emb", "embeddings.class_embedding"),
    *under("transformer.resblocks.{n}.", "encoder.layers.{n}.", ENCODER_LAYER),
    Rename("ln_final.{p}", "final_layer_norm.{p}"),
)
_PROJECTION: Table = (Transpose("text_projection", "projection.weight"),)
_PROJECTION_WITH_BIAS: Table = (Rename("text_projection.{p}", "projection.{p}"),)


def _table(config: PreTrainedConfig) -> Table:
    """Table of open_clip's `TextTransformer`."""
    return _TEXT + (_PROJECTION_WITH_BIAS if config.proj_bias else _PROJECTION)


def fit_positions(tensors: Tensors, changes: Changes, prefix: str, config: PreTrainedConfig):
    """Resize the table of positions, as open_clip does when it loads it."""
    key, positions = f"{prefix}positional_embedding", config.max_position_embeddings + config.embed_cls
    table = tensors.get(key)
    if table is not None and table.ndim == 2 and len(table) != positions:
        tensors[key] = resize_text_position_embedding(table.float(), positions)
        changes[key] = f"resized from {len(table)} positions to {positions}"


_INTERMEDIATES = (
    Intermediate("tokens", "embeddings.token_embedding", "token_embedding"),
    Intermediate("embeddings", "encoder.layers.0", "transformer.resblocks.0", is_input=True),
    *ENCODER_INTERMEDIATES,
    Intermediate("final norm", "final_layer_norm", "ln_final"),
)

TEXT = TowerConversion(_CONFIG, _table, fit_positions, _INTERMEDIATES)
