"""Cross-attention inside modern layers: fields and tensor names (open_clip 4: `ModernTextDecoderBlock`)."""

from transformers.configuration_utils import PreTrainedConfig

from ...configuration.configuration_common import COUNT
from ..common import ConversionError
from ..mapping.config_table import Cfg, Kind
from ..mapping.state_dict import Rename, SplitKV, Table, under
from .base import Intermediate


def layers_and_ratio(part: str, cfg: Cfg) -> tuple[int, int]:
    """`layers` and `cross_attn_ratio` of a part; `ConversionError` unless they are whole numbers from 1."""
    for field in ("layers", "cross_attn_ratio"):
        Kind((int,), COUNT).check(part, field, cfg[field])
    return cfg["layers"], cfg["cross_attn_ratio"]


def layers_that_cross(cfg: Cfg) -> tuple[int, ...]:
    """Indices of the layers that attend to the image, by open_clip 4's `cross_attn_ratio`."""
    layers, ratio = layers_and_ratio("multimodal_cfg", cfg)
    if ratio > layers:
        raise ConversionError(
            f"multimodal_cfg: cross_attn_ratio {ratio} must be at most the number of layers, {layers}."
        )
    return tuple(range(0, layers, ratio))


def ratio_of(decoder: PreTrainedConfig, num_layers: int) -> int:
    """The `cross_attn_ratio` of a decoder's `cross_attention_layers`, out of `num_layers`."""
    layers = decoder.cross_attention_layers
    return layers[1] - layers[0] if len(layers) > 1 else num_layers


_CROSSING: Table = (
    Rename("norm_x.{p}", "layer_norm1.{p}"),
    Rename("xattn.q.{p}", "cross_attn.q_proj.{p}"),
    SplitKV("xattn.kv.{p}", "cross_attn.{kv}_proj.{p}"),
    Rename("xattn.q_norm.{p}", "cross_attn.q_norm.{p}"),
    Rename("xattn.k_norm.{p}", "cross_attn.k_norm.{p}"),
    Rename("xattn.gate.{p}", "cross_attn.gate.{p}"),
    Rename("xattn.proj.{p}", "cross_attn.out_proj.{p}"),
    Rename("norm_x_post.{p}", "attn_norm.{p}"),
    Rename("ls_x.gamma", "layer_scale1.gamma"),
)


def crossings(decoder: PreTrainedConfig) -> Table:
    """Rows of the cross-attention in a stack of open_clip's `ModernTextDecoderBlock`."""
    return tuple(
        row
        for ours, theirs in enumerate(decoder.cross_attention_layers)
        for row in under(f"blocks.{theirs}.", f"multimodal_decoder.cross_attention_layers.{ours}.", _CROSSING)
    )


def crossing_intermediates(decoder: PreTrainedConfig) -> tuple[Intermediate, ...]:
    """Values inside each of them."""
    return tuple(
        Intermediate(
            f"layer {theirs} cross-attention", f"cross_attention_layers.{ours}.cross_attn", f"blocks.{theirs}.xattn"
        )
        for ours, theirs in enumerate(decoder.cross_attention_layers)
    )
