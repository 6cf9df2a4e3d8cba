"""Configuration of the modern text tower (open_clip 4: `ModernTextTransformer` in `transformer.py`)."""

from .configuration_common import OpenClipTransformerConfig, check_choice, strict


@strict
class ModernTextConfig(OpenClipTransformerConfig):
    r"""Configuration of [`ModernTextModel`], a text transformer with the layers of today's language models.

    Takes the fields of [`OpenClipTransformerConfig`] and these. The defaults are those of open_clip's
    `moderntext-ViT-B-32-256`.

    Args:
        vocab_size: number of token ids.
        max_position_embeddings: longest text in tokens, registers not counted; open_clip: `context_length`.
        projection_dim: width of the embedding shared with the vision tower; open_clip: `embed_dim`.
        proj_type: `"linear"`, or `"none"` for an embedding of width `hidden_size`.
        proj_bias: whether the projection has a bias.
        is_causal: each token sees itself and those before it, else all of the text; open_clip: `attention_mode`.
        position_embedding_type: `"rope"` (https://arxiv.org/abs/2104.09864) or `"none"`; open_clip: `pos_embed`.
        rope_theta: base of the wavelengths; open_clip: `rope_temperature`.
        hidden_act: activation of the MLP, such as `"silu"`, `"gelu"` or `"relu2"` (https://arxiv.org/abs/2109.08668).
        use_gated_mlp: the activation gates a second projection, which with `"silu"` is SwiGLU
            (https://arxiv.org/abs/2002.05202). open_clip: `mlp_type`, for both.
        norm_layer: kind of all norms; open_clip: `norm_type`.
        layer_norm_eps: epsilon of all norms; open_clip: `norm_eps`.
        use_embedding_norm: a norm between embeddings and encoder; open_clip: `pre_norm`.
        use_post_norm: a norm on the output of attention and MLP, too; open_clip: `norm_placement="sandwich"`.
        qk_norm: a norm on queries and keys, per head.
        use_attention_gate: the input of the attention gates its output, by a sigmoid; open_clip: `attn_gated`.
        use_value_residual: values are mixed with those of the first layer, by a learned weight per layer
            (https://arxiv.org/abs/2410.17897); open_clip: `value_residual`.
        attention_bias: whether the projections of attention and `"map"` pooling have biases.
        gate_bias: whether the attention gates have biases.
        mlp_bias: whether the MLP has biases.
        num_register_tokens: learned tokens in front of the text, which are not pooled; open_clip: `reg_tokens`.
        pool_type: `"eos"` (first `eos_token_id`, or the last token of a text without), `"mean"` of the tokens, or
            `"map"` (attention of a learned query to them); padding left out.
        freeze_pad_embedding: padding has an embedding of zeros that is not trained; open_clip: `freeze_pad_embed`.
        pad_token_id: id of padding; open_clip: `pad_id`.
        bos_token_id: id of the start of a text; open_clip: `bos_id`.
        eos_token_id: id of the end of a text; open_clip: `eos_id`.
    """

    model_type = "open_clip_modern_text"
    base_config_key = "text_config"

    vocab_size: int = 50260
    max_position_embeddings: int = 256
    intermediate_size: int = 1365
    projection_dim: int = 512
    proj_type: str = "linear"
    proj_bias: bool = False
    is_causal: bool = True
    position_embedding_type: str = "rope"
    rope_theta: float | int = 10000.0
    hidden_act: str = "silu"
    use_gated_mlp: bool = True
    norm_layer: str = "rms_norm"
    layer_norm_eps: float = 1e-6
    use_embedding_norm: bool = False
    use_post_norm: bool = False
    qk_norm: bool = False
    use_attention_gate: bool = True
    use_value_residual: bool = False
    attention_bias: bool = False
    gate_bias: bool = False
    mlp_bias: bool = False
    num_register_tokens: int = 0
    pool_type: str = "eos"
    freeze_pad_embedding: bool = True
    pad_token_id: int | None = 50258
    bos_token_id: int | None = 50259
    eos_token_id: int | list[int] | None = 50257

    @property
    def token_dim(self) -> int:
        """Width of the tower's `last_hidden_state`."""
        return self.hidden_size

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads

    def validate_architecture(self):
        super().validate_architecture()
        check_choice(self, "position_embedding_type", ("rope", "none"))
        check_choice(self, "pool_type", ("eos", "mean", "map"))
        check_choice(self, "proj_type", ("linear", "none"))
        if self.position_embedding_type == "rope" and self.head_dim % 2:
            raise ValueError(
                f"ModernTextConfig: with position_embedding_type='rope', heads must be of an even width, got "
                f"{self.head_dim} (hidden_size / num_attention_heads)."
            )
        if self.pool_type == "eos" and not isinstance(self.eos_token_id, int):
            raise ValueError(f"ModernTextConfig: pool_type='eos' needs one eos_token_id, got {self.eos_token_id}.")
        if self.proj_type == "none" and self.projection_dim != self.hidden_size:
            raise ValueError(
                f"ModernTextConfig: without a projection, projection_dim ({self.projection_dim}) must equal "
                f"hidden_size ({self.hidden_size})."
            )


__all__ = ["ModernTextConfig"]
