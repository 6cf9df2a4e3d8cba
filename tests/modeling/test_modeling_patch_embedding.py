"""Patches as one linear layer: the convolution's numbers, gradients and exports."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from open_clip_transformers.modeling.modeling_patch_embedding import PatchConv2d


PIXELS = {
    "square": lambda: torch.randn(2, 3, 12, 12),
    "wide": lambda: torch.randn(2, 3, 4, 21),
    "one patch": lambda: torch.randn(1, 3, 4, 7),
    "pixels left over": lambda: torch.randn(2, 3, 11, 17),
    "no images": lambda: torch.randn(0, 3, 8, 14),
    "channels last": lambda: torch.randn(2, 3, 8, 14).to(memory_format=torch.channels_last),
    "expanded": lambda: torch.randn(1, 1, 8, 14).expand(2, 3, -1, -1),
}


@pytest.mark.parametrize("bias", [False, True], ids=["without bias", "with bias"])
@pytest.mark.parametrize("pixels", PIXELS)
def test_patches_are_embedded_as_by_a_convolution(pixels, bias):
    torch.manual_seed(0)
    torch.compiler.reset()
    layer, pixel_values = PatchConv2d(3, 10, (4, 7), bias=bias), PIXELS[pixels]()
    expected = F.conv2d(pixel_values, layer.weight, layer.bias, stride=(4, 7))
    for computes in (layer, torch.compile(layer, fullgraph=True)):
        with torch.no_grad():
            torch.testing.assert_close(computes(pixel_values), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_half_precision_is_as_exact_as_the_convolution():
    torch.manual_seed(0)
    layer, pixel_values = PatchConv2d(3, 10, (4, 7), bias=True), torch.randn(2, 3, 12, 14)
    exact, layer = layer(pixel_values), layer.bfloat16()
    outputs = layer(pixel_values.bfloat16())
    assert outputs.dtype == torch.bfloat16
    convolution = nn.Conv2d.forward(layer, pixel_values.bfloat16())
    assert (outputs - exact).abs().max() <= 1.5 * (convolution - exact).abs().max()


@torch.no_grad()
def test_weights_in_another_memory_format_are_used_as_they_are():
    torch.manual_seed(0)
    layer, pixel_values = PatchConv2d(3, 10, (4, 4), bias=False), torch.randn(2, 3, 12, 12)
    expected = layer(pixel_values)
    outputs = layer.to(memory_format=torch.channels_last)(pixel_values)
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=0)


def test_gradients_and_autocast_are_the_convolutions():
    torch.manual_seed(0)
    layer, pixel_values = PatchConv2d(3, 10, (4, 4), bias=True), torch.randn(2, 3, 12, 12)
    layer(pixel_values).sum().backward()
    gradient = layer.weight.grad.clone()
    layer.zero_grad()
    F.conv2d(pixel_values, layer.weight, layer.bias, stride=4).sum().backward()
    assert torch.equal(layer.weight.grad, gradient)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(pixel_values).dtype == torch.bfloat16


@torch.no_grad()
def test_exported_patches_are_a_convolution():
    program = torch.export.export(PatchConv2d(3, 10, (4, 4), bias=True), (torch.randn(2, 3, 12, 12),))
    operators = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert operators == ["aten.conv2d.default"]
