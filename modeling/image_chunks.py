"""Large batches of images some at a time, for inference on a CPU, where large activations take longer."""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from transformers.modeling_outputs import ModelOutput

from .linear_kernels import takes_kernels
from .module_hooks import is_watched


# Larger ones are given back to the system behind each layer (by glibc, from 32 MiB on always), which clears the memory
# before it hands it out again: a third of the time of an RN50 on 32 images, a quarter of a ViT-L-14's.
CHUNK_BYTES = 10e6


def images_of(bytes_per_image: int) -> int:
    """How many images have an activation that is small enough; one at least."""
    return max(1, int(CHUNK_BYTES // max(1, bytes_per_image)))


def concatenate(outputs: list) -> Any:
    """Outputs of some images each -> of all of them; every tensor has the images first."""
    first = outputs[0]
    if first is None:
        return None
    if isinstance(first, torch.Tensor):
        return torch.cat(outputs)
    if isinstance(first, ModelOutput):
        return type(first)(**{name: concatenate([each[name] for each in outputs]) for name in first})
    return tuple(concatenate(list(each)) for each in zip(*outputs, strict=True))


def in_chunks(forward: Callable) -> Callable:
    """Decorator of an image tower's `forward`: so many images at a time as its `images_per_chunk` says.

    Nothing else changes: in inference the outputs of an image do not depend on the other ones.
    """

    @wraps(forward)
    def forward_in_chunks(self: Any, pixel_values: torch.Tensor, *args, **kwargs):
        # What is no batch of images is for `forward` to refuse.
        if (
            isinstance(pixel_values, torch.Tensor)
            and pixel_values.ndim == 4
            and pixel_values.is_cpu
            and not self.training
            and not torch.compiler.is_compiling()
            and takes_kernels(pixel_values)
        ):
            size = self.images_per_chunk(pixel_values)
            inner = (module for module in self.modules() if module is not self)
            if size < len(pixel_values) and self.device.type == "cpu" and not any(map(is_watched, inner)):
                chunks = pixel_values.tensor_split(math.ceil(len(pixel_values) / size))
                return concatenate([forward(self, chunk, *args, **kwargs) for chunk in chunks])
        return forward(self, pixel_values, *args, **kwargs)

    return forward_in_chunks
