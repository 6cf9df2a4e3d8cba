"""Linear layers that run on the fastest kernel PyTorch has for inference, and their fusion on demand."""

import platform
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


def onednn_dtypes() -> frozenset[torch.dtype]:
    """What oneDNN multiplies faster than `F.linear`.

    PyTorch gives products in fp32 to MKL: on an AMD processor oneDNN, which it has too, takes 0.4 to 0.9 of the time.
    In bf16 `F.linear` is oneDNN, with a pass of its own for the bias. On others than x86 this was not measured.
    """
    if not torch.backends.mkldnn.is_available() or platform.machine() not in ("x86_64", "AMD64"):
        return frozenset()
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return frozenset({torch.float32, torch.bfloat16} if has_bfloat16 else {torch.float32})


ONEDNN_DTYPES = onednn_dtypes()


def onednn_linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`F.linear` by oneDNN, without gradients; `weight` may be in a layout of oneDNN's own."""
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


def takes_kernels(inputs: torch.Tensor) -> bool:
    """Whether a kernel may be called that knows nothing of gradients, autocast, compilers and tracers."""
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.is_autocast_enabled(inputs.device.type)
    )


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
        weight = self.weight
        # Weights of other types, quantised ones for instance, have kernels of their own.
        is_plain = type(weight) is nn.Parameter and weight.dtype == inputs.dtype and inputs.dtype in ONEDNN_DTYPES
        if is_plain and inputs.is_cpu and weight.is_cpu and takes_kernels(inputs):
            return onednn_linear(inputs, weight, self.bias)
        return super().forward(inputs)
