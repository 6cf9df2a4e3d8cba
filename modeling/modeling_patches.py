"""Patch by patch: what the vision transformer towers make of the places in an image, instead of the whole of it.

open_clip leaves this to the users of `VisionTransformer.forward_intermediates` (`transformer.py`).
"""

import math
from typing import Any

import torch

from ..configuration.configuration_common import height_and_width
from .image_chunks import images_of


# Fewer would make it felt that weights are laid out anew for each chunk.
CHUNK_TOKENS = 1024


class PatchTowerMixin:
    """A vision transformer whose patches, behind `num_prefix_tokens` others, are a grid of places in the image."""

    # Of the class that the mixin stands before.
    config: Any
    dtype: Any
    embeddings: Any
    pre_layernorm: Any
    encoder: Any
    projection: Any

    num_prefix_tokens = 1

    def patch_grid(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        """Rows and columns of the patches of `pixel_values`, (batch, channels, height, width)."""
        height, width = height_and_width(self.config.patch_size)
        return pixel_values.shape[-2] // height, pixel_values.shape[-1] // width

    def images_per_chunk(self, pixel_values: torch.Tensor) -> int:
        """How many images have an MLP's activations that are small enough."""
        rows, columns = self.patch_grid(pixel_values)
        tokens = max(1, rows * columns)
        images = images_of(tokens * self.config.intermediate_size * self.dtype.itemsize)
        return max(images, math.ceil(CHUNK_TOKENS / tokens))

    def embed(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """Pixels -> what goes into the first layer, (batch, tokens, hidden_size); no patch is dropped in training."""
        return self.pre_layernorm(self.embeddings(pixel_values, interpolate_pos_encoding))

    def layer_kwargs(self) -> dict:
        """Keyword arguments of the layers."""
        return {}

    def pool_each(self, patches: torch.Tensor) -> torch.Tensor:
        """What pooling and the last layer norm make of each patch alone.

        Args:
            patches: (batch, patches, hidden_size), from the last layer.

        Returns:
            (batch, patches, what the projection takes).
        """
        raise NotImplementedError

    def get_patch_features(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, last_attention: bool = True
    ) -> torch.Tensor:
        """Embeds each patch of images in the space that images and texts share; see [`OpenClipModel`]'s method."""
        hidden_states, kwargs = self.embed(pixel_values, interpolate_pos_encoding), self.layer_kwargs()
        *layers, last_layer = self.encoder.layers
        for layer in layers:
            hidden_states = layer(hidden_states, **kwargs)
        if last_attention:
            patches = last_layer(hidden_states, **kwargs)[:, self.num_prefix_tokens :]
        else:
            patches = hidden_states[:, self.num_prefix_tokens :]
            # A token that is alone in its row can attend to nothing but itself.
            patches = last_layer(patches.flatten(0, 1).unsqueeze(1), **kwargs).view(patches.shape)
        return self.projection(self.pool_each(patches)).unflatten(1, self.patch_grid(pixel_values))


__all__ = ["PatchTowerMixin"]
