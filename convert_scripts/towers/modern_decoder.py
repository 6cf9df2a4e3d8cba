"""Cross-attention inside modern layers: fields and tensor names (open_clip 4: `ModernTextDecoderBlock`)."""

from transformers.configuration_utils import PreTrainedConfig

from ..common import ConversionError
from ..mapping.config_table import Cfg
from ..mapping.state_dict import Rename, SplitKV, Table, under
from .base import Intermediate


def layers_that_cross(cfg: Cfg) -> tuple[int, ...]:
    """Indices of the layers that attend to the image, by open_clip 4's `cross_attn_ratio`."""
    ratio, layers = cfg["cross_attn_ratio"], cfg["layers"]
    if not 1 <= ratio <= layers:
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
