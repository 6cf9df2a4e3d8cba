"""MaMMUT's text tower and its cross-attention: fields and tensor names.

open_clip has two forms of them. LAION's `open_clip_mammut`, of which the released weights are, describes them by
`text_cfg` (`MultimodalCfg`, `MultimodalTransformer`); open_clip 4 by `multimodal_cfg` beside no `text_cfg`
(`MultimodalDecoder`), with a pooling and a projection that can be chosen.
"""

from collections.abc import Callable, Mapping
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from ...configuration.configuration_common import COUNT
from ...configuration.configuration_mammut import MaMMUTDecoderConfig
from ...configuration.configuration_mammut_text import MaMMUTTextConfig
from ..common import ConversionError
from ..mapping.config_table import Cfg, ConfigTable, Kind
from ..mapping.state_dict import Rename, Table, Transpose, under
from .base import (
    ENCODER_LAYER,
    MULTIMODAL_DEFAULTS,
    SPECIAL_IDS,
    TOKENIZER_FIELDS,
    TOKENS_RETURNED,
    Changes,
    Intermediate,
    Tensors,
    TowerConversion,
    layer_intermediates,
    mlp_ratio,
)
from .coca_decoder import CROSS_ATTENTION_LAYER
from .text import fit_positions


_NOT_HANDED = "open_clip does not hand it to this tower"
# What both forms give the tower alike.
_STACK: Mapping[str, str | Callable[[Cfg], Any]] = {
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "hidden_act": lambda cfg: "quick_gelu" if cfg["quick_gelu"] else "gelu",
    "layer_scale_init_value": "ls_init_value",
}
_TEXT: Mapping[str, str | Callable[[Cfg], Any]] = {
    **_STACK,
    "num_hidden_layers": "layers",
    "projection_dim": "embed_dim",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
    "pad_token_id": "pad_id",
}
_READ = {"width", "heads", "ls_init_value", "layers", "vocab_size", "context_length", "pad_id", "text_arch"}
_REFUSED = {"text_arch": "a MaMMUT with the layers of modern text towers is not supported yet"}


def _every(step: int, cfg: Cfg) -> tuple[int, ...]:
    return tuple(range(0, cfg["layers"], step))


def _layers_and_ratio(part: str, cfg: Cfg) -> tuple[int, int]:
    for field in ("layers", "cross_attn_ratio"):
        Kind((int,), COUNT).check(part, field, cfg[field])
    return cfg["layers"], cfg["cross_attn_ratio"]


def _layers_of_fork(cfg: Cfg) -> tuple[int, ...]:
    layers, ratio = _layers_and_ratio("text_cfg", cfg)
    number = layers // ratio
    if not number or len(indices := _every(layers // number, cfg)) != number:
        raise ConversionError(
            f"text_cfg: cross_attn_ratio {ratio} does not fit {layers} layers; open_clip cannot build it either."
        )
    return indices


def _layers_of_open_clip_4(cfg: Cfg) -> tuple[int, ...]:
    layers, ratio = _layers_and_ratio("multimodal_cfg", cfg)
    if ratio > layers:
        raise ConversionError(
            f"multimodal_cfg: cross_attn_ratio {ratio} must be at most the number of layers, {layers}."
        )
    return _every(ratio, cfg)


_OF_DECODER = {"cross_attn_ratio": "read in `decoder_fields`"}
_FORK_DEFAULTS: Cfg = {**MULTIMODAL_DEFAULTS, "cross_attn_ratio": 1, "does_full_decoding": False, "has_mlp": True}
FORK = ConfigTable(
    name="text_cfg",
    config_class=MaMMUTTextConfig,
    selects=lambda cfg: cfg.get("does_full_decoding"),
    defaults=_FORK_DEFAULTS,
    fields={
        **_TEXT,
        "intermediate_size": lambda cfg: 4 * cfg["width"],
        "pool_type": lambda cfg: "avg_all",
        "use_pad_mask": lambda cfg: False,
        "proj_type": lambda cfg: "none",
        "attention_only_layers": lambda cfg: () if cfg["has_mlp"] else _layers_of_fork(cfg),
    },
    without_effect={
        **dict.fromkeys(MULTIMODAL_DEFAULTS.keys() - _READ, _NOT_HANDED),
        **TOKENS_RETURNED,
        **TOKENIZER_FIELDS,
        **SPECIAL_IDS,
        **_OF_DECODER,
        "does_full_decoding": "tells MaMMUT's text tower from others",
    },
    refused=_REFUSED,
    inverse={
        "does_full_decoding": lambda config: True,
        "has_mlp": lambda config: not config.attention_only_layers,
        "output_tokens": lambda config: True,
    },
)

_OPEN_CLIP_4_DEFAULTS: Cfg = {
    **MULTIMODAL_DEFAULTS,
    "cross_attn_ratio": 1,
    "pool_type": "avg",
    "use_pad_mask": True,
    "proj_type": "none",
    "eos_id": None,
}
OPEN_CLIP_4 = ConfigTable(
    name="multimodal_cfg",
    config_class=MaMMUTTextConfig,
    defaults=_OPEN_CLIP_4_DEFAULTS,
    fields={
        **_TEXT,
        "intermediate_size": lambda cfg: int(cfg["width"] * cfg["mlp_ratio"]),
        "pool_type": "pool_type",
        "use_pad_mask": "use_pad_mask",
        # open_clip takes every value but "none" for "linear".
        "proj_type": lambda cfg: "none" if cfg["proj_type"] == "none" else "linear",
    },
    without_effect={
        **dict.fromkeys(
            MULTIMODAL_DEFAULTS.keys() - _READ - {"mlp_ratio", "pool_type", "use_pad_mask", "proj_type"}, _NOT_HANDED
        ),
        **TOKENS_RETURNED,
        **TOKENIZER_FIELDS,
        **SPECIAL_IDS,
        **_OF_DECODER,
    },
    refused=_REFUSED,
    inverse={"mlp_ratio": mlp_ratio, "proj_type": lambda config: config.proj_type},
)


def decoder_fields(table: ConfigTable, cfg: Cfg, **handed_down: Any) -> dict[str, Any]:
    """Our fields of the cross-attention that `cfg`, of the form of `table`, describes."""
    cfg = {**table.complete(cfg), **handed_down}
    find_layers = _layers_of_fork if table is FORK else _layers_of_open_clip_4
    fields = {ours: cfg[theirs] if isinstance(theirs, str) else theirs(cfg) for ours, theirs in _STACK.items()}
    fields["intermediate_size"] = table.fields["intermediate_size"](cfg)  # type: ignore[operator]
    layers = find_layers(cfg)
    return {**fields, "num_hidden_layers": len(layers), "cross_attention_layers": layers}


def form_of(config: PreTrainedConfig) -> ConfigTable:
    """The form of open_clip's that expresses a text tower: the fork's where it can."""
    is_forks = config.pool_type == "avg_all" and not config.use_pad_mask and config.proj_type == "none"
    return FORK if is_forks and config.intermediate_size == 4 * config.hidden_size else OPEN_CLIP_4


def invert(text: PreTrainedConfig, decoder: MaMMUTDecoderConfig) -> dict[str, Any]:
    """open_clip's fields of a text tower with its cross-attention, in the form that expresses it."""
    cfg = form_of(text).invert(text)
    layers = decoder.cross_attention_layers
    cfg["cross_attn_ratio"] = layers[1] - layers[0] if len(layers) > 1 else text.num_hidden_layers
    return cfg


# In the fork, the head that predicts words has the name that open_clip 4 gives to the projection of the embedding.
_HEAD = {"text_cfg": "text_projection", "multimodal_cfg": "lm_head"}


def mammut_decoder_table(config: PreTrainedConfig) -> Table:
    """Rows of the cross-attention, of the head and of the projection of image tokens, in a whole model."""
    below_text: Table = (
        *under("cross_attn.{n}.", "multimodal_decoder.cross_attention_layers.{n}.", CROSS_ATTENTION_LAYER),
        Transpose(_HEAD[form_of(config.text_config).name], "lm_head.weight"),
    )
    return (
        *under("text.", "", below_text),
        Transpose("map_viz2txt_kv", "multimodal_decoder.image_projection.weight"),
    )


def _table(config: PreTrainedConfig) -> Table:
    rows: Table = (
        Rename("token_embedding.weight", "embeddings.token_embedding.weight"),
        Rename("positional_embedding", "embeddings.position_embedding.weight"),
        *under("resblocks.{n}.", "encoder.layers.{n}.", ENCODER_LAYER),
        Rename("ln_final.{p}", "final_layer_norm.{p}"),
    )
    return rows if config.proj_type == "none" else (*rows, Transpose("text_projection", "projection.weight"))


def _fit(tensors: Tensors, changes: Changes, prefix: str, config: PreTrainedConfig):
    fit_positions(tensors, changes, prefix, config)
    # A checkpoint may have the names of the other form, as open_clip 4 takes those of the fork.
    names = [f"{prefix}{name}" for name in _HEAD.values()]
    head = f"{prefix}{_HEAD[form_of(config).name]}"
    found = [name for name in names if name in tensors]
    if config.proj_type == "none" and len(found) == 1 and found != [head]:
        tensors[head] = tensors.pop(found[0])
        changes[head] = f"named {found[0]} in the checkpoint"


_INTERMEDIATES = (
    Intermediate("tokens", "embeddings.token_embedding", "token_embedding"),
    Intermediate("embeddings", "encoder.layers.0", "resblocks.0", is_input=True),
    *layer_intermediates("encoder.layers.{n}", "resblocks.{n}"),
    Intermediate("final norm", "final_layer_norm", "ln_final"),
)
MAMMUT_DECODER_INTERMEDIATES = layer_intermediates(
    "cross_attention_layers.{n}", "cross_attn.{n}", "cross_attn", name="cross-attention "
)

MAMMUT_TEXT = TowerConversion(FORK, _table, _fit, _INTERMEDIATES)
