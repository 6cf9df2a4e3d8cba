"""The vision transformer: fields, tensor names, resizing (open_clip: `CLIPVisionCfg`, `VisionTransformer`)."""

import math
from collections.abc import Collection

from transformers.configuration_utils import PreTrainedConfig

from ...configuration.configuration_vit import OpenClipVitConfig
from ...modeling.modeling_vit import resize_position_embedding
from ..common import ConversionError
from ..mapping.config_table import ConfigTable
from ..mapping.state_dict import Rename, SplitQKV, Table, Transpose, under
from .base import (
    ENCODER_INTERMEDIATES,
    ENCODER_LAYER,
    IMAGE_SEQ_LEN,
    STACK_FIELDS,
    STACK_INVERSE,
    TIMM_DEFAULTS,
    TOKENS_RETURNED,
    VISION_DEFAULTS,
    Changes,
    Intermediate,
    Tensors,
    TowerConversion,
)


TWO_POOLERS = ("parallel", "cascade")

_CONFIG = ConfigTable(
    name="vision_cfg",
    config_class=OpenClipVitConfig,
    defaults=VISION_DEFAULTS,
    fields={
        **STACK_FIELDS,
        "projection_dim": "embed_dim",
        "num_attention_heads": lambda cfg: cfg["width"] // cfg["head_width"],
        "image_size": "image_size",
        "patch_size": "patch_size",
        "patch_dropout": "patch_dropout",
        "use_pre_layer_norm": lambda cfg: not cfg["no_ln_pre"],
        "position_embedding_type": "pos_embed_type",
        "pool_type": "pool_type",
        "final_ln_after_pool": "final_ln_after_pool",
        "attentional_pool": lambda cfg: cfg["attentional_pool"] or False,
        # What no file says, but weights do (`_adapt`): open_clip 3 cannot run two poolers on other widths.
        "use_projection": lambda cfg: cfg["attentional_pool"] not in TWO_POOLERS or cfg["width"] == cfg["embed_dim"],
        "attn_pooler_queries": "attn_pooler_queries",
        "attn_pooler_heads": "attn_pooler_heads",
    },
    without_effect={
        **TOKENS_RETURNED,
        **IMAGE_SEQ_LEN,
        **dict.fromkeys((*TIMM_DEFAULTS, "timm_model_kwargs"), "read for timm towers only"),
    },
    inverse={
        **STACK_INVERSE,
        "head_width": lambda config: config.hidden_size // config.num_attention_heads,
        "no_ln_pre": lambda config: not config.use_pre_layer_norm,
        "attentional_pool": lambda config: config.attentional_pool,
    },
)

# `AttentionalPooler`; torch's MultiheadAttention packs the weights only where keys are as wide as queries.
_POOLER: Table = (
    Rename("query", "query"),
    Rename("ln_q.{p}", "layer_norm_q.{p}"),
    Rename("ln_k.{p}", "layer_norm_k.{p}"),
    SplitQKV("attn.in_proj_bias", "attention.{qkv}_proj.bias"),
    Rename("attn.out_proj.{p}", "attention.out_proj.{p}"),
)
_PACKED: Table = (SplitQKV("attn.in_proj_weight", "attention.{qkv}_proj.weight"),)
_UNPACKED: Table = tuple(Rename(f"attn.{x}_proj_weight", f"attention.{x}_proj.weight") for x in "qkv")

_VIT: Table = (
    Rename("class_embedding", "embeddings.class_embedding"),
    Rename("conv1.weight", "embeddings.patch_embedding.weight"),
    Rename("positional_embedding", "embeddings.position_embedding"),
    Rename("ln_pre.{p}", "pre_layernorm.{p}"),
    *under("transformer.resblocks.{n}.", "encoder.layers.{n}.", ENCODER_LAYER),
    Rename("ln_post.{p}", "post_layernorm.{p}"),
    Transpose("proj", "projection.weight"),
)


def _table(config: PreTrainedConfig) -> Table:
    """Table of open_clip's `VisionTransformer`."""
    behind = config.projection_dim if config.attentional_pool == "cascade" else config.hidden_size
    token_dims = {"attn_pool": config.hidden_size, "attn_pool_contrastive": behind}
    poolers = [
        under(f"{name}.", f"{name}.", _POOLER + (_PACKED if width == config.projection_dim else _UNPACKED))
        for name, width in token_dims.items()
    ]
    return sum(poolers, _VIT)


def _adapt(config: PreTrainedConfig, keys: Collection[str]):
    if config.has_two_poolers:
        config.use_projection = "visual.proj" in keys


def _fit(tensors: Tensors, changes: Changes, prefix: str, config: PreTrainedConfig):
    key, new_grid = f"{prefix}positional_embedding", config.grid_size
    table = tensors.get(key)
    if table is None or table.ndim != 2 or len(table) == 1 + math.prod(new_grid):
        return
    side = math.isqrt(len(table) - 1)
    if side**2 != len(table) - 1:
        raise ConversionError(
            f"{key} has {len(table) - 1} patch positions, the model has {new_grid[0]} x {new_grid[1]}, and only "
            "square grids can be resized: correct image_size or patch_size in the configuration."
        )
    tensors[key] = resize_position_embedding(table.float(), (side, side), new_grid)
    changes[key] = f"resized from a grid of {side} x {side} patches to {new_grid[0]} x {new_grid[1]}"


_INTERMEDIATES = (
    Intermediate("patches", "embeddings.patch_embedding", "conv1"),
    Intermediate("embeddings", "patch_dropout", "patch_dropout"),
    Intermediate("pre-norm", "pre_layernorm", "ln_pre"),
    *ENCODER_INTERMEDIATES,
    Intermediate("attentional pooler", "attn_pool", "attn_pool"),
    Intermediate("contrastive pooler", "attn_pool_contrastive", "attn_pool_contrastive"),
    Intermediate("post-norm", "post_layernorm", "ln_post"),
)

VIT = TowerConversion(_CONFIG, _table, _fit, _INTERMEDIATES, _adapt)
