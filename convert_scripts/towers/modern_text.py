"""The modern text tower: fields and tensor names (open_clip 4: `CLIPTextCfg`, `ModernTextTransformer`)."""

from transformers.configuration_utils import PreTrainedConfig

from ...configuration.configuration_modern_text import ModernTextConfig
from ..common import ConversionError
from ..mapping.config_table import Cfg, ConfigTable
from ..mapping.state_dict import Rename, SplitGated, SplitKV, SplitQKV, Squeeze, Table, under
from .base import (
    MODERN_DEFAULTS,
    SPECIAL_IDS,
    STACK_INVERSE,
    TEXT_DEFAULTS,
    TOKENIZER_FIELDS,
    TOKENS_RETURNED,
    Intermediate,
    TowerConversion,
)


# open_clip's `mlp_type` -> ours: activation, and whether it gates a second projection.
_MLP_TYPES = {"swiglu": ("silu", True), "mlp": ("gelu", False), "relu2": ("relu2", False)}
_NORM_TYPES = {None: "rms_norm", "rmsnorm": "rms_norm", "layernorm": "layer_norm"}
_POSITIONS = {"rope": "rope", "none": "none", "": "none"}
_POOLS = {"argmax": "eos", "eos": "eos", "mean": "mean", "map": "map"}
_IS_CAUSAL = {"causal": True, "bidirectional": False}
_IS_SANDWICH = {"pre": False, "sandwich": True}


def _choice(field: str, choices: dict):
    """A function of open_clip's fields that looks one of them up."""

    def look_up(cfg: Cfg):
        if cfg[field] not in choices:
            known = ", ".join(repr(choice) for choice in choices if choice is not None)
            raise ConversionError(
                f"text_cfg: {field} of a modern text tower must be one of {known}, got {cfg[field]!r}."
            )
        return choices[cfg[field]]

    return look_up


def _key_of(choices: dict, value):
    """The last key with a value: where there are several, what open_clip's own files say."""
    return [key for key, choice in choices.items() if choice == value][-1]


def _pool_type(cfg: Cfg) -> str:
    pool_type = _choice("pool_type", _POOLS)(cfg)
    if pool_type == "eos" and cfg["eos_id"] is None:
        raise ConversionError('text_cfg: pool_type "eos" of a modern text tower needs an eos_id.')
    return pool_type


_READ = {
    *MODERN_DEFAULTS,
    *("width", "heads", "layers", "mlp_ratio", "ls_init_value", "context_length", "vocab_size", "pad_id", "eos_id"),
    *("bos_id", "pool_type", "proj_type", "proj_bias", "qk_norm", "text_arch"),
} - {"zero_init_residual"}

_CONFIG = ConfigTable(
    name="text_cfg",
    config_class=ModernTextConfig,
    selects=lambda cfg: cfg.get("text_arch") == "modern" and not cfg.get("hf_model_name"),
    defaults={**TEXT_DEFAULTS, "eos_id": None},
    fields={
        "hidden_size": "width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "intermediate_size": lambda cfg: int(cfg["width"] * cfg["mlp_ratio"]),
        "layer_scale_init_value": "ls_init_value",
        "vocab_size": "vocab_size",
        "max_position_embeddings": "context_length",
        "projection_dim": "embed_dim",
        "proj_type": lambda cfg: "none" if cfg["proj_type"] == "none" else "linear",
        "proj_bias": "proj_bias",
        "is_causal": _choice("attention_mode", _IS_CAUSAL),
        "position_embedding_type": _choice("pos_embed", _POSITIONS),
        "rope_theta": "rope_temperature",
        "hidden_act": lambda cfg: _choice("mlp_type", _MLP_TYPES)(cfg)[0],
        "use_gated_mlp": lambda cfg: _choice("mlp_type", _MLP_TYPES)(cfg)[1],
        "norm_layer": _choice("norm_type", _NORM_TYPES),
        "layer_norm_eps": "norm_eps",
        "use_embedding_norm": "pre_norm",
        "use_post_norm": _choice("norm_placement", _IS_SANDWICH),
        "qk_norm": "qk_norm",
        "use_attention_gate": "attn_gated",
        "use_value_residual": "value_residual",
        "attention_bias": lambda cfg: bool(cfg["attention_bias"]),
        "gate_bias": lambda cfg: bool(cfg["attention_bias"] if cfg["gate_bias"] is None else cfg["gate_bias"]),
        "mlp_bias": lambda cfg: bool(cfg["mlp_bias"]),
        "num_register_tokens": "reg_tokens",
        "pool_type": _pool_type,
        "freeze_pad_embedding": lambda cfg: cfg["freeze_pad_embed"] is not False,
        "pad_token_id": "pad_id",
    },
    without_effect={
        **dict.fromkeys(TEXT_DEFAULTS.keys() - _READ, "not read for modern text towers"),
        **TOKENS_RETURNED,
        **TOKENIZER_FIELDS,
        **SPECIAL_IDS,
        "text_arch": "chooses this tower",
        "zero_init_residual": "initialisation of new weights",
    },
    inverse={
        "bos_id": lambda config: config.bos_token_id,
        "eos_id": lambda config: config.eos_token_id,
        "text_arch": lambda config: "modern",
        "mlp_ratio": STACK_INVERSE["mlp_ratio"],
        "proj_type": lambda config: config.proj_type,
        "attention_mode": lambda config: _key_of(_IS_CAUSAL, config.is_causal),
        "pos_embed": lambda config: "rope" if config.position_embedding_type == "rope" else "none",
        "mlp_type": lambda config: _mlp_type(config),
        "norm_type": lambda config: _key_of(_NORM_TYPES, config.norm_layer),
        "norm_placement": lambda config: _key_of(_IS_SANDWICH, config.use_post_norm),
        "attention_bias": lambda config: config.attention_bias or None,
        "gate_bias": lambda config: None if config.gate_bias == config.attention_bias else config.gate_bias,
        "mlp_bias": lambda config: config.mlp_bias or None,
        "pool_type": lambda config: config.pool_type,
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


_LAYER: Table = (
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
    *under("blocks.{n}.", "encoder.layers.{n}.", _LAYER),
    Rename("ln_final.{p}", "final_layer_norm.{p}"),
    Squeeze("pool.query", "pooler.query"),
    Rename("pool.q.{p}", "pooler.q_proj.{p}"),
    SplitKV("pool.kv.{p}", "pooler.{kv}_proj.{p}"),
    Rename("pool.q_norm.{p}", "pooler.q_norm.{p}"),
    Rename("pool.k_norm.{p}", "pooler.k_norm.{p}"),
    Rename("text_projection.{p}", "projection.{p}"),
)


def _table(config: PreTrainedConfig) -> Table:
    """Table of open_clip's `ModernTextTransformer`."""
    mlp = _GATED_MLP if config.use_gated_mlp else _MLP
    return (*_MODERN, *under("blocks.{n}.", "encoder.layers.{n}.", mlp))


_INTERMEDIATES = (
    Intermediate("tokens", "embeddings.token_embedding", "token_embedding"),
    Intermediate("embeddings", "encoder.layers.0", "blocks.0", is_input=True),
    Intermediate("layer {n} attention", "encoder.layers.{n}.self_attn", "blocks.{n}.attn"),
    Intermediate("layer {n} MLP", "encoder.layers.{n}.mlp", "blocks.{n}.mlp"),
    Intermediate("layer {n}", "encoder.layers.{n}", "blocks.{n}"),
    Intermediate("final norm", "final_layer_norm", "ln_final"),
)

MODERN_TEXT = TowerConversion(_CONFIG, _table, intermediates=_INTERMEDIATES)
