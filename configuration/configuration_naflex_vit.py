"""Configuration of the NaFlex vision transformer tower (timm: `NaFlexVit` in `naflexvit.py`, which open_clip's
`TimmModel` in `timm_model.py` wraps)."""

from .configuration_common import (
    MAX_PATCHES,
    OpenClipTransformerConfig,
    check_choice,
    height_and_width,
    strict,
)


@strict
class NaFlexVitConfig(OpenClipTransformerConfig):
    r"""Configuration of [`NaFlexVitModel`], a vision transformer for images of any size and aspect ratio.

    The model of SigLIP 2 NaFlex (https://arxiv.org/abs/2502.14786), after NaViT (https://arxiv.org/abs/2307.06304).
    Takes the fields of [`OpenClipTransformerConfig`] and these. The defaults are those of timm's
    `naflexvit_base_patch16_siglip`.

    Args:
        num_channels: channels of the images; timm: `in_chans`.
        patch_size: height and width of a patch in pixels, one number for a square; timm: the same name.
        max_num_patches: most patches that the image processor makes of an image; the model takes any number.
            open_clip: `image_seq_len`.
        image_size: height and width in pixels, one number for a square, of images that are given whole instead of as
            patches; open_clip: the same name.
        position_grid_size: rows and columns of the table of position embeddings, which is resized to the grid of each
            image; timm: `pos_embed_grid_size`.
        position_interpolation: filter of that resize, `"bilinear"` or `"bicubic"`, with antialiasing; timm:
            `pos_embed_interp_mode`.
        keep_position_aspect_ratio: resize the table to a square as long as the longer side of an image's grid, and
            take its upper left part; timm: `pos_embed_ar_preserving`.
        projection_dim: width of the embedding shared with the text tower, by default `hidden_size`; open_clip:
            `embed_dim`.
        proj_type: `"none"`, `"linear"`, or `"mlp"` for two layers with twice `projection_dim` between them;
            open_clip: `timm_proj`.
        proj_bias: bias of the projection's last layer; open_clip: `timm_proj_bias`.
        use_class_token: a learned token before the patches; timm: `class_token`.
        num_register_tokens: learned tokens behind the class token (https://arxiv.org/abs/2309.16588); timm:
            `reg_tokens`.
        block_type: MLP of the layers: `"mlp"`, two linear layers around `hidden_act`, or `"swiglu"`
            (https://arxiv.org/abs/2002.05202), where the keys of the attention have no bias; timm: `swiglu_mlp`.
        qkv_bias: bias of the queries, keys and values; timm: the same name.
        qk_norm: layer norm on queries and keys, per head (https://arxiv.org/abs/2302.05442); timm: the same name.
        pool_type: `"map"` (attention pooling by a learned query, https://arxiv.org/abs/2106.04560), `"avg"` (mean of
            the patches) or `"token"` (class token); timm: `global_pool`.
        pool_include_prefix: `"map"` and `"avg"` pool over class and register tokens too; timm: the same name.
        use_fc_norm: the last layer norm comes behind pooling instead of before it, by default with `"avg"`; timm:
            `fc_norm`.
        pooler_intermediate_size: width inside the MLP of `"map"` pooling, by default `intermediate_size`; timm:
            `int(embed_dim * attn_pool_mlp_ratio)`.
        embedding_dropout: dropout probability behind the embeddings in training, in [0, 1); timm: `pos_drop_rate`.
        hidden_dropout: the same within each residual branch; timm: `proj_drop_rate`.
        projection_dropout: the same before the projection; timm: `drop_rate`, open_clip: `timm_drop`.
        patch_dropout: share of the patches dropped in training, in [0, 1) (https://arxiv.org/abs/2212.00794); timm:
            `patch_drop_rate`.
    """

    model_type = "open_clip_naflex_vit"
    base_config_key = "vision_config"

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    num_channels: int = 3
    patch_size: int | list[int] | tuple[int, int] = 16
    max_num_patches: int = 1024
    image_size: int | list[int] | tuple[int, int] = 224
    position_grid_size: int | list[int] | tuple[int, int] = 16
    position_interpolation: str = "bilinear"
    keep_position_aspect_ratio: bool = False
    projection_dim: int | None = None
    proj_type: str = "none"
    proj_bias: bool = False
    use_class_token: bool = False
    num_register_tokens: int = 0
    block_type: str = "mlp"
    qkv_bias: bool = True
    qk_norm: bool = False
    pool_type: str = "map"
    pool_include_prefix: bool = False
    use_fc_norm: bool | None = None
    pooler_intermediate_size: int | None = None
    embedding_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    projection_dropout: float | int = 0.0
    patch_dropout: float | int = 0.0

    def __post_init__(self, **kwargs):
        if self.projection_dim is None:
            self.projection_dim = self.hidden_size
        if self.use_fc_norm is None:
            self.use_fc_norm = self.pool_type == "avg"
        if self.pooler_intermediate_size is None:
            self.pooler_intermediate_size = self.intermediate_size
        super().__post_init__(**kwargs)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches."""
        return self.use_class_token + self.num_register_tokens

    @property
    def token_dim(self) -> int:
        """Width of the tower's `last_hidden_state`."""
        return self.hidden_size

    def validate_architecture(self):
        super().validate_architecture()
        check_choice(self, "proj_type", ("none", "linear", "mlp"))
        check_choice(self, "block_type", ("mlp", "swiglu"))
        check_choice(self, "pool_type", ("map", "avg", "token"))
        check_choice(self, "position_interpolation", ("bilinear", "bicubic"))
        for name in ("image_size", "patch_size", "position_grid_size"):
            size = getattr(self, name)
            if not isinstance(size, int) and len(size) != 2:
                raise ValueError(f"NaFlexVitConfig: {name} must be one number or [height, width], got {size}.")
        rows, columns = height_and_width(self.position_grid_size)
        if rows * columns > MAX_PATCHES:
            raise ValueError(
                f"NaFlexVitConfig: position_grid_size {self.position_grid_size} has more than {MAX_PATCHES} positions."
            )
        if self.proj_type == "none" and self.projection_dim != self.hidden_size:
            raise ValueError(
                f"NaFlexVitConfig: without a projection, projection_dim ({self.projection_dim}) must equal "
                f'hidden_size ({self.hidden_size}); set proj_type="linear" for another.'
            )
        if self.pool_type == "token" and not self.use_class_token:
            raise ValueError('NaFlexVitConfig: pool_type="token" needs use_class_token=True.')


__all__ = ["NaFlexVitConfig"]
