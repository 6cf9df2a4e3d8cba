"""Configuration of the vision transformer tower (open_clip: `VisionTransformer` in `transformer.py`)."""

from .configuration_backbones import TransformerBackboneConfig
from .configuration_common import OpenClipTowerConfig, check_choice, check_patches, height_and_width, strict


@strict
class OpenClipVitConfig(TransformerBackboneConfig, OpenClipTowerConfig):
    r"""Configuration of [`OpenClipVitModel`], the vision transformer of https://arxiv.org/abs/2103.00020.

    Takes the fields of [`OpenClipTowerConfig`], of [`TransformerBackboneConfig`] and these. The defaults are those of
    open_clip's `ViT-B-32`.

    Args:
        num_channels: channels of `pixel_values`; open_clip always has 3.
        image_size: height and width in pixels, one number for a square.
        patch_size: height and width of a patch in pixels, one number for a square.
        projection_dim: width of the embedding shared with the text tower; open_clip: `embed_dim`.
        patch_dropout: share of the patches dropped in training, in [0, 1) (https://arxiv.org/abs/2212.00794).
        use_pre_layer_norm: layer norm between embeddings and encoder; open_clip: `not no_ln_pre`.
        position_embedding_type: `"learnable"`, or `"sin_cos_2d"` for a fixed table (square grids only); open_clip:
            `pos_embed_type`.
        pool_type: `"tok"` (class token), `"avg"` (mean of the patches), `"avg_all"` (mean of the patches and the class
            token, which then counts among the tokens that are left) or `"none"` (every token is projected).
        final_ln_after_pool: pool, then normalise, instead of the other way round; no effect with attentional pooling.
        attentional_pool: `False`; `True` for one pooler whose tokens are pooled by `pool_type`; `"parallel"` or
            `"cascade"` for a caption pooler with a contrastive pooler beside or behind it, as in
            https://arxiv.org/abs/2205.01917. Then the layer norm in front of the poolers is as wide as `hidden_size`.
        use_projection: `False` leaves out the projection behind `"parallel"` and `"cascade"` poolers, which project
            themselves, as in open_clip 4. open_clip 3 has it there, too.
        attn_pooler_queries: learned queries of the attentional pooler.
        attn_pooler_heads: attention heads of the attentional poolers, divides `projection_dim`.
    """

    model_type = "open_clip_vit"
    base_config_key = "vision_config"

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 32
    projection_dim: int = 512
    patch_dropout: float | int = 0.0
    use_pre_layer_norm: bool = True
    position_embedding_type: str = "learnable"
    pool_type: str = "tok"
    final_ln_after_pool: bool = False
    attentional_pool: bool | str = False
    use_projection: bool = True
    attn_pooler_queries: int = 256
    attn_pooler_heads: int = 8

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches along the height and the width of the image."""
        image, patch = height_and_width(self.image_size), height_and_width(self.patch_size)
        return image[0] // patch[0], image[1] // patch[1]

    @property
    def has_two_poolers(self) -> bool:
        """Whether captions and embeddings have an attentional pooler each."""
        return self.attentional_pool in ("parallel", "cascade")

    @property
    def token_dim(self) -> int:
        """Width of the tower's `last_hidden_state`."""
        return self.projection_dim if self.attentional_pool else self.hidden_size

    def validate_architecture(self):
        super().validate_architecture()
        check_choice(self, "position_embedding_type", ("learnable", "sin_cos_2d"))
        check_choice(self, "pool_type", ("tok", "avg", "avg_all", "none"))
        check_choice(self, "attentional_pool", (False, True, "parallel", "cascade"))
        check_patches(self)
        if self.attentional_pool and self.projection_dim % self.attn_pooler_heads:
            raise ValueError(
                f"OpenClipVitConfig: projection_dim ({self.projection_dim}) must be a multiple of attn_pooler_heads "
                f"({self.attn_pooler_heads})."
            )
        # open_clip 3 applies a norm as wide as the embedding to the encoder's output there.
        if self.has_two_poolers and self.use_projection and self.hidden_size != self.projection_dim:
            raise ValueError(
                f"OpenClipVitConfig: attentional_pool={self.attentional_pool!r} needs hidden_size "
                f"({self.hidden_size}) to equal projection_dim ({self.projection_dim}), or use_projection=False."
            )
        if not self.use_projection and not self.has_two_poolers:
            raise ValueError(
                "OpenClipVitConfig: use_projection=False is for attentional_pool='parallel' or 'cascade', whose "
                f"poolers project themselves, got attentional_pool={self.attentional_pool!r}."
            )
        if self.position_embedding_type == "sin_cos_2d" and self.grid_size[0] != self.grid_size[1]:
            raise ValueError(f"OpenClipVitConfig: sin_cos_2d needs a square grid of patches, got {self.grid_size}.")
        if self.position_embedding_type == "sin_cos_2d" and self.hidden_size % 4:
            raise ValueError(
                f"OpenClipVitConfig: sin_cos_2d needs a hidden_size that is a multiple of 4, got {self.hidden_size}."
            )


__all__ = ["OpenClipVitConfig"]
