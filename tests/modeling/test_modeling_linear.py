"""The kernels of linear layers for inference, and their fusion: the same numbers, and no trace of it elsewhere."""

import copy
import importlib.util
import pickle

import pytest
import torch
from tiny_models import main_outputs, tiny_inputs, tiny_model
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from open_clip_transformers.modeling import linear_kernels
from open_clip_transformers.modeling.fusible import FusibleMixin
from open_clip_transformers.modeling.modeling_linear import Linear, activated


needs_packing = pytest.mark.skipif(not linear_kernels.ONEDNN_DTYPES, reason="fusing on this processor has no use")

INPUTS = {
    "vector": torch.Size((37,)),
    "no rows": torch.Size((0, 37)),
    "a row": torch.Size((1, 37)),
    "two rows": torch.Size((2, 37)),
    "a few rows": torch.Size((2, 3, 37)),
    "a batch": torch.Size((3, 5, 37)),
    "heads": torch.Size((2, 3, 4, 37)),
}
VIEWS = {
    "transposed": lambda: torch.randn(5, 3, 37).transpose(0, 1),
    "features apart": lambda: torch.randn(3, 37, 5).transpose(1, 2),
    "first tokens": lambda: torch.randn(4, 9, 37)[:, 0],
    "expanded": lambda: torch.randn(1, 37).expand(4, 37),
    "every second": lambda: torch.randn(4, 74)[:, ::2],
}
MAKERS = {name: lambda shape=shape: torch.randn(shape) for name, shape in INPUTS.items()} | VIEWS


def fused_modules(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, FusibleMixin) and module.fused is not None]


def close(ours, expected, tolerance=2e-5) -> bool:
    return torch.allclose(ours, expected, atol=tolerance * max(1, expected.abs().max().item()))


@pytest.mark.parametrize("fuses", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("bias", [False, True], ids=["without bias", "with bias"])
@pytest.mark.parametrize("name", MAKERS)
def test_linear_computes_what_torch_computes(name, bias, fuses):
    torch.manual_seed(0)
    layer, inputs = Linear(37, 53, bias=bias), MAKERS[name]()
    expected = F.linear(inputs, layer.weight, layer.bias)
    if fuses:
        layer.fuse()
    for without_gradients in (torch.no_grad, torch.inference_mode):
        with without_gradients():
            outputs = layer(inputs)
        assert outputs.shape == expected.shape
        assert not outputs.numel() or close(outputs, expected)


@pytest.mark.parametrize("fuses", [False, True], ids=["plain", "fused"])
def test_gradients_and_autocast_are_torchs(fuses):
    torch.manual_seed(0)
    layer, inputs = Linear(37, 53), torch.randn(3, 37)
    if fuses:
        layer.fuse()
    layer(inputs).sum().backward()
    assert torch.allclose(layer.weight.grad, inputs.sum(0).expand(53, -1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(inputs).dtype == torch.bfloat16


@pytest.mark.parametrize("fuses", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("rows", [1, 2, 5, 12, 40])
def test_compiled_layer_computes_the_same(rows, fuses):
    torch.manual_seed(0)
    layer, inputs = Linear(37, 53), torch.randn(rows, 37)
    if fuses:
        layer.fuse()
    compiled = torch.compile(layer, fullgraph=True)
    with torch.no_grad():
        assert close(compiled(inputs), F.linear(inputs, layer.weight, layer.bias))
    compiled(inputs).sum().backward()
    assert torch.allclose(layer.weight.grad, inputs.sum(0).expand(53, -1), atol=1e-5)


@pytest.mark.parametrize("name", ["gelu", "gelu_pytorch_tanh", "quick_gelu", "relu"])
@pytest.mark.parametrize("form", ["plain", "fused", "compiled", "fused and compiled"])
@pytest.mark.parametrize("rows", [1, 4, 12, 40])
@torch.no_grad()
def test_activation_behind_a_layer_computes_what_it_computes_alone(rows, form, name):
    torch.manual_seed(0)
    torch.compiler.reset()
    layer, activation_fn, inputs = Linear(37, 53), ACT2FN[name], 3 * torch.randn(rows, 37)
    if "fused" in form:
        layer.fuse()
    computes = torch.compile(activated, fullgraph=True) if "compiled" in form else activated
    expected = activation_fn(F.linear(inputs, layer.weight, layer.bias))
    assert close(computes(layer, activation_fn, inputs), expected)


@torch.no_grad()
def test_activation_in_half_precision_is_rounded_once():
    torch.manual_seed(0)
    layer, activation_fn, inputs = Linear(37, 53).bfloat16(), ACT2FN["gelu"], torch.randn(40, 37).bfloat16()
    exact = F.gelu(F.linear(inputs.float(), layer.weight.float(), layer.bias.float()))
    outputs, apart = activated(layer, activation_fn, inputs), activation_fn(layer(inputs))
    assert outputs.dtype == torch.bfloat16
    assert (outputs - exact).abs().mean() <= (apart - exact).abs().mean()


def test_activation_behind_a_layer_has_its_gradients():
    torch.manual_seed(0)
    layer, activation_fn, inputs = Linear(37, 53), ACT2FN["gelu"], torch.randn(5, 37)
    activated(layer, activation_fn, inputs).sum().backward()
    gradient = layer.weight.grad.clone()
    layer.zero_grad()
    F.gelu(F.linear(inputs, layer.weight, layer.bias)).sum().backward()
    assert torch.equal(layer.weight.grad, gradient)


@pytest.mark.parametrize("name", ["fc1", "activation_fn"])
@torch.no_grad()
def test_hooks_see_the_layer_and_its_activation_apart(name):
    model = tiny_model("clip").eval()
    inputs = tiny_inputs(model)
    mlp, seen = model.vision_model.encoder.layers[0].mlp, []
    expected = model(**inputs).image_embeds
    handle = getattr(mlp, name).register_forward_hook(lambda module, args, output: seen.extend((*args, output)))
    hooked = model(**inputs).image_embeds
    handle.remove()
    given, returned = seen
    alone = F.linear(given, mlp.fc1.weight, mlp.fc1.bias) if name == "fc1" else F.gelu(given)
    assert close(returned, alone) and close(hooked, expected)
    model(**inputs)
    assert len(seen) == 2


@torch.no_grad()
def test_replaced_activation_is_used():
    model = tiny_model("clip").eval()
    inputs = tiny_inputs(model)
    before = model(**inputs).image_embeds
    mlp = model.vision_model.encoder.layers[0].mlp
    mlp.activation_fn = nn.Tanh()
    after = model(**inputs).image_embeds
    assert not torch.allclose(after, before, atol=1e-4)
    mlp.activation_fn = ACT2FN["gelu"]
    mlp.activation_fn.forward = torch.tanh
    assert close(model(**inputs).image_embeds, after)


@needs_packing
@torch.no_grad()
def test_kernels_of_a_repository_compile_whatever_its_name():
    spec = importlib.util.spec_from_file_location("a folder (1).linear_kernels", linear_kernels.__file__)
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    inputs, weight = torch.randn(12, 37), torch.randn(53, 37)
    compiled = torch.compile(lambda inputs: kernels.compiled_cpu_linear(inputs, weight, None) + 1, fullgraph=True)
    assert close(compiled(inputs), inputs @ weight.T + 1)


@pytest.mark.parametrize("strict", [False, True])
@torch.no_grad()
def test_exported_layer_needs_nothing_but_torch(strict):
    program = torch.export.export(Linear(37, 53), (torch.randn(5, 37),), strict=strict)
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert operators == {"aten.linear.default"}


@pytest.mark.parametrize("name", ["clip", "siglip_vit", "resnet", "coca"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@torch.no_grad()
def test_fused_model_computes_the_same_and_is_saved_as_before(name, dtype, tmp_path):
    model = tiny_model(name).eval().to(dtype)
    inputs, keys = tiny_inputs(model), model.state_dict().keys()
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    expected = main_outputs(model(**inputs))
    assert model.fuse() is model
    outputs = main_outputs(model(**inputs))
    tolerance = 2e-5 if dtype == torch.float32 else 3e-2
    for ours, theirs in zip(outputs, expected, strict=True):
        assert close(ours, theirs, tolerance)
    assert model.state_dict().keys() == keys
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items())
    assert not fused_modules(model.unfuse())
    for ours, theirs in zip(main_outputs(model(**inputs)), expected, strict=True):
        assert torch.equal(ours, theirs)


@needs_packing
def test_weights_are_held_twice_at_most():
    model = tiny_model("coca").fuse()
    layers = [layer for module in fused_modules(model) for layer in module.layers_to_fuse()]
    assert len(layers) == len(set(layers)) == sum(type(module) is Linear for module in model.modules())


@needs_packing
@torch.no_grad()
def test_fusing_again_copies_what_has_changed_alone():
    model = tiny_model("coca").fuse()
    first = [module.fused for module in fused_modules(model)]
    changed = fused_modules(model)[1]
    changed.layers_to_fuse()[0].weight.mul_(2)
    again = [module.fused for module in fused_modules(model.fuse())]
    assert [index for index, (before, now) in enumerate(zip(first, again, strict=True)) if before is not now] == [1]
    assert again[1].is_current(*changed.layers_to_fuse())


@torch.no_grad()
def test_captions_of_a_fused_model_are_the_same():
    model = tiny_model("coca").eval()
    pixel_values = tiny_inputs(model)["pixel_values"]
    calls = {"greedy": {}, "beams": {"num_beams": 4}, "groups": {"num_beams": 6, "num_beam_groups": 3}}
    expected = {name: model.generate(pixel_values=pixel_values, max_length=8, **call) for name, call in calls.items()}
    model.fuse()
    for name, call in calls.items():
        assert torch.equal(model.generate(pixel_values=pixel_values, max_length=8, **call), expected[name]), name


def change_in_place(layer):
    layer.weight.add_(1)


def change_the_bias(layer):
    layer.bias.add_(1)


def change_by_loading(layer):
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})


def change_by_assigning(layer):
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()}, assign=True)


def change_the_data(layer):
    layer.weight.data = layer.weight.data + 1


def change_the_parameter(layer):
    layer.weight = nn.Parameter(layer.weight + 1)


def change_what_was_freed(layer):
    values = (layer.weight + 1).tolist()
    layer.weight = None
    layer.weight = nn.Parameter(torch.tensor(values))


def change_by_parametrizing(layer):
    class AddOne(nn.Module):
        def forward(self, weight):
            return weight + 1

    torch.nn.utils.parametrize.register_parametrization(layer, "weight", AddOne())


def change_by_quantising(layer):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())


def change_by_training(layer):
    with torch.enable_grad():
        layer(torch.ones(1, layer.in_features)).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=1.0).step()


@pytest.mark.parametrize(
    "change",
    [
        change_in_place,
        change_the_bias,
        change_by_loading,
        change_by_assigning,
        change_the_data,
        change_the_parameter,
        change_what_was_freed,
        change_by_parametrizing,
        change_by_quantising,
        change_by_training,
    ],
)
@pytest.mark.parametrize("compiles", [False, True], ids=["eager", "compiled"])
@torch.no_grad()
def test_changed_weights_are_seen(change, compiles):
    torch.manual_seed(0)
    layer, inputs = Linear(37, 53), torch.randn(3, 37)
    layer.fuse()
    call = torch.compile(layer) if compiles else layer
    before = call(inputs)
    change(layer)
    assert close(call(inputs), F.linear(inputs, layer.weight, layer.bias))
    assert not close(call(inputs), before)


@torch.no_grad()
def test_compiled_model_uses_fused_weights_as_long_as_they_are_right():
    model = tiny_model("coca").eval()
    inputs = tiny_inputs(model)
    expected = main_outputs(model(**inputs))
    compiled = torch.compile(model.fuse(), backend="eager", fullgraph=True)
    for ours, theirs in zip(main_outputs(compiled(**inputs)), expected, strict=True):
        assert close(ours, theirs)
    model.text_model.encoder.layers[0].self_attn.v_proj.weight.add_(1)
    after = compiled(**inputs).logits
    assert torch.allclose(after, model.unfuse()(**inputs).logits, atol=1e-5)


@torch.no_grad()
def test_replaced_projection_is_used():
    model = tiny_model("coca").eval()
    inputs = tiny_inputs(model)
    attention = model.text_model.encoder.layers[0].self_attn
    model.fuse()
    before = model(**inputs).logits

    class Zero(nn.Module):
        def forward(self, hidden_states):
            return torch.zeros_like(hidden_states)

    attention.v_proj = Zero()
    after = model(**inputs).logits
    assert not torch.allclose(after, before)
    assert torch.allclose(after, model.unfuse()(**inputs).logits, atol=1e-5)
    assert torch.allclose(after, model.fuse()(**inputs).logits, atol=1e-5)


@torch.no_grad()
def test_hooks_see_the_projections_of_a_fused_model():
    model = tiny_model("coca").eval().fuse()
    inputs, seen = tiny_inputs(model), []
    expected = model(**inputs).logits
    projection = model.text_model.encoder.layers[0].self_attn.q_proj
    handle = projection.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    assert torch.allclose(model(**inputs).logits, expected, atol=1e-5)
    assert len(seen) == 1
    handle.remove()
    model(**inputs)
    assert len(seen) == 1


@needs_packing
@pytest.mark.parametrize(
    "move", [torch.nn.Module.bfloat16, copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))]
)
def test_fusion_ends_with_moving_and_is_not_copied(move):
    layer = Linear(37, 53)
    layer.fuse()
    assert fused_modules(layer)
    assert not fused_modules(move(layer))
