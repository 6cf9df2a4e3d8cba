"""The kernels that a linear layer can run on, each with many weights in turn."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from harness.cells import NotRun
from torch.nn import functional as F

from open_clip_transformers.modeling import linear_kernels
from open_clip_transformers.modeling.linear_kernels import FusedWeights


def cpu_linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """What the layers of our models call."""
    chosen = linear_kernels.cpu_linear if inputs.dtype in linear_kernels.ONEDNN_DTYPES else F.linear
    return chosen(inputs, weight, bias)


class Products:
    """Products of the same rows with one weight after the other."""

    def __init__(self, kernel: Callable, settings: dict, folder: Path):
        self.kernel, self.settings = kernel, settings
        dtype = getattr(torch, settings["dtype"])
        shape = settings["out_features"], settings["in_features"]
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(settings["rows"], shape[1], generator=generator).to(dtype)
        self.bias = torch.randn(shape[0], generator=generator).to(dtype)
        self.weights = [torch.randn(shape, generator=generator).to(dtype) for _ in range(settings["weights"])]

    @torch.inference_mode()
    def run(self) -> torch.Tensor:
        for weight in self.weights:
            outputs = self.kernel(self.inputs, weight, self.bias)
        return outputs

    def outputs(self) -> list[float]:
        """Of the last weight, for the first row."""
        return self.result[0].float().tolist()

    def bound(self) -> dict:
        """All weights are read once."""
        numbers = len(self.weights) * self.bias.numel() * self.inputs.shape[1]
        dtype = self.settings["dtype"]
        return {"flops": 2 * len(self.inputs) * numbers, "bytes": numbers * self.bias.itemsize, "dtype": dtype}


class FusedProducts(Products):
    """With the weights laid out by `model.fuse()`, where that has a use."""

    def __init__(self, settings: dict, folder: Path):
        super().__init__(lambda inputs, weight, bias: weight(inputs), settings, folder)
        if self.inputs.dtype not in linear_kernels.ONEDNN_DTYPES:
            raise NotRun("oneDNN is not for this processor")
        self.weights = [FusedWeights([weight], [self.bias]) for weight in self.weights]


class Read(Products):
    """No products: PyTorch's sum of each weight, which reads it once from memory."""

    def __init__(self, settings: dict, folder: Path):
        super().__init__(lambda inputs, weight, bias: weight.sum(), settings, folder)

    def outputs(self) -> None:
        """None to compare."""


def mkl_of_columns(settings: dict, folder: Path) -> Products:
    if not linear_kernels.HAS_MKL:
        raise NotRun("PyTorch has no MKL")
    return Products(linear_kernels.mkl_linear_of_columns, settings, folder)


def onednn(kernel: Callable, settings: dict, folder: Path) -> Products:
    if not torch.backends.mkldnn.is_available():
        raise NotRun("PyTorch has no oneDNN")
    return Products(kernel, settings, folder)


CONTESTANTS = {
    "ours": partial(Products, cpu_linear),
    "ours_fused": FusedProducts,
    "torch": partial(Products, F.linear),
    "onednn": partial(onednn, linear_kernels.onednn_linear),
    "onednn_of_columns": partial(onednn, linear_kernels.onednn_linear_of_columns),
    "read": Read,
    "mkl_of_columns": mkl_of_columns,
}
