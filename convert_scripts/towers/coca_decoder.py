"""CoCa's multimodal decoder: fields and tensor names (open_clip: `MultimodalCfg`, `MultimodalTransformer`)."""

from ...configuration.configuration_coca import CoCaDecoderConfig
from ..mapping.config_table import ConfigTable
from ..mapping.state_dict import Rename, SplitQKV, Table, Transpose, under
from .base import ENCODER_LAYER, MULTIMODAL_DEFAULTS, TEXT_DEFAULTS, Intermediate, layer_intermediates


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
        TEXT_DEFAULTS.keys() - {"width", "layers", "heads", "ls_init_value", "context_length", "text_arch"}
        | {"mlp_ratio", "dim_head", "n_queries", "attn_pooler_heads"},
        "open_clip does not hand it to its decoder",
    ),
    refused={"text_arch": "decoders with the layers of modern text towers are not supported yet"},
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

COCA_DECODER: Table = (
    *under("resblocks.{n}.", "multimodal_decoder.layers.{n}.", ENCODER_LAYER),
    *under("cross_attn.{n}.", "multimodal_decoder.cross_attention_layers.{n}.", CROSS_ATTENTION_LAYER),
    Rename("ln_final.{p}", "multimodal_decoder.final_layer_norm.{p}"),
    Transpose("text_projection", "lm_head.weight"),
)

DECODER_INTERMEDIATES: tuple[Intermediate, ...] = (
    *layer_intermediates("layers.{n}", "resblocks.{n}"),
    *layer_intermediates("cross_attention_layers.{n}", "cross_attn.{n}", "cross_attn", name="cross-attention "),
    Intermediate("final norm", "final_layer_norm", "ln_final"),
)
