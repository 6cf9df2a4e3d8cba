"""What multiplies fastest by a linear layer's weights on x86 processors, without gradients; chosen by measurement."""

import platform
import re
from collections.abc import Callable, Sequence
from typing import ClassVar
from weakref import WeakValueDictionary

import torch
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
HAS_MKL = torch.backends.mkl.is_available()
# PyTorch 2.6 has only the second.
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def takes_kernels(inputs: torch.Tensor) -> bool:
    """Whether a kernel may be called that knows nothing of gradients, autocast and exports.

    Where PyTorch cannot tell an export from a compilation (below 2.14), neither may.
    """
    return not (
        torch.is_grad_enabled()
        or is_exporting()
        or torch.jit.is_tracing()
        or torch.is_autocast_enabled("cpu" if inputs.is_cpu else inputs.device.type)
    )


# What may follow a product without a pass of its own: oneDNN's name and formula, which are `F.gelu`'s too.
ACTIVATIONS = {"none": ("none", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}


def activate_(outputs: torch.Tensor, activation: str) -> torch.Tensor:
    """One of `ACTIVATIONS`, in place."""
    name, formula = ACTIVATIONS[activation]
    return outputs if name == "none" else torch.ops.aten.gelu_(outputs, approximate=formula)


def onednn_linear(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str = "none"
) -> torch.Tensor:
    """`F.linear` and an activation by oneDNN; `weight` may be in a layout of oneDNN's own."""
    name, formula = ACTIVATIONS[activation]
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, name, [], formula)


def mkl_linear_of_columns(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`F.linear` by MKL, with the weights as the left matrix."""
    rows = inputs.reshape(-1, inputs.shape[-1]).contiguous()
    count = rows.shape[0]
    # A single row goes in twice: MKL takes longer for one column than for two.
    columns = (rows if count > 1 else rows.expand(2, -1).contiguous()).t()
    outputs = torch.mm(weight, columns) if bias is None else torch.addmm(bias.unsqueeze(1), weight, columns)
    return outputs[:, :count].t().contiguous().view(*inputs.shape[:-1], -1)


def onednn_linear_of_columns(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`F.linear` by oneDNN, with the weights as the left matrix."""
    # For rows that lie apart oneDNN takes its slowest way.
    rows = inputs.reshape(-1, inputs.shape[-1]).contiguous()
    outputs = onednn_linear(weight, rows, None).t().contiguous().view(*inputs.shape[:-1], -1)
    return outputs if bias is None else outputs.add_(bias)


def suits_mkl(inputs: torch.Tensor) -> bool:
    """Whether (..., features) in fp32 are few rows, small enough for the first cache while the weights stream by."""
    rows, features = inputs.shape[:-1].numel(), inputs.shape[-1]
    is_small = 0 < rows <= 5 and 0 < features <= (3072 // rows if rows > 1 else 1024)
    return HAS_MKL and inputs.dtype is torch.float32 and is_small


def cpu_linear(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str = "none"
) -> torch.Tensor:
    """`F.linear` by the fastest of these: (..., in features) by (out features, in features) -> (..., out features).

    In fp32, of weights in memory, MKL's of columns takes 0.5 to 1.0 of oneDNN's time for one to four rows and about as
    long for five (0.65 to 1.25, by their size), oneDNN's of columns 0.75 to 1.0 for nine to sixteen, which fill its
    vectors. For others they take longer.
    """
    if suits_mkl(inputs):
        return activate_(mkl_linear_of_columns(inputs, weight, bias), activation)
    if inputs.dtype is torch.float32 and 8 < inputs.shape[:-1].numel() <= 16:
        return activate_(onednn_linear_of_columns(inputs, weight, bias), activation)
    return onednn_linear(inputs, weight, bias, activation)


Weights = Sequence[torch.Tensor]
Biases = Sequence[torch.Tensor | None]


class FusedWeights:
    """A copy of linear layers' weights as one matrix, and of their biases; on x86 processors in oneDNN's own layout.

    It is of use as long as they are what they were when it was made.
    """

    # Compiled code can hold none, and finds it by the place of its first weights.
    by_place: ClassVar[WeakValueDictionary[int, "FusedWeights"]] = WeakValueDictionary()

    def __init__(self, weights: Weights, biases: Biases):
        self.fingerprint = fingerprint(weights, biases)
        # Kept so that no others come to lie where they do.
        self.originals = [tensor.detach() for tensor in (*weights, *biases) if tensor is not None]
        weight = weights[0].detach() if len(weights) == 1 else torch.cat([weight.detach() for weight in weights])
        self.device, self.dtype = weight.device, weight.dtype
        self.is_packed = weight.is_cpu
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.is_packed else weight
        self.bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])
        self.by_place[weights[0].data_ptr()] = self

    def is_copy_of(self, weights: Weights, biases: Biases) -> bool:
        """Whether these still are what it was made of.

        Then it serves all inputs. For one or two rows the weights themselves would be faster, but would take memory.
        """
        return self.fingerprint == fingerprint(weights, biases)

    def __call__(self, inputs: torch.Tensor, activation: str = "none") -> torch.Tensor:
        """(..., in features) -> (..., sum of the layers' out features)."""
        if self.is_packed:
            return onednn_linear(inputs, self.weight, self.bias, activation)
        return activate_(F.linear(inputs, self.weight, self.bias), activation)


def fingerprint(weights: Weights, biases: Biases) -> list[tuple[int, int]]:
    """Where they lie and how often they were written to, as far as PyTorch knows."""
    tensors = [tensor for tensor in (*weights, *biases) if tensor is not None]
    return [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]


def fused_linear(inputs: torch.Tensor, weights: Weights, biases: Biases, activation: str = "none") -> torch.Tensor:
    """`cpu_linear` of layers side by side, by the copy of their weights where there still is one.

    (..., in features) -> (..., sum of the layers' out features).
    """
    copy = FusedWeights.by_place.get(weights[0].data_ptr())
    if copy is not None and copy.is_copy_of(weights, biases):
        return copy(inputs, activation)
    layers = zip(weights, biases, strict=True)
    return torch.cat([cpu_linear(inputs, weight, bias, activation) for weight, bias in layers], dim=-1)


def as_operator(kernel: Callable, schema: str, fake: Callable):
    """`kernel` as an operator, which `torch.compile` leaves as it is, where it would give `F.linear` to MKL."""
    # Of this import alone: repositories bring this file along, in the version of their model. Compilers write the name
    # into code, and a folder's may have spaces.
    namespace = re.sub(r"\W", "_", __name__, flags=re.ASCII)
    operators, name = getattr(torch.ops, namespace), kernel.__name__
    if not hasattr(operators, name):
        torch.library.define(f"{namespace}::{name}", schema)
        torch.library.impl(f"{namespace}::{name}", "cpu", kernel)
        torch.library.register_fake(f"{namespace}::{name}", fake)
    return getattr(operators, name)


compiled_cpu_linear = as_operator(
    cpu_linear,
    '(Tensor inputs, Tensor weight, Tensor? bias, str activation="none") -> Tensor',
    lambda inputs, weight, bias, activation="none": inputs.new_empty((*inputs.shape[:-1], len(weight))),
)
compiled_fused_linear = as_operator(
    fused_linear,
    '(Tensor inputs, Tensor[] weights, Tensor?[] biases, str activation="none") -> Tensor',
    lambda inputs, weights, biases, activation="none": inputs.new_empty((*inputs.shape[:-1], sum(map(len, weights)))),
)
