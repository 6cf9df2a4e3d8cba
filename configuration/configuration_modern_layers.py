"""Fields of the layers that modern text towers and captioners' modern decoders share (open_clip 4: `CLIPTextCfg`)."""

from .configuration_common import OpenClipTransformerConfig, check_choice, strict


@strict
class ModernAttentionConfig(OpenClipTransformerConfig):
    r"""Fields of attention in modern layers (open_clip: `ModernTextAttention`, `ModernTextCrossAttention`).

    Takes the fields of [`OpenClipTransformerConfig`] and these.

    Args:
        norm_layer: kind of all norms; open_clip: `norm_type`.
        layer_norm_eps: epsilon of all norms; open_clip: `norm_eps`.
        use_post_norm: a norm on the output of attention and MLP, too; open_clip: `norm_placement="sandwich"`.
        qk_norm: a norm on queries and keys, per head.
        use_attention_gate: the input of the attention gates its output, by a sigmoid; open_clip: `attn_gated`.
        attention_bias: whether the projections of attention have biases.
        gate_bias: whether the attention gates have biases.
    """

    norm_layer: str = "rms_norm"
    layer_norm_eps: float = 1e-6
    use_post_norm: bool = False
    qk_norm: bool = False
    use_attention_gate: bool = True
    attention_bias: bool = False
    gate_bias: bool = False

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads


@strict
class ModernLayersConfig(ModernAttentionConfig):
    r"""Fields of a stack of modern layers (open_clip: `ModernTextBlock`).

    Takes the fields of [`ModernAttentionConfig`] and these.

    Args:
        position_embedding_type: `"rope"` (https://arxiv.org/abs/2104.09864) or `"none"`; open_clip: `pos_embed`.
        rope_theta: base of the wavelengths; open_clip: `rope_temperature`.
        hidden_act: activation of the MLP, such as `"silu"`, `"gelu"` or `"relu2"` (https://arxiv.org/abs/2109.08668).
        use_gated_mlp: the activation gates a second projection, which with `"silu"` is SwiGLU
            (https://arxiv.org/abs/2002.05202). open_clip: `mlp_type`, for both.
        mlp_bias: whether the MLP has biases.
        use_value_residual: values are mixed with those of the first layer, by a learned weight per layer
            (https://arxiv.org/abs/2410.17897); open_clip: `value_residual`.
    """

    intermediate_size: int = 1365
    position_embedding_type: str = "rope"
    rope_theta: float | int = 10000.0
    hidden_act: str = "silu"
    use_gated_mlp: bool = True
    mlp_bias: bool = False
    use_value_residual: bool = False

    def validate_architecture(self):
        super().validate_architecture()
        check_choice(self, "position_embedding_type", ("rope", "none"))
        if self.position_embedding_type == "rope" and self.head_dim % 2:
            raise ValueError(
                f"{type(self).__name__}: with position_embedding_type='rope', heads must be of an even width, got "
                f"{self.head_dim} (hidden_size / num_attention_heads)."
            )
