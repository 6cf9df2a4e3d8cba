"""The modern text tower: fields and tensor names (open_clip 4: `CLIPTextCfg`, `ModernTextTransformer`)."""

from collections.abc import Callable, Mapping
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from ...configuration.configuration_modern_text import ModernTextConfig
from ..common import ConversionError
from ..mapping.config_table import Cfg, ConfigTable
from ..mapping.state_dict import Rename, SplitGated, SplitKV, SplitQKV, Squeeze, Table, under
from .base import (
    MODERN_DEFAULTS,
    SPECIAL_IDS,
    TEXT_DEFAULTS,
    TOKENIZER_FIELDS,
    TOKENS_RETURNED,
    Intermediate,
    TowerConversion,
    mlp_ratio,
)


# open_clip's `mlp_type` -> ours: activation, and whether it gates a second projection.
_MLP_TYPES = {"swiglu": ("silu", True), "mlp": ("gelu", False), "relu2": ("relu2", False)}
_NORM_TYPES = {None: "rms_norm", "rmsnorm": "rms_norm", "layernorm": "layer_norm"}
_POSITIONS = {"rope": "rope", "none": "none", "": "none"}
_POOLS = {"argmax": "eos", "eos": "eos", "mean": "mean", "map": "map"}
_IS_CAUSAL = {"causal": True, "bidirectional": False}
_IS_SANDWICH = {"pre": False, "sandwich": True}


def choice(field: str, choices: dict):
    """A function of open_clip's fields that looks one of them up."""

    def look_up(cfg: Cfg):
        if cfg[field] not in choices:
            known = ", ".join(repr(choice) for choice in choices if choice is not None)
            raise ConversionError(f"{field} of a modern text tower must be one of {known}, got {cfg[field]!r}.")
        return choices[cfg[field]]

    return look_up


def _key_of(choices: dict, value):
    """The last key with a value: where there are several, what open_clip's own files say."""
    return [key for key, choice in choices.items() if choice == value][-1]


def pool_type(cfg: Cfg, choices: dict[str, str] = _POOLS) -> str:
    """Our `pool_type` of a modern text tower's, one of `choices`."""
    pool_type = choice("pool_type", choices)(cfg)
    if pool_type == "eos" and cfg["eos_id"] is None:
        raise ConversionError('pool_type "eos" of a modern text tower needs an eos_id.')
    return pool_type


Fields = Mapping[str, str | Callable[[Cfg], Any]]
Inverse = Mapping[str, Callable[[PreTrainedConfig], Any]]
# Ours of [`ModernAttentionConfig`] -> open_clip's.
ATTENTION_FIELDS: Fields = {
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "layer_scale_init_value": "ls_init_value",
    "norm_layer": choice("norm_type", _NORM_TYPES),
    "layer_norm_eps": "norm_eps",
    "use_post_norm": choice("norm_placement", _IS_SANDWICH),
    "qk_norm": "qk_norm",
    "use_attention_gate": "attn_gated",
    "attention_bias": lambda cfg: bool(cfg["attention_bias"]),
    "gate_bias": lambda cfg: bool(cfg["attention_bias"] if cfg["gate_bias"] is None else cfg["gate_bias"]),
}
# Those of [`ModernLayersConfig`].
LAYER_FIELDS: Fields = {
    **ATTENTION_FIELDS,
    "num_hidden_layers": "layers",
    "intermediate_size": lambda cfg: int(cfg["width"] * cfg["mlp_ratio"]),
    "position_embedding_type": choice("pos_embed", _POSITIONS),
    "rope_theta": "rope_temperature",
    "hidden_act": lambda cfg: choice("mlp_type", _MLP_TYPES)(cfg)[0],
    "use_gated_mlp": lambda cfg: choice("mlp_type", _MLP_TYPES)(cfg)[1],
    "mlp_bias": lambda cfg: bool(cfg["mlp_bias"]),
    "use_value_residual": "value_residual",
}
LAYER_INVERSE: Inverse = {
    "text_arch": lambda config: "modern",
    "mlp_ratio": mlp_ratio,
    "pos_embed": lambda config: "rope" if config.position_embedding_type == "rope" else "none",
    "mlp_type": lambda config: _mlp_type(config),
    "norm_type": lambda config: _key_of(_NORM_TYPES, config.norm_layer),
    "norm_placement": lambda config: _key_of(_IS_SANDWICH, config.use_post_norm),
    "attention_bias": lambda config: config.attention_bias or None,
    "gate_bias": lambda config: None if config.gate_bias == config.attention_bias else config.gate_bias,
    "mlp_bias": lambda config: config.mlp_bias or None,
}
# And of the text tower.
TEXT_FIELDS: Fields = {
    **LAYER_FIELDS,
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
    "projection_dim": "embed_dim",
    "proj_type": lambda cfg: "none" if cfg["proj_type"] == "none" else "linear",
    "proj_bias": "proj_bias",
    "use_embedding_norm": "pre_norm",
    "pad_token_id": "pad_id",
}
TEXT_INVERSE: Inverse = {
    **LAYER_INVERSE,
    "bos_id": lambda config: config.bos_token_id,
    "eos_id": lambda config: config.eos_token_id,
    "proj_type": lambda config: config.proj_type,
    "pool_type": lambda config: config.pool_type,
}
# open_clip's fields that modern layers have in every model.
READ_IN_LAYERS = frozenset(
    {
        *("text_arch", "width", "heads", "layers", "mlp_ratio", "ls_init_value", "norm_type", "norm_eps", "qk_norm"),
        *("norm_placement", "attn_gated", "attention_bias", "gate_bias", "mlp_bias", "pos_embed", "rope_temperature"),
        *("mlp_type", "value_residual"),
    }
)
READ_IN_TEXT = READ_IN_LAYERS | {
    *("context_length", "vocab_size", "pad_id", "eos_id", "bos_id", "pool_type", "proj_type", "proj_bias", "pre_norm")
}
NEW_WEIGHTS = {"zero_init_residual": "initialisation of new weights"}

_CONFIG = ConfigTable(
    name="text_cfg",
    config_class=ModernTextConfig,
    selects=lambda cfg: cfg.get("text_arch") == "modern" and not cfg.get("hf_model_name"),
    defaults={**TEXT_DEFAULTS, "eos_id": None},
    fields={
        **TEXT_FIELDS,
        "is_causal": choice("attention_mode", _IS_CAUSAL),
        "num_register_tokens": "reg_tokens",
        "pool_type": pool_type,
        "freeze_pad_embedding": lambda cfg: cfg["freeze_pad_embed"] is not False,
    },
    without_effect={
        **dict.fromkeys(
            TEXT_DEFAULTS.keys() - READ_IN_TEXT - MODERN_DEFAULTS.keys(), "not read for modern text towers"
        ),
        **TOKENS_RETURNED,
        **TOKENIZER_FIELDS,
        **SPECIAL_IDS,
        **NEW_WEIGHTS,
        "text_arch": "chooses this tower",
    },
    inverse={
        **TEXT_INVERSE,
        "attention_mode": lambda config: _key_of(_IS_CAUSAL, config.is_causal),
        "freeze_pad_embed": lambda config: None if config.freeze_pad_embedding else False,
    },
)


def _mlp_type(config: PreTrainedConfig) -> str:
    kind = (config.hidden_act, config.use_gated_mlp)
    if kind not in _MLP_TYPES.values():
        raise ConversionError(
            f"open_clip has no modern text tower with hidden_act={kind[0]!r} and use_gated_mlp={kind[1]}: it has "
            f"{', '.join(_MLP_TYPES)}."
        )
    return _key_of(_MLP_TYPES, kind)


_ATTENTION: Table = (
    Rename("norm1.{p}", "layer_norm1.{p}"),
    SplitQKV("attn.qkv.{p}", "self_attn.{qkv}_proj.{p}"),
    Rename("attn.q_norm.{p}", "self_attn.q_norm.{p}"),
    Rename("attn.k_norm.{p}", "self_attn.k_norm.{p}"),
    Rename("attn.gate.{p}", "self_attn.gate.{p}"),
    Rename("attn.vr_lambda", "self_attn.value_mix"),
    Rename("attn.proj.{p}", "self_attn.out_proj.{p}"),
    Rename("norm1_post.{p}", "attn_norm.{p}"),
    Rename("ls1.gamma", "layer_scale1.gamma"),
    Rename("norm2.{p}", "layer_norm2.{p}"),
    Rename("norm2_post.{p}", "mlp_norm.{p}"),
    Rename("ls2.gamma", "layer_scale2.gamma"),
)
_MLP: Table = (Rename("mlp.c_fc.{p}", "mlp.fc1.{p}"), Rename("mlp.c_proj.{p}", "mlp.fc2.{p}"))
_GATED_MLP: Table = (SplitGated("mlp.w12.{p}", "mlp.{gated}.{p}"), Rename("mlp.w3.{p}", "mlp.fc2.{p}"))
_MODERN: Table = (
    Rename("token_embedding.weight", "embeddings.token_embedding.weight"),
    Squeeze("reg_tokens", "embeddings.register_tokens"),
    Rename("norm_pre.{p}", "embeddings.layer_norm.{p}"),
    Rename("ln_final.{p}", "final_layer_norm.{p}"),
    Squeeze("pool.query", "pooler.query"),
    Rename("pool.q.{p}", "pooler.q_proj.{p}"),
    SplitKV("pool.kv.{p}", "pooler.{kv}_proj.{p}"),
    Rename("pool.q_norm.{p}", "pooler.q_norm.{p}"),
    Rename("pool.k_norm.{p}", "pooler.k_norm.{p}"),
    Rename("text_projection.{p}", "projection.{p}"),
)


def modern_layers(config: PreTrainedConfig, ours: str) -> Table:
    """Rows of a stack of open_clip's `ModernTextBlock`, whose layers are below `ours`."""
    mlp = _GATED_MLP if config.use_gated_mlp else _MLP
    return under("blocks.{n}.", f"{ours}.{{n}}.", (*_ATTENTION, *mlp))


def _table(config: PreTrainedConfig) -> Table:
    """Table of open_clip's `ModernTextTransformer`."""
    return (*_MODERN, *modern_layers(config, "encoder.layers"))


def modern_intermediates(ours: str) -> tuple[Intermediate, ...]:
    """Values inside each layer of such a stack."""
    return (
        Intermediate("layer {n} attention", f"{ours}.{{n}}.self_attn", "blocks.{n}.attn"),
        Intermediate("layer {n} MLP", f"{ours}.{{n}}.mlp", "blocks.{n}.mlp"),
        Intermediate("layer {n}", f"{ours}.{{n}}", "blocks.{n}"),
    )


_INTERMEDIATES = (
    Intermediate("tokens", "embeddings.token_embedding", "token_embedding"),
    Intermediate("embeddings", "encoder.layers.0", "blocks.0", is_input=True),
    *modern_intermediates("encoder.layers"),
    Intermediate("final norm", "final_layer_norm", "ln_final"),
)

MODERN_TEXT = TowerConversion(_CONFIG, _table, intermediates=_INTERMEDIATES)
