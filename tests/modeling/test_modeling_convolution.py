"""Convolutions and the batch norms behind them as one: the same numbers, as long as they are what they were."""

import copy

import pytest
import torch
from tiny_models import tiny_inputs, tiny_model
from torch import nn

from open_clip_transformers.modeling import linear_kernels
from open_clip_transformers.modeling.fusible import FusibleMixin
from open_clip_transformers.modeling.modeling_convolution import FusibleConvolutionMixin


needs_packing = pytest.mark.skipif(not linear_kernels.ONEDNN_DTYPES, reason="fusing on this processor has no use")
precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def resnet_with_statistics(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A tower whose batch norms do something."""
    model = tiny_model("resnet").eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
    return model.to(dtype)


def convolutions(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, FusibleConvolutionMixin)]


def error(outputs: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest, over the largest value."""
    return ((outputs.float() - expected).abs().max() / expected.abs().max()).item()


def embeddings(model: nn.Module, pixel_values: torch.Tensor, **kwargs) -> torch.Tensor:
    return model(pixel_values=pixel_values, **kwargs).pooler_output


@precisions
@torch.no_grad()
def test_fused_tower_is_as_near_to_fp32(dtype):
    model = resnet_with_statistics()
    pixel_values = tiny_inputs(model, batch=5)["pixel_values"]
    expected = embeddings(model, pixel_values)
    model.to(dtype)
    plain = error(embeddings(model, pixel_values), expected)
    model.fuse()
    for images in (1, 5, 2, 1):
        assert error(embeddings(model, pixel_values[:images]), expected[:images]) <= max(2e-5, 2 * plain)


@torch.no_grad()
def test_images_of_other_sizes_are_taken():
    model = resnet_with_statistics()
    fused = copy.deepcopy(model).fuse()
    for size in ((3, 96, 96), (3, 64, 128), (3, 96, 96)):
        pixel_values = torch.randn(2, *size)
        outputs = embeddings(fused, pixel_values, interpolate_pos_encoding=True)
        assert error(outputs, embeddings(model, pixel_values, interpolate_pos_encoding=True)) < 2e-5


def change_the_weight(convolution, normalization):
    convolution.weight.mul_(2)


def change_the_statistics(convolution, normalization):
    normalization.running_mean.add_(1)


def change_the_scale(convolution, normalization):
    normalization.weight.mul_(2)


def change_by_training(convolution, normalization):
    normalization.train()
    normalization(torch.randn(4, normalization.num_features, 3, 3))
    normalization.eval()


def change_to_training(convolution, normalization):
    normalization.train()


@needs_packing
@pytest.mark.parametrize(
    "change", [change_the_weight, change_the_statistics, change_the_scale, change_by_training, change_to_training]
)
@pytest.mark.parametrize("place", [0, 4, -1])
@torch.no_grad()
def test_changed_layers_are_seen(change, place):
    model = resnet_with_statistics().fuse()
    pixel_values = tiny_inputs(model)["pixel_values"]
    before = embeddings(model, pixel_values)
    module = convolutions(model)[place]
    assert module.fused is not None
    change(*module.layers_to_fuse())
    after = embeddings(model, pixel_values)
    assert error(after, before) > 1e-4
    assert error(after, embeddings(copy.deepcopy(model), pixel_values)) < 2e-5


@torch.no_grad()
def test_replaced_convolution_is_used():
    model = resnet_with_statistics().fuse()
    pixel_values = tiny_inputs(model)["pixel_values"]
    before = embeddings(model, pixel_values)
    layer = model.embeddings.conv2
    layer.convolution = nn.Sequential(layer.convolution, nn.Tanh())
    after = embeddings(model, pixel_values)
    assert error(after, before) > 1e-4
    assert error(embeddings(model.fuse(), pixel_values), after) < 2e-5


@torch.no_grad()
def test_hooks_see_both_layers():
    model = resnet_with_statistics().fuse()
    seen = []
    for layer in model.embeddings.conv2.layers_to_fuse():
        layer.register_forward_hook(lambda module, args, output: seen.append(type(module).__name__))
    embeddings(model, tiny_inputs(model)["pixel_values"])
    assert seen == ["Convolution", "BatchNorm2d"]


def test_gradients_are_those_of_the_layers():
    model = resnet_with_statistics()
    pixel_values = tiny_inputs(model)["pixel_values"]
    gradients = []
    for _ in range(2):
        model.zero_grad()
        embeddings(model, pixel_values).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        model.fuse()
    assert all(map(torch.equal, *gradients))


@torch.no_grad()
def test_compiled_tower_computes_the_same():
    model = resnet_with_statistics().fuse()
    pixel_values = tiny_inputs(model)["pixel_values"]
    expected = embeddings(model, pixel_values)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert error(embeddings(compiled, pixel_values), expected) < 2e-5


@torch.no_grad()
def test_unfused_tower_computes_as_before():
    model = resnet_with_statistics()
    pixel_values = tiny_inputs(model)["pixel_values"]
    expected = embeddings(model, pixel_values)
    model.fuse().unfuse()
    assert not any(module.fused for module in model.modules() if isinstance(module, FusibleMixin))
    assert torch.equal(embeddings(model, pixel_values), expected)
