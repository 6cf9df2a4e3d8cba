"""How open_clip's tensor names become ours, as data: one table a tower, one for CoCa's decoder, one for the scalars.

A tower is one row in `VISION_TABLES` or `TEXT_TABLES`: a function from its configuration to its rename table. The
configuration is asked only where one of our tensors has two forms in open_clip, so that the table can be read
backwards.
"""

from collections.abc import Callable, Sequence

from transformers.configuration_utils import PreTrainedConfig

from .state_dict_ops import Operation, Rename, SplitQKV, Transpose


Table = tuple[Operation, ...]

# Keys of a checkpoint that no model needs -> why.
DROPPED = {
    "attn_mask": "causal mask of the text tower, made in forward",
    "text.attn_mask": "causal mask of the text tower, made in forward",
    "text_decoder.attn_mask": "causal mask of the decoder, made in forward",
    "text.transformer.embeddings.position_ids": "buffer of old transformers releases, made in forward",
    "input_resolution": "number kept by OpenAI's archives, in the configuration as image_size",
    "context_length": "number kept by OpenAI's archives, in the configuration as max_position_embeddings",
    "vocab_size": "number kept by OpenAI's archives, in the configuration as vocab_size",
}


def under(source_prefix: str, target_prefix: str, table: Sequence[Operation]) -> Table:
    """A table for the keys below a module."""
    return tuple(operation.under(source_prefix, target_prefix) for operation in table)


# open_clip's `ResidualAttentionBlock` and `CustomResidualAttentionBlock`; the second half is there by option only.
ENCODER_LAYER: Table = (
    Rename("ln_1.{p}", "layer_norm1.{p}"),
    SplitQKV("attn.in_proj_{p}", "self_attn.{qkv}_proj.{p}"),
    Rename("attn.out_proj.{p}", "self_attn.out_proj.{p}"),
    Rename("ln_2.{p}", "layer_norm2.{p}"),
    Rename("mlp.c_fc.{p}", "mlp.fc1.{p}"),
    Rename("mlp.c_proj.{p}", "mlp.fc2.{p}"),
    Rename("ls_1.gamma", "layer_scale1.gamma"),
    Rename("ls_2.gamma", "layer_scale2.gamma"),
    Rename("attn.ln_q.{p}", "self_attn.q_norm.{p}"),
    Rename("attn.ln_k.{p}", "self_attn.k_norm.{p}"),
    Rename("attn.logit_scale", "self_attn.logit_scale"),
    Rename("attn.head_scale", "self_attn.head_scale"),
    Rename("attn.ln_inner.{p}", "self_attn.inner_norm.{p}"),
    Rename("ln_attn.{p}", "attn_norm.{p}"),
    Rename("mlp.ln.{p}", "mlp.norm.{p}"),
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

# `AttentionalPooler`; torch's MultiheadAttention packs the weights only where keys are as wide as queries.
POOLER: Table = (
    Rename("query", "query"),
    Rename("ln_q.{p}", "layer_norm_q.{p}"),
    Rename("ln_k.{p}", "layer_norm_k.{p}"),
    SplitQKV("attn.in_proj_bias", "attention.{qkv}_proj.bias"),
    Rename("attn.out_proj.{p}", "attention.out_proj.{p}"),
)
POOLER_PACKED: Table = (SplitQKV("attn.in_proj_weight", "attention.{qkv}_proj.weight"),)
POOLER_UNPACKED: Table = tuple(Rename(f"attn.{x}_proj_weight", f"attention.{x}_proj.weight") for x in "qkv")

VIT: Table = (
    Rename("class_embedding", "embeddings.class_embedding"),
    Rename("conv1.weight", "embeddings.patch_embedding.weight"),
    Rename("positional_embedding", "embeddings.position_embedding"),
    Rename("ln_pre.{p}", "pre_layernorm.{p}"),
    *under("transformer.resblocks.{n}.", "encoder.layers.{n}.", ENCODER_LAYER),
    Rename("ln_post.{p}", "post_layernorm.{p}"),
    Transpose("proj", "projection.weight"),
)

TEXT: Table = (
    Rename("token_embedding.weight", "embeddings.token_embedding.weight"),
    Rename("positional_embedding", "embeddings.position_embedding.weight"),
    Rename("cls_emb", "embeddings.class_embedding"),
    *under("transformer.resblocks.{n}.", "encoder.layers.{n}.", ENCODER_LAYER),
    Rename("ln_final.{p}", "final_layer_norm.{p}"),
)
TEXT_PROJECTION: Table = (Transpose("text_projection", "projection.weight"),)
TEXT_PROJECTION_WITH_BIAS: Table = (Rename("text_projection.{p}", "projection.{p}"),)

COCA_DECODER: Table = (
    *under("resblocks.{n}.", "multimodal_decoder.layers.{n}.", ENCODER_LAYER),
    *under("cross_attn.{n}.", "multimodal_decoder.cross_attention_layers.{n}.", CROSS_ATTENTION_LAYER),
    Rename("ln_final.{p}", "multimodal_decoder.final_layer_norm.{p}"),
    Transpose("text_projection", "lm_head.weight"),
)

LOGITS: Table = (Rename("logit_scale", "logit_scale"), Rename("logit_bias", "logit_bias"))


def vit_table(config: PreTrainedConfig) -> Table:
    """Table of open_clip's `VisionTransformer`."""
    packed = config.hidden_size == config.projection_dim
    pooler = POOLER + (POOLER_PACKED if packed else POOLER_UNPACKED)
    poolers = [under(f"{name}.", f"{name}.", pooler) for name in ("attn_pool", "attn_pool_contrastive")]
    return sum(poolers, VIT)


def text_table(config: PreTrainedConfig) -> Table:
    """Table of open_clip's `TextTransformer`."""
    return TEXT + (TEXT_PROJECTION_WITH_BIAS if config.proj_bias else TEXT_PROJECTION)


VISION_TABLES: dict[str, Callable[[PreTrainedConfig], Table]] = {"open_clip_vit": vit_table}
TEXT_TABLES: dict[str, Callable[[PreTrainedConfig], Table]] = {"open_clip_text": text_table}


def rename_table(config: PreTrainedConfig, text_prefix: str = "text.") -> Table:
    """Rename table of a whole model.

    Args:
        config: configuration of a dual model or of CoCa.
        text_prefix: where the checkpoint keeps its text tower: `""` in open_clip's `CLIP`, `"text."` in its
            `CustomTextCLIP` and `CoCa`.
    """
    vision, text = config.vision_config, config.text_config
    table = (
        *under("visual.", "vision_model.", VISION_TABLES[vision.model_type](vision)),
        *under(text_prefix, "text_model.", TEXT_TABLES[text.model_type](text)),
        *LOGITS,
    )
    if "multimodal_config" in config.sub_configs:
        table += under("text_decoder.", "", COCA_DECODER)
    return table
