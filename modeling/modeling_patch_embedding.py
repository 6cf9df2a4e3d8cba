"""The convolution that makes one embedding of each patch of an image."""

import torch
from torch import nn

from .modeling_linear import has_kernel, kernel


class PatchConv2d(nn.Conv2d):
    """`nn.Conv2d` whose stride is its kernel: for inference on x86 processors one linear layer, which is faster."""

    def __init__(self, num_channels: int, hidden_size: int, patch_size: tuple[int, int], bias: bool):
        super().__init__(num_channels, hidden_size, kernel_size=patch_size, stride=patch_size, bias=bias)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) -> (batch, hidden_size, rows, columns); pixels beyond them are left out."""
        weight = self.weight
        if not (has_kernel(pixel_values, weight) and weight.is_contiguous()):
            return super().forward(pixel_values)
        height, width = self.kernel_size
        grid = pixel_values.unfold(2, height, height).unfold(3, width, width)
        patches = grid.permute(0, 2, 3, 1, 4, 5).flatten(3)
        return kernel(patches, weight.flatten(1), self.bias).permute(0, 3, 1, 2)
