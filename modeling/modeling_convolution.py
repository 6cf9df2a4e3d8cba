"""Convolutions with a batch norm behind them, and their fusion on demand."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .fusible import FusibleMixin, note_copied
from .linear_kernels import ONEDNN_DTYPES, fingerprint, takes_kernels
from .module_hooks import is_watched


class Convolution(nn.Conv2d):
    """Convolution without bias that keeps the size at stride 1, with torch's own initial values, as in open_clip."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)

    def initialize(self, std: float):
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm that counts each batch once, also where gradient checkpointing computes a layer twice."""

    is_recomputed = False

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not (self.training and self.is_recomputed):
            return super().forward(hidden_states)
        statistics = (self.running_mean, self.running_var)
        return F.batch_norm(hidden_states, *statistics, self.weight, self.bias, True, momentum=0.0, eps=self.eps)


class FusedConvolution:
    """A convolution with the scale and shift of the batch norm behind it in copies of its weights: one for single
    images and one for several, made when they are needed."""

    def __init__(self, convolution: Convolution, normalization: BatchNorm2d):
        self.layers = (convolution, normalization)
        self.geometry = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
        # Kept so that no others come to lie where they do.
        self.originals = [tensor.detach() for tensor in self._tensors()]
        self.fingerprint = fingerprint(self.originals, ())
        self.scale = normalization.weight.float() * (normalization.running_var.float() + normalization.eps).rsqrt()
        bias = normalization.bias.float() - normalization.running_mean.float() * self.scale
        self.bias = bias.to(convolution.weight.dtype)
        self.packed: dict[bool, tuple[torch.Size, torch.Tensor]] = {}

    def _tensors(self) -> list[torch.Tensor]:
        convolution, normalization = self.layers
        # Training writes to the statistics unseen by PyTorch's count of writes, and counts batches itself.
        statistics = [normalization.running_mean, normalization.running_var, normalization.num_batches_tracked]
        return [convolution.weight, normalization.weight, normalization.bias, *statistics]

    def is_current(self, *layers: nn.Module) -> bool:
        """Whether it is of `layers` as they are now."""
        return layers == self.layers and self.fingerprint == fingerprint(self._tensors(), ())

    def fits(self, inputs: torch.Tensor, *layers: nn.Module) -> bool:
        """Whether it may stand for `layers` on these inputs: the layers it was made of, as they were then."""
        return (
            inputs.is_cpu
            and inputs.dtype == self.bias.dtype
            and takes_kernels(inputs)
            # Compilers fold batch norms themselves.
            and not torch.compiler.is_compiling()
            and self.is_current(*layers)
            and not layers[1].training
            and not any(map(is_watched, layers))
        )

    def weight_for(self, inputs: torch.Tensor) -> torch.Tensor:
        """The weights in oneDNN's own layout; the best depends on the images' size and on there being one."""
        is_single, size = len(inputs) == 1, inputs.shape[1:]
        packed_for, packed = self.packed.get(is_single, (None, None))
        if packed_for != size:
            weight = self.originals[0]
            folded = (weight.float() * self.scale.view(-1, 1, 1, 1)).to(weight.dtype)
            shape = (1 if is_single else 2, *size)
            packed = torch.ops.mkldnn._reorder_convolution_weight(folded, *self.geometry, shape)
            self.packed[is_single] = size, packed
            note_copied([weight])
        return packed

    def __call__(self, inputs: torch.Tensor, activation: str = "none") -> torch.Tensor:
        """(batch, in channels, height, width) -> (batch, out channels, ...), channels last in memory.

        Args:
            activation: "relu" or "none", what follows.
        """
        # With the channels last oneDNN takes its inputs, and gives its outputs, as they are.
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        weight = self.weight_for(inputs)
        return torch.ops.mkldnn._convolution_pointwise(inputs, weight, self.bias, *self.geometry, activation, [], "")


class FusibleConvolutionMixin(FusibleMixin):
    """A module that has a [`Convolution`] with a [`BatchNorm2d`] behind it."""

    fused: FusedConvolution | None = None
    convolution: nn.Module
    normalization: nn.Module

    def layers_to_fuse(self) -> tuple[nn.Module, nn.Module]:
        return self.convolution, self.normalization

    def fuse(self):
        convolution, normalization = self.layers_to_fuse()
        if not (type(convolution) is Convolution and isinstance(normalization, BatchNorm2d)):
            return
        weight = convolution.weight
        if type(weight) is nn.Parameter and weight.is_cpu and weight.dtype in ONEDNN_DTYPES:
            self.fused = FusedConvolution(convolution, normalization)

    def convolve(self, hidden_states: torch.Tensor, activation: str = "none") -> torch.Tensor:
        """(batch, in channels, height, width) -> (batch, out channels, ...), convolved and normalised.

        Args:
            activation: "relu" or "none", what follows.
        """
        layers = self.layers_to_fuse()
        if self.fused is not None and self.fused.fits(hidden_states, *layers):
            return self.fused(hidden_states, activation)
        for layer in layers:
            hidden_states = layer(hidden_states)
        return F.relu(hidden_states, inplace=True) if activation == "relu" else hidden_states
