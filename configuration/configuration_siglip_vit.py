"""Configuration of the SigLIP vision transformer tower (timm: `VisionTransformer` in `vision_transformer.py`, which
open_clip's `TimmModel` in `timm_model.py` wraps; DeepSeek-VL2: `siglip_vit.py`)."""

from .configuration_backbones import TransformerBackboneConfig
from .configuration_common import (
    OpenClipTransformerConfig,
    check_activation,
    check_choice,
    check_patches,
    height_and_width,
    strict,
)


_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}

# DeepSeek-VL2's names -> sizes.
DEEPSEEK_VL2_SIZES = {
    "siglip_so400m_patch14_384": {**_SO400M, "patch_size": 14, "image_size": 384},
    "siglip_so400m_patch14_224": {**_SO400M, "patch_size": 14, "image_size": 224},
    "siglip_large_patch16_384": {**_LARGE, "patch_size": 16, "image_size": 384},
}
# What its three models have in common: tanh everywhere but in the pooler, and features instead of a pooled vector.
_DEEPSEEK_VL2 = {"hidden_act": "gelu_pytorch_tanh", "pooler_hidden_act": "gelu", "ignore_head": True}


@strict
class SiglipVitConfig(TransformerBackboneConfig, OpenClipTransformerConfig):
    r"""Configuration of [`SiglipVitModel`], the vision transformer of SigLIP (https://arxiv.org/abs/2303.15343,
    https://arxiv.org/abs/2502.14786) and of DeepSeek-VL2 (https://arxiv.org/abs/2412.10302).

    Takes the fields of [`OpenClipTransformerConfig`], of [`TransformerBackboneConfig`] and these. The defaults are
    those of timm's `vit_base_patch16_siglip_224`; `from_name` has DeepSeek-VL2's.

    Args:
        num_channels: channels of `pixel_values`; timm: `in_chans`.
        image_size: height and width in pixels, one number for a square; timm: `img_size`.
        patch_size: height and width of a patch in pixels, one number for a square.
        projection_dim: width of the embedding shared with the text tower, by default `hidden_size`; open_clip:
            `embed_dim`.
        proj_type: `"none"`, `"linear"`, or `"mlp"` for two layers with twice `projection_dim` between them;
            open_clip: `timm_proj`.
        proj_bias: bias of the projection's last layer; open_clip: `timm_proj_bias`.
        use_class_token: a learned token before the patches; timm: `class_token`.
        num_register_tokens: learned tokens behind the class token (https://arxiv.org/abs/2309.16588); timm:
            `reg_tokens`.
        no_embed_class: class and register tokens have no position embedding; timm: the same name.
        use_pre_layer_norm: layer norm between embeddings and encoder, and no bias in the patch embedding; timm:
            `pre_norm`.
        block_type: what the layer norms are applied to: `"pre_norm"` the input of each residual branch, `"post_norm"`
            the sum of input and branch (https://arxiv.org/abs/1706.03762), `"res_post_norm"` the branch's output
            (https://arxiv.org/abs/2111.09883), which has no LayerScale but norms that start from
            `layer_scale_init_value`. timm: `block_fn`, `Block` or for the last `ResPostBlock`.
        qkv_bias: bias of the queries, keys and values; timm: the same name.
        qk_norm: layer norm on queries and keys, per head (https://arxiv.org/abs/2302.05442); timm: the same name.
        pool_type: `"map"` (attention pooling by a learned query, https://arxiv.org/abs/2106.04560), `"avg"` (mean of
            the patches), `"token"` (class token) or `"none"` (every token is projected); timm: `global_pool`.
        pool_include_prefix: `"map"` and `"avg"` pool over class and register tokens too; timm: the same name.
        use_fc_norm: the last layer norm comes behind pooling instead of before it, by default with `"avg"`; timm:
            `fc_norm`.
        pooler_hidden_act: activation in the MLP of `"map"` pooling, by default `hidden_act`.
        dynamic_image_size: accept every image size that is a multiple of `patch_size`, resizing the position
            embeddings; timm: `dynamic_img_size`.
        dynamic_image_padding: accept every image size: images are padded with zeros, right and below, to whole
            patches; timm: `dynamic_img_pad`.
        embedding_dropout: dropout probability behind the embeddings in training, in [0, 1); timm: `pos_drop_rate`.
        hidden_dropout: the same within each residual branch; timm: `proj_drop_rate`.
        projection_dropout: the same before the projection; timm: `drop_rate`, open_clip: `timm_drop`.
        patch_dropout: share of the patches dropped in training, in [0, 1) (https://arxiv.org/abs/2212.00794); timm:
            `patch_drop_rate`.
        select_layer: the layer whose output is used, and the last one that the model has: a number counts from the
            first, and -1, -2 ... from the last; -1 and 0 keep all. DeepSeek-VL2: the same name.
        ignore_head: neither pool nor project, so that `pooler_output` is `None`; DeepSeek-VL2: the same name.
        num_recomputing_layers: with gradient checkpointing, recompute the first so many layers only; `None` for all
            of them. DeepSeek-VL2: the same name.
        deterministic: attention gives the same gradients on every run: FlashAttention in its deterministic form,
            `sdpa` by its slower math kernel, which keeps all attention weights in memory. DeepSeek-VL2: the same name.
    """

    model_type = "open_clip_siglip_vit"
    base_config_key = "vision_config"

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12
    layer_norm_eps: float = 1e-6
    num_channels: int = 3
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    projection_dim: int | None = None
    proj_type: str = "none"
    proj_bias: bool = False
    use_class_token: bool = False
    num_register_tokens: int = 0
    no_embed_class: bool = False
    use_pre_layer_norm: bool = False
    block_type: str = "pre_norm"
    qkv_bias: bool = True
    qk_norm: bool = False
    pool_type: str = "map"
    pool_include_prefix: bool = False
    use_fc_norm: bool | None = None
    pooler_hidden_act: str | None = None
    dynamic_image_size: bool = False
    dynamic_image_padding: bool = False
    embedding_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    projection_dropout: float | int = 0.0
    patch_dropout: float | int = 0.0
    select_layer: int = -1
    ignore_head: bool = False
    num_recomputing_layers: int | None = None
    deterministic: bool = False

    def __post_init__(self, **kwargs):
        if self.projection_dim is None:
            self.projection_dim = self.hidden_size
        if self.use_fc_norm is None:
            self.use_fc_norm = self.pool_type == "avg"
        if self.pooler_hidden_act is None:
            self.pooler_hidden_act = self.hidden_act
        super().__post_init__(**kwargs)

    @classmethod
    def from_name(cls, name: str, **fields) -> "SiglipVitConfig":
        """The configuration of one of DeepSeek-VL2's vision towers (DeepSeek-VL2: `create_siglip_vit`).

        As there, the model gives features: pass `ignore_head=False` for the pooled vector.

        Args:
            name: `"siglip_so400m_patch14_384"`, `"siglip_so400m_patch14_224"` or `"siglip_large_patch16_384"`.
            fields: fields that are to differ.

        Raises:
            ValueError: there is no such name.
        """
        if name not in DEEPSEEK_VL2_SIZES:
            raise ValueError(f"SiglipVitConfig: name must be one of {', '.join(DEEPSEEK_VL2_SIZES)}, got {name!r}.")
        return cls(**{**_DEEPSEEK_VL2, **DEEPSEEK_VL2_SIZES[name], **fields})

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches along the height and the width of the image."""
        image, patch = height_and_width(self.image_size), height_and_width(self.patch_size)
        return image[0] // patch[0], image[1] // patch[1]

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches."""
        return self.use_class_token + self.num_register_tokens

    @property
    def num_selected_layers(self) -> int:
        """Layers that the model has."""
        selected = self.select_layer if self.select_layer > 0 else self.num_hidden_layers + self.select_layer + 1
        return min(self.num_hidden_layers, selected)

    @property
    def num_stages(self) -> int:
        return self.num_selected_layers

    @property
    def token_dim(self) -> int:
        """Width of the tower's `last_hidden_state`."""
        return self.hidden_size

    def validate_architecture(self):
        super().validate_architecture()
        check_choice(self, "proj_type", ("none", "linear", "mlp"))
        check_choice(self, "block_type", ("pre_norm", "post_norm", "res_post_norm"))
        check_activation(self, "pooler_hidden_act")
        check_choice(self, "pool_type", ("map", "avg", "token", "none"))
        check_patches(self)
        if self.proj_type == "none" and self.projection_dim != self.hidden_size:
            raise ValueError(
                f"SiglipVitConfig: without a projection, projection_dim ({self.projection_dim}) must equal "
                f'hidden_size ({self.hidden_size}); set proj_type="linear" for another.'
            )
        if self.pool_type == "token" and not self.use_class_token:
            raise ValueError('SiglipVitConfig: pool_type="token" needs use_class_token=True.')
        if self.dynamic_image_padding and not self.dynamic_image_size:
            raise ValueError("SiglipVitConfig: dynamic_image_padding needs dynamic_image_size=True.")
        if self.num_selected_layers < 1:
            raise ValueError(
                f"SiglipVitConfig: select_layer {self.select_layer} leaves none of {self.num_hidden_layers} layers."
            )


__all__ = ["SiglipVitConfig"]
