"""Linear layers that run on the fastest kernel PyTorch has for inference, and their fusion on demand."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.activations import ACT2FN

from .fusible import FusibleMixin, note_copied
from .linear_kernels import (
    ONEDNN_DTYPES,
    FusedWeights,
    compiled_cpu_linear,
    compiled_fused_linear,
    cpu_linear,
    takes_kernels,
)
from .module_hooks import is_watched


class FusedLinear:
    """Linear layers that share their inputs, as one product with a copy of their weights."""

    def __init__(self, layers: Sequence["Linear"]):
        self.layers = tuple(layers)
        self.copy = FusedWeights(self._weights(), self._biases())
        note_copied(self._weights())

    def _weights(self) -> list[torch.Tensor]:
        return [layer.weight for layer in self.layers]

    def _biases(self) -> list[torch.Tensor | None]:
        return [layer.bias for layer in self.layers]

    def is_current(self, *layers: nn.Module) -> bool:
        """Whether it is of `layers` with the weights they have; compiled code looks at these whenever it runs."""
        weights = self._weights()
        return (
            layers == self.layers
            and all(type(weight) is nn.Parameter for weight in weights)
            and (torch.compiler.is_compiling() or self.copy.is_copy_of(weights, self._biases()))
        )

    def fits(self, inputs: torch.Tensor, *layers: nn.Module) -> bool:
        """Whether it may stand for `layers` on these inputs: the layers it was made of, with the weights they had."""
        return (
            inputs.device == self.copy.device
            and inputs.dtype == self.copy.dtype
            and takes_kernels(inputs)
            and (self.copy.is_packed or not torch.compiler.is_compiling())
            and self.is_current(*layers)
        )

    def __call__(self, inputs: torch.Tensor, activation: str = "none") -> torch.Tensor:
        """(..., in features) -> (..., sum of the layers' out features), and one of `ACTIVATIONS` of them."""
        if torch.compiler.is_compiling():
            return compiled_fused_linear(inputs, self._weights(), self._biases(), activation)
        return self.copy(inputs, activation)


class FusibleLinearMixin(FusibleMixin):
    """A module of linear layers that share their inputs."""

    fused: FusedLinear | None = None

    def fuse(self):
        layers = self.layers_to_fuse()
        if not all(type(layer) is Linear and type(layer.weight) is nn.Parameter for layer in layers):
            return
        weight = layers[0].weight
        if weight.dtype in ONEDNN_DTYPES if weight.is_cpu else weight.is_cuda and len(layers) > 1:
            self.fused = FusedLinear(layers)


def has_kernel(inputs: torch.Tensor, weight: torch.Tensor | None) -> bool:
    """Whether `kernel` may multiply them, and does so faster than PyTorch."""
    # Weights of other types, quantised ones for instance, have kernels of their own.
    is_plain = type(weight) is nn.Parameter and weight.dtype == inputs.dtype and inputs.dtype in ONEDNN_DTYPES
    return is_plain and inputs.is_cpu and weight.is_cpu and takes_kernels(inputs)


def kernel(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str = "none"
) -> torch.Tensor:
    """`F.linear` and one of `ACTIVATIONS`, by the faster kernels."""
    chosen = compiled_cpu_linear if torch.compiler.is_compiling() else cpu_linear
    return chosen(inputs, weight, bias, activation)


class Linear(FusibleLinearMixin, nn.Linear):
    """`nn.Linear` that calls the faster kernels for inference on x86 processors."""

    def layers_to_fuse(self) -> tuple[nn.Module, ...]:
        return (self,)

    def multiply(self, inputs: torch.Tensor, activation: str = "none") -> torch.Tensor | None:
        """The outputs and one of `ACTIVATIONS` of them by a faster kernel, or `None` where there is none."""
        if self.fused is not None and self.fused.fits(inputs, self):
            return self.fused(inputs, activation)
        # Not `self.weight`, which takes as long as all these checks.
        parameters = self._parameters
        weight = parameters.get("weight")
        return kernel(inputs, weight, parameters["bias"], activation) if has_kernel(inputs, weight) else None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.multiply(inputs)
        return super().forward(inputs) if outputs is None else outputs


# By their types, which what a user puts in their place does not have.
KERNEL_ACTIVATIONS = {type(ACT2FN["gelu"]): "gelu", type(ACT2FN["gelu_pytorch_tanh"]): "gelu_tanh"}


def activated(layer: nn.Module, activation_fn: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """`activation_fn(layer(inputs))`, by one kernel where nothing looks at what is between them."""
    activation = KERNEL_ACTIVATIONS.get(type(activation_fn))
    if activation and type(layer) is Linear and not (is_watched(layer) or is_watched(activation_fn)):
        outputs = layer.multiply(inputs, activation)
        if outputs is not None:
            return outputs
    return activation_fn(layer(inputs))
