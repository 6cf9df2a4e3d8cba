"""Linear layers that run on the fastest kernel PyTorch has for inference, and their fusion on demand."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .linear_kernels import ONEDNN_DTYPES, compiled_cpu_linear, cpu_linear, onednn_linear, takes_kernels


class FusedLinear:
    """The weights of linear layers that share their inputs, as one matrix; on x86 processors in oneDNN's own layout.

    This is a copy of the weights, and of use as long as they are what they were when it was made.
    """

    def __init__(self, layers: Sequence["Linear"]):
        self.layers = tuple(layers)
        self.fingerprint = self._fingerprint()
        weight = torch.cat([layer.weight.detach() for layer in layers])
        self.device, self.dtype = weight.device, weight.dtype
        self.is_packed = weight.is_cpu
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.is_packed else weight
        biases = [layer.bias for layer in layers]
        self.bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])

    def _fingerprint(self) -> list[tuple[int, int]]:
        weights = [layer.weight for layer in self.layers]
        return [(w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights]

    def fits(self, inputs: torch.Tensor, *layers: nn.Module) -> bool:
        """Whether it may stand for `layers` on these inputs: the layers it was made of, with the weights they had."""
        return (
            layers == self.layers
            and inputs.device == self.device
            and inputs.dtype == self.dtype
            and not torch.compiler.is_compiling()
            and takes_kernels(inputs)
            and self._fingerprint() == self.fingerprint
        )

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., in features) -> (..., sum of the layers' out features)."""
        return (onednn_linear if self.is_packed else F.linear)(inputs, self.weight, self.bias)


class FusibleMixin:
    """A module with fused weights beside its own, from `fuse` to `unfuse`, or until it is moved or cast."""

    fused: FusedLinear | None = None

    def layers_to_fuse(self) -> tuple[nn.Module, ...]:
        """The linear layers that fusing makes one."""
        raise NotImplementedError

    def fuse(self):
        """Makes the fused weights, where the layers are plain ones and the device has a use for it."""
        layers = self.layers_to_fuse()
        if not all(type(layer) is Linear and type(layer.weight) is nn.Parameter for layer in layers):
            return
        weight = layers[0].weight
        if weight.dtype in ONEDNN_DTYPES if weight.is_cpu else weight.is_cuda and len(layers) > 1:
            self.fused = FusedLinear(layers)

    def unfuse(self):
        """Drops the fused weights."""
        self.fused = None

    def _apply(self, *args, **kwargs):
        self.unfuse()
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict:
        # Neither copied nor pickled: what oneDNN packed is of this process alone.
        return {name: value for name, value in self.__dict__.items() if name != "fused"}


class Linear(FusibleMixin, nn.Linear):
    """`nn.Linear` that calls oneDNN for inference on x86 processors."""

    def layers_to_fuse(self) -> tuple[nn.Module, ...]:
        return (self,)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.fused is not None and self.fused.fits(inputs, self):
            return self.fused(inputs)
        # Not `self.weight`, which takes as long as all these checks.
        parameters = self._parameters
        weight = parameters.get("weight")
        # Weights of other types, quantised ones for instance, have kernels of their own.
        is_plain = type(weight) is nn.Parameter and weight.dtype == inputs.dtype and inputs.dtype in ONEDNN_DTYPES
        if is_plain and inputs.is_cpu and weight.is_cpu and takes_kernels(inputs):
            kernel = compiled_cpu_linear if torch.compiler.is_compiling() else cpu_linear
            return kernel(inputs, weight, parameters["bias"])
        return super().forward(inputs)
