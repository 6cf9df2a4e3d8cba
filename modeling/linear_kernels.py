"""What multiplies fastest by a linear layer's weights on x86 processors, without gradients; chosen by measurement."""

import platform

import torch


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


# PyTorch 2.6 has only the second.
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def onednn_linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`F.linear` by oneDNN; `weight` may be in a layout of oneDNN's own."""
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


def suits_thin_linear(inputs: torch.Tensor) -> bool:
    """Whether the inputs are a few rows that stay in the first cache while the weights stream by.

    As measured: up to 8 rows and 16 KiB the thin product takes 0.5 to 0.95 of oneDNN's time, beyond and for a single
    row 1.0 to 1.7.
    """
    numel, features = inputs.numel(), inputs.shape[-1]
    return HAS_MKL and inputs.dtype is torch.float32 and features < numel <= min(8 * features, 4096)


def thin_linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`F.linear` by MKL, with the weights as the left matrix."""
    columns = inputs.flatten(0, -2).t()
    outputs = torch.mm(weight, columns) if bias is None else torch.addmm(bias.unsqueeze(1), weight, columns)
    return outputs.t().contiguous().view(*inputs.shape[:-1], -1)


def cpu_linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`F.linear` by the fastest of these."""
    return (thin_linear if suits_thin_linear(inputs) else onednn_linear)(inputs, weight, bias)


def register_cpu_linear():
    """`cpu_linear` as an operator, for `torch.compile`, which would give `F.linear` to MKL and leaves this as it is."""
    operators, name = torch.ops.open_clip_transformers, "open_clip_transformers::cpu_linear"
    # This file may be imported again, as part of a repository with a model.
    if not hasattr(operators, "cpu_linear"):
        torch.library.define(name, "(Tensor inputs, Tensor weight, Tensor? bias) -> Tensor")
        torch.library.impl(name, "CPU", cpu_linear)
        torch.library.register_fake(name, lambda inputs, weight, bias: inputs @ weight.mT)
    return operators.cpu_linear


compiled_cpu_linear = register_cpu_linear()
