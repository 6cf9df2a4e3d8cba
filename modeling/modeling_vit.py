"""Vision transformer tower (open_clip: `VisionTransformer` in `transformer.py`)."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..configuration.configuration_common import height_and_width
from ..configuration.configuration_vit import OpenClipVitConfig
from .modeling_backbones import PatchTowerMixin, TransformerBackbone
from .modeling_layers import AttentionalPooler, Encoder, PatchDropout, norm_layer
from .modeling_pretrained import OpenClipVisionTower, check_pixel_values


def sin_cos_position_embedding(hidden_size: int, grid_size: int) -> torch.Tensor:
    """Fixed table of a square grid behind a zero row for the class token (open_clip: `get_2d_sincos_pos_embed`).

    Returns:
        (1 + grid_size ** 2, hidden_size), fp32, computed in fp64 as in open_clip.
    """
    frequencies = 10000.0 ** -(np.arange(hidden_size // 4, dtype=np.float64) / (hidden_size / 4))
    angles = np.outer(np.arange(grid_size, dtype=np.float64), frequencies)
    waves = torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], axis=1))
    # open_clip encodes the column in the first half of the features and the row in the second.
    columns = waves.expand(grid_size, -1, -1)
    rows = waves.unsqueeze(1).expand(-1, grid_size, -1)
    table = torch.cat([columns, rows], dim=-1).flatten(0, 1)
    return torch.cat([table.new_zeros(1, hidden_size), table]).float()


def resize_position_embedding(
    position_embedding: torch.Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> torch.Tensor:
    """Resize a table to another grid, the class token apart (open_clip: `resize_pos_embed`: bicubic, antialias).

    Args:
        position_embedding: (1 + rows * columns of `old_grid`, hidden_size).

    Returns:
        (1 + rows * columns of `new_grid`, hidden_size), in the same dtype.
    """
    class_row, patches = position_embedding[:1], position_embedding[1:]
    patches = patches.float().unflatten(0, old_grid).permute(2, 0, 1).unsqueeze(0)
    patches = F.interpolate(patches, size=new_grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([class_row, patches[0].flatten(1).T.to(class_row.dtype)])


class OpenClipVitEmbeddings(nn.Module):
    """Patches and a class token, with positions."""

    def __init__(self, config: OpenClipVitConfig):
        super().__init__()
        self.config = config
        patch_size = height_and_width(config.patch_size)
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=patch_size, stride=patch_size, bias=False
        )
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        num_positions = 1 + config.grid_size[0] * config.grid_size[1]
        position_embedding = torch.empty(num_positions, config.hidden_size)
        if config.position_embedding_type == "learnable":
            self.position_embedding = nn.Parameter(position_embedding)
        else:
            # Not a parameter without gradient, as in open_clip: `from_pretrained` would give it one.
            self.register_buffer("position_embedding", position_embedding.copy_(self._sin_cos_table()))

    def initialize(self, std: float):
        init.normal_(self.class_embedding, std=self.config.hidden_size**-0.5)
        if self.config.position_embedding_type == "learnable":
            init.normal_(self.position_embedding, std=self.config.hidden_size**-0.5)
        else:
            init.copy_(self.position_embedding, self._sin_cos_table())

    def _sin_cos_table(self) -> torch.Tensor:
        return sin_cos_position_embedding(self.config.hidden_size, self.config.grid_size[0])

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """(batch, channels, height, width) -> (batch, 1 + patches, hidden_size).

        Raises:
            ValueError: the shape is not the model's; other sizes are taken with `interpolate_pos_encoding`.
        """
        check_pixel_values(
            pixel_values, self.config.num_channels, self.config.image_size, any_size=interpolate_pos_encoding
        )
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        position_embedding = self.position_embedding
        if interpolate_pos_encoding and tuple(patches.shape[-2:]) != self.config.grid_size:
            position_embedding = resize_position_embedding(
                position_embedding, self.config.grid_size, tuple(patches.shape[-2:])
            )
        class_token = self.class_embedding.expand(patches.shape[0], 1, -1)
        return torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1) + position_embedding


class OpenClipVitModel(PatchTowerMixin, OpenClipVisionTower):
    """The vision transformer of CLIP and CoCa (https://arxiv.org/abs/2103.00020, https://arxiv.org/abs/2205.01917).

    Reads as four steps: embed, encode, pool, project. Keys of open_clip's `visual.`, with separate attention
    projections.
    """

    config: OpenClipVitConfig
    _input_embed_layer = "patch_embedding"
    _no_split_modules = [*OpenClipVisionTower._no_split_modules, OpenClipVitEmbeddings.__name__]

    def __init__(self, config: OpenClipVitConfig):
        super().__init__(config)
        self.embeddings = OpenClipVitEmbeddings(config)
        self.patch_dropout = PatchDropout(config.patch_dropout) if config.patch_dropout else nn.Identity()
        self.pre_layernorm = norm_layer(config, config.hidden_size) if config.use_pre_layer_norm else nn.Identity()
        self.encoder = Encoder(config, is_causal=False)
        self.attn_pool = self.attn_pool_contrastive = None
        if config.attentional_pool:
            self.attn_pool = AttentionalPooler(config, config.attn_pooler_queries, config.hidden_size)
        if config.has_two_poolers:
            pooled_dim = config.hidden_size if config.attentional_pool == "parallel" else config.token_dim
            self.attn_pool_contrastive = AttentionalPooler(config, 1, pooled_dim)
        self.post_layernorm = norm_layer(config, config.hidden_size if config.has_two_poolers else config.token_dim)
        if config.use_projection:
            self.projection = nn.Linear(config.token_dim, config.projection_dim, bias=False)
        else:
            self.projection = nn.Identity()
        self.post_init()

    def _pool_tokens(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.config.pool_type == "none":
            return tokens, tokens
        if self.config.pool_type == "avg_all":
            return tokens.mean(dim=1), tokens
        pooled = tokens[:, 0] if self.config.pool_type == "tok" else tokens[:, 1:].mean(dim=1)
        return pooled, tokens[:, 1:]

    def pool(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, 1 + patches, hidden_size) -> what is projected (batch, token_dim), and the tokens left.

        With `pool_type="none"` all tokens are projected.
        """
        if self.attn_pool_contrastive is not None:
            hidden_states = self.post_layernorm(hidden_states)
            tokens = self.attn_pool(hidden_states)
            attended = hidden_states if self.config.attentional_pool == "parallel" else tokens
            return self.attn_pool_contrastive(attended)[:, 0], tokens
        if self.attn_pool is not None:
            return self._pool_tokens(self.post_layernorm(self.attn_pool(hidden_states)))
        if self.config.final_ln_after_pool:
            pooled, tokens = self._pool_tokens(hidden_states)
            return self.post_layernorm(pooled), tokens
        return self._pool_tokens(self.post_layernorm(hidden_states))

    def pool_patches(self, patches: torch.Tensor) -> torch.Tensor:
        if self.attn_pool is None:
            return self.post_layernorm(patches)
        if self.attn_pool_contrastive is None:
            return self.post_layernorm(self.attn_pool.pool_patches(patches))
        patches = self.post_layernorm(patches)
        if self.config.attentional_pool == "cascade":
            patches = self.attn_pool.pool_patches(patches)
        return self.attn_pool_contrastive.pool_patches(patches)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode images, see [`OpenClipVisionTower`]: the tokens are patches, or those of the attentional pooler."""
        self.check_kwargs(kwargs)
        hidden_states = self.embeddings(pixel_values, interpolate_pos_encoding)
        hidden_states = self.pre_layernorm(self.patch_dropout(hidden_states))
        hidden_states = self.encoder(hidden_states, **kwargs)
        pooled, tokens = self.pool(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=self.projection(pooled))


class OpenClipVitBackbone(TransformerBackbone, OpenClipVitModel):
    """The feature maps of [`OpenClipVitModel`] (open_clip: `VisionTransformer.forward_intermediates`)."""

    head_behind_norm = ("attn_pool", "attn_pool_contrastive", "projection")


__all__ = ["OpenClipVitBackbone", "OpenClipVitModel"]
