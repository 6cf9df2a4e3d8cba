"""The kernels that PyTorch has for linear layers, each with many weights in turn."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from harness.cells import NotRun
from torch.nn import functional as F


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

    def outputs(self) -> list[float] | None:
        """Of the last weight, for the first row; none of kernels that multiply nothing."""
        return self.result[0].float().tolist() if self.result.ndim else None

    def bound(self) -> dict:
        """All weights are read once."""
        numbers = len(self.weights) * self.bias.numel() * self.inputs.shape[1]
        dtype = self.settings["dtype"]
        return {"flops": 2 * len(self.inputs) * numbers, "bytes": numbers * self.bias.itemsize, "dtype": dtype}


def onednn(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


def onednn_of_columns(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return onednn(weight, inputs, None).t().contiguous().add_(bias)


def mkl_of_columns(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    count = len(inputs)
    # A single row goes in twice: MKL takes longer for one column than for two.
    columns = (inputs if count > 1 else inputs.expand(2, -1).contiguous()).t()
    return torch.addmm(bias.unsqueeze(1), weight, columns)[:, :count].t().contiguous()


def read(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return weight.sum()


class PackedProducts(Products):
    """With weights in oneDNN's own layout."""

    def __init__(self, settings: dict, folder: Path):
        super().__init__(onednn, settings, folder)
        self.weights = [torch.ops.mkldnn._reorder_linear_weight(weight) for weight in self.weights]


def needs(library: str, make: Callable) -> Callable[[dict, Path], Products]:
    """A contestant that runs where PyTorch has "mkldnn" (oneDNN) or "mkl"."""

    def checked(settings: dict, folder: Path) -> Products:
        if not getattr(torch.backends, library).is_available():
            raise NotRun(f"PyTorch has no {library}")
        return make(settings, folder)

    return checked


CONTESTANTS = {
    "ours": partial(Products, F.linear),
    "onednn_packed": needs("mkldnn", PackedProducts),
    "onednn": needs("mkldnn", partial(Products, onednn)),
    "onednn_of_columns": needs("mkldnn", partial(Products, onednn_of_columns)),
    "read": partial(Products, read),
    "mkl_of_columns": needs("mkl", partial(Products, mkl_of_columns)),
}
