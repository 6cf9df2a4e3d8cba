"""CoCa's multimodal decoder: fields and tensor names (open_clip: `MultimodalCfg`, `MultimodalTransformer`, and
`ModernMultimodalTransformer` of open_clip 4)."""

from transformers.configuration_utils import PreTrainedConfig

from ...configuration.configuration_coca import CoCaDecoderConfig
from ...configuration.configuration_modern_decoder import CoCaModernDecoderConfig
from ..mapping.config_table import ConfigTable
from ..mapping.state_dict import Rename, SplitQKV, Table, Transpose, under
from .base import (
    ENCODER_LAYER,
    MULTIMODAL_DEFAULTS,
    TEXT_DEFAULTS,
    DecoderConversion,
    Intermediate,
    layer_intermediates,
)
from .modern_decoder import crossing_intermediates, crossings, layers_that_cross, ratio_of
from .modern_text import (
    LAYER_FIELDS,
    LAYER_INVERSE,
    NEW_WEIGHTS,
    READ_IN_LAYERS,
    modern_intermediates,
    modern_layers,
)


_NOT_HANDED = "open_clip does not hand it to its decoder"


# open_clip builds the decoder from these fields alone; its MLP ratio and epsilon are always the defaults.
DECODER = ConfigTable(
    name="multimodal_cfg",
    config_class=CoCaDecoderConfig,
    defaults=MULTIMODAL_DEFAULTS,
    fields={
        "hidden_size": "width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "intermediate_size": lambda cfg: 4 * cfg["width"],
        "hidden_act": lambda cfg: "quick_gelu" if cfg["quick_gelu"] else "gelu",
        "layer_scale_init_value": "ls_init_value",
        "max_position_embeddings": "context_length",
    },
    without_effect=dict.fromkeys(
        TEXT_DEFAULTS.keys() - {"width", "layers", "heads", "ls_init_value", "context_length"}
        | {"mlp_ratio", "dim_head", "n_queries", "attn_pooler_heads"},
        _NOT_HANDED,
    ),
)

# `ResidualAttentionBlock(is_cross_attention=True)`
CROSS_ATTENTION_LAYER: Table = (
    Rename("ln_1.{p}", "layer_norm1.{p}"),
    Rename("ln_1_kv.{p}", "layer_norm1_kv.{p}"),
    SplitQKV("attn.in_proj_{p}", "cross_attn.{qkv}_proj.{p}"),
    Rename("attn.out_proj.{p}", "cross_attn.out_proj.{p}"),
    Rename("ln_2.{p}", "layer_norm2.{p}"),
    Rename("mlp.c_fc.{p}", "mlp.fc1.{p}"),
    Rename("mlp.c_proj.{p}", "mlp.fc2.{p}"),
    Rename("ls_1.gamma", "layer_scale1.gamma"),
    Rename("ls_2.gamma", "layer_scale2.gamma"),
)

_TABLE: Table = (
    *under("resblocks.{n}.", "multimodal_decoder.layers.{n}.", ENCODER_LAYER),
    *under("cross_attn.{n}.", "multimodal_decoder.cross_attention_layers.{n}.", CROSS_ATTENTION_LAYER),
    Rename("ln_final.{p}", "multimodal_decoder.final_layer_norm.{p}"),
    Transpose("text_projection", "lm_head.weight"),
)

_INTERMEDIATES: tuple[Intermediate, ...] = (
    *layer_intermediates("layers.{n}", "resblocks.{n}"),
    *layer_intermediates("cross_attention_layers.{n}", "cross_attn.{n}", "cross_attn", name="cross-attention "),
    Intermediate("final norm", "final_layer_norm", "ln_final"),
)

COCA_DECODER = DecoderConversion(
    CoCaDecoderConfig.model_type,
    lambda config: under("text_decoder.", "", _TABLE),
    "text_decoder.",
    lambda config: _INTERMEDIATES,
)

MODERN_DECODER = ConfigTable(
    name="multimodal_cfg",
    config_class=CoCaModernDecoderConfig,
    selects=lambda cfg: cfg.get("text_arch") == "modern",
    defaults={**MULTIMODAL_DEFAULTS, "cross_attn_ratio": 1, "tie_lm_head": False},
    fields={
        **LAYER_FIELDS,
        "max_position_embeddings": "context_length",
        "cross_attention_layers": layers_that_cross,
    },
    without_effect={
        **dict.fromkeys(MULTIMODAL_DEFAULTS.keys() - READ_IN_LAYERS - {"context_length"}, _NOT_HANDED),
        **NEW_WEIGHTS,
        "tie_lm_head": _NOT_HANDED,
        "text_arch": "chooses this decoder",
    },
    inverse={**LAYER_INVERSE, "cross_attn_ratio": lambda config: ratio_of(config, config.num_hidden_layers)},
)


def _modern_table(config: PreTrainedConfig) -> Table:
    decoder = config.multimodal_config
    below: Table = (
        *modern_layers(decoder, "multimodal_decoder.layers"),
        *crossings(decoder),
        Rename("ln_final.{p}", "multimodal_decoder.final_layer_norm.{p}"),
        Rename("lm_head.weight", "lm_head.weight"),
    )
    return under("text_decoder.", "", below)


# Of each, a `multimodal_cfg` describes the first whose `selects` is true.
DECODERS = (MODERN_DECODER, DECODER)

COCA_MODERN_DECODER = DecoderConversion(
    CoCaModernDecoderConfig.model_type,
    _modern_table,
    "text_decoder.",
    lambda config: (
        *modern_intermediates("layers"),
        *crossing_intermediates(config),
        Intermediate("final norm", "final_layer_norm", "ln_final"),
    ),
)
