"""MaMMUT's text tower and its cross-attention: fields and tensor names.

open_clip has three forms of them. LAION's `open_clip_mammut`, of which the released weights are, describes them by
`text_cfg` (`MultimodalCfg`, `MultimodalTransformer`); open_clip 4 by `multimodal_cfg` beside no `text_cfg`
(`MultimodalDecoder`), with a pooling and a projection that can be chosen, or with modern layers
(`ModernMultimodalDecoder`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig

from ...configuration.configuration_mammut import MaMMUTDecoderConfig
from ...configuration.configuration_mammut_text import MaMMUTTextConfig
from ...configuration.configuration_modern_decoder import MaMMUTModernDecoderConfig
from ...configuration.configuration_modern_text import ModernTextConfig
from ..common import ConversionError
from ..mapping.config_table import Cfg, ConfigTable
from ..mapping.state_dict import Rename, Table, Transpose, under
from .base import (
    ENCODER_LAYER,
    MULTIMODAL_DEFAULTS,
    SPECIAL_IDS,
    TOKENIZER_FIELDS,
    TOKENS_RETURNED,
    Changes,
    DecoderConversion,
    Intermediate,
    Tensors,
    TowerConversion,
    layer_intermediates,
    mlp_ratio,
)
from .coca_decoder import CROSS_ATTENTION_LAYER
from .modern_decoder import crossing_intermediates, crossings, layers_and_ratio, layers_that_cross, ratio_of
from .modern_text import ATTENTION_FIELDS, NEW_WEIGHTS, READ_IN_TEXT, TEXT_FIELDS, TEXT_INVERSE, pool_type
from .text import fit_positions


_NOT_HANDED = "open_clip does not hand it to this tower"
_WIDE_MLPS: Mapping[str, Callable[[Cfg], int]] = {"intermediate_size": lambda cfg: 4 * cfg["width"]}
_MLPS: Mapping[str, Callable[[Cfg], int]] = {"intermediate_size": lambda cfg: int(cfg["width"] * cfg["mlp_ratio"])}
# What the first two forms give the tower alike.
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
_READ = {"width", "heads", "ls_init_value", "layers", "vocab_size", "context_length", "pad_id"}


def _layers_of_fork(cfg: Cfg) -> tuple[int, ...]:
    layers, ratio = layers_and_ratio("text_cfg", cfg)
    number = layers // ratio
    if not number or len(indices := tuple(range(0, layers, layers // number))) != number:
        raise ConversionError(
            f"text_cfg: cross_attn_ratio {ratio} does not fit {layers} layers; open_clip cannot build it either."
        )
    return indices


_OF_DECODER = {"cross_attn_ratio": "read in `Form.decoder`"}
_FORK_DEFAULTS: Cfg = {**MULTIMODAL_DEFAULTS, "cross_attn_ratio": 1, "does_full_decoding": False, "has_mlp": True}
_FORK = ConfigTable(
    name="text_cfg",
    config_class=MaMMUTTextConfig,
    selects=lambda cfg: cfg.get("does_full_decoding"),
    defaults=_FORK_DEFAULTS,
    fields={
        **_TEXT,
        **_WIDE_MLPS,
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
    inverse={
        "does_full_decoding": lambda config: True,
        "has_mlp": lambda config: not config.attention_only_layers,
        "output_tokens": lambda config: True,
    },
)

_OPEN_CLIP_4_DEFAULTS: Cfg = {
    **MULTIMODAL_DEFAULTS,
    "cross_attn_ratio": 1,
    "tie_lm_head": False,
    "pool_type": "avg",
    "use_pad_mask": True,
    "proj_type": "none",
    "eos_id": None,
}
_OPEN_CLIP_4 = ConfigTable(
    name="multimodal_cfg",
    config_class=MaMMUTTextConfig,
    defaults=_OPEN_CLIP_4_DEFAULTS,
    fields={
        **_TEXT,
        **_MLPS,
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
        "tie_lm_head": "read for modern layers only",
    },
    inverse={"mlp_ratio": mlp_ratio, "proj_type": lambda config: config.proj_type},
)

_MODERN_POOLS = {"avg": "mean", "argmax": "eos", "mean": "mean", "eos": "eos", "map": "map"}
_MODERN = ConfigTable(
    name="multimodal_cfg",
    config_class=ModernTextConfig,
    selects=lambda cfg: cfg.get("text_arch") == "modern",
    defaults=_OPEN_CLIP_4_DEFAULTS,
    fields={
        **TEXT_FIELDS,
        "is_causal": lambda cfg: False,
        "pool_type": lambda cfg: pool_type(cfg, _MODERN_POOLS),
        "freeze_pad_embedding": lambda cfg: False,
    },
    without_effect={
        **dict.fromkeys(_OPEN_CLIP_4_DEFAULTS.keys() - READ_IN_TEXT - {"reg_tokens"}, _NOT_HANDED),
        **TOKENS_RETURNED,
        **TOKENIZER_FIELDS,
        **SPECIAL_IDS,
        **NEW_WEIGHTS,
        **_OF_DECODER,
        "tie_lm_head": "read in `Form.whole`",
        "text_arch": "chooses this form",
    },
    refused={"reg_tokens": "a text tower that captions too has no register tokens; open_clip cannot build it either"},
    inverse=TEXT_INVERSE,
)


@dataclass(frozen=True)
class Form:
    """A form in which open_clip describes a MaMMUT's texts and captions by one object.

    Args:
        text: its fields and ours of the text tower.
        decoder_class: our configuration of the cross-attention.
        decoder_fields: ours of the cross-attention -> open_clip's, or a function of all of its fields.
        layers: from open_clip's fields to the indices of the layers that attend to the image.
        whole: our fields of the whole model -> open_clip's.
    """

    text: ConfigTable
    decoder_class: type[PreTrainedConfig]
    decoder_fields: Mapping[str, str | Callable[[Cfg], Any]]
    layers: Callable[[Cfg], tuple[int, ...]]
    whole: Mapping[str, str] = field(default_factory=dict)

    def decoder(self, cfg: Cfg, **handed_down: Any) -> PreTrainedConfig:
        """Our configuration of the cross-attention that `cfg` describes."""
        cfg = {**self.text.complete(cfg), **handed_down}
        fields = {
            ours: cfg[theirs] if isinstance(theirs, str) else theirs(cfg)
            for ours, theirs in self.decoder_fields.items()
        }
        layers = self.layers(cfg)
        return self.decoder_class(**fields, num_hidden_layers=len(layers), cross_attention_layers=layers)

    def whole_fields(self, cfg: Cfg) -> dict[str, Any]:
        """Our fields of the whole model."""
        cfg = self.text.complete(cfg)
        return {ours: cfg[theirs] for ours, theirs in self.whole.items()}

    def invert(self, config: PreTrainedConfig) -> dict[str, Any]:
        """open_clip's fields of a whole model's texts and captions."""
        text = config.text_config
        whole = {theirs: getattr(config, ours) for ours, theirs in self.whole.items()}
        stated = {theirs: value for theirs, value in whole.items() if value != self.text.defaults[theirs]}
        ratio = ratio_of(config.multimodal_config, text.num_hidden_layers)
        return {**self.text.invert(text), **stated, "cross_attn_ratio": ratio}


FORK = Form(_FORK, MaMMUTDecoderConfig, {**_STACK, **_WIDE_MLPS}, _layers_of_fork)
OPEN_CLIP_4 = Form(_OPEN_CLIP_4, MaMMUTDecoderConfig, {**_STACK, **_MLPS}, layers_that_cross)
MODERN = Form(
    _MODERN, MaMMUTModernDecoderConfig, ATTENTION_FIELDS, layers_that_cross, {"tie_word_embeddings": "tie_lm_head"}
)
# Of those in `multimodal_cfg`, the first whose table's `selects` is true.
FORMS = (FORK, MODERN, OPEN_CLIP_4)


def form_of(config: PreTrainedConfig) -> Form:
    """The form of open_clip's that expresses a text tower: the fork's where it can."""
    if config.model_type == ModernTextConfig.model_type:
        return MODERN
    is_forks = config.pool_type == "avg_all" and not config.use_pad_mask and config.proj_type == "none"
    return FORK if is_forks and config.intermediate_size == 4 * config.hidden_size else OPEN_CLIP_4


# In the fork, the head that predicts words has the name that open_clip 4 gives to the projection of the embedding.
_HEAD = {"text_cfg": "text_projection", "multimodal_cfg": "lm_head"}
_IMAGE_PROJECTION = Transpose("map_viz2txt_kv", "multimodal_decoder.image_projection.weight")


def _decoder_table(config: PreTrainedConfig) -> Table:
    below_text: Table = (
        *under("cross_attn.{n}.", "multimodal_decoder.cross_attention_layers.{n}.", CROSS_ATTENTION_LAYER),
        Transpose(_HEAD[form_of(config.text_config).text.name], "lm_head.weight"),
    )
    return (*under("text.", "", below_text), _IMAGE_PROJECTION)


def _modern_decoder_table(config: PreTrainedConfig) -> Table:
    below_text: Table = (*crossings(config.multimodal_config), Rename("lm_head.weight", "lm_head.weight"))
    return (*under("text.", "", below_text), _IMAGE_PROJECTION)


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
    head = f"{prefix}{_HEAD[form_of(config).text.name]}"
    found = [name for name in names if name in tensors]
    if config.proj_type == "none" and len(found) == 1 and found != [head]:
        tensors[head] = tensors.pop(found[0])
        changes[head] = f"named {found[0]} in the checkpoint"


def _fit_tied(tensors: Tensors, changes: Changes, config: PreTrainedConfig):
    """Give a tied head and the token embedding the one tensor that a file may hold of them."""
    names = ("text.lm_head.weight", "text.token_embedding.weight")
    found = [name for name in names if name in tensors]
    if not config.tie_word_embeddings or not found:
        return
    if len(found) == 2 and not tensors[names[0]].is_meta and not torch.equal(tensors[names[0]], tensors[names[1]]):
        raise ConversionError(
            f"tie_lm_head is true, and {' and '.join(names)} of the checkpoint differ: set it as the checkpoint was "
            "trained."
        )
    for name in names:
        if name not in tensors:
            tensors[name] = tensors[found[0]]
            changes[name] = f"{found[0]}, to which it is tied"


_INTERMEDIATES = (
    Intermediate("tokens", "embeddings.token_embedding", "token_embedding"),
    Intermediate("embeddings", "encoder.layers.0", "resblocks.0", is_input=True),
    *layer_intermediates("encoder.layers.{n}", "resblocks.{n}"),
    Intermediate("final norm", "final_layer_norm", "ln_final"),
)
_DECODER_INTERMEDIATES = layer_intermediates(
    "cross_attention_layers.{n}", "cross_attn.{n}", "cross_attn", name="cross-attention "
)

MAMMUT_TEXT = TowerConversion(_FORK, _table, _fit, _INTERMEDIATES)
MAMMUT_DECODER = DecoderConversion(
    MaMMUTDecoderConfig.model_type, _decoder_table, "text.", lambda config: _DECODER_INTERMEDIATES
)
MAMMUT_MODERN_DECODER = DecoderConversion(
    MaMMUTModernDecoderConfig.model_type, _modern_decoder_table, "text.", crossing_intermediates, _fit_tied
)
