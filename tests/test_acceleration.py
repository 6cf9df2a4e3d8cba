"""Accelerated models: the same numbers, chosen by the clock alone, and plain again for anything but inference."""

import copy
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
from tiny_models import main_outputs, tiny_inputs, tiny_model
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from open_clip_transformers import acceleration
from open_clip_transformers.acceleration import (
    ROW_COUNTS,
    AcceleratedLayer,
    AcceleratedLinear,
    FoldedConvLayer,
    FoldedModule,
    optimize_for_inference,
    restore,
)


pytestmark = pytest.mark.skipif(
    not acceleration.can_pack(torch.empty(1, 1)), reason="torch has no packed weights on this processor"
)

MODELS = ["clip", "siglip_vit", "resnet", "coca", "hf_text"]
# Where nothing is folded, the plain layers stay.
WAYS = ["packed", "vector", "folded", "folded, channels last"]
INPUTS = {
    "vector": lambda: torch.randn(37),
    "no rows": lambda: torch.randn(0, 37),
    "a row": lambda: torch.randn(1, 37),
    "a row of a batch": lambda: torch.randn(1, 1, 37),
    "a few rows": lambda: torch.randn(2, 3, 37),
    "many rows": lambda: torch.randn(70, 5, 37),
    "transposed": lambda: torch.randn(5, 3, 37).transpose(0, 1),
    "features apart": lambda: torch.randn(3, 37, 5).transpose(1, 2),
    "expanded": lambda: torch.randn(1, 37).expand(4, 37),
    "every second": lambda: torch.randn(4, 74)[:, ::2],
}


@pytest.fixture
def measure(monkeypatch) -> Callable[[Callable[[str], float]], None]:
    """Replaces the clock by a function of the name of a way; each way is computed as ever."""

    def replace(seconds: Callable[[str], float]):
        def seconds_of(way: str, run: Callable[[], None]) -> float:
            run()
            return seconds(way)

        monkeypatch.setattr(acceleration, "seconds_of", seconds_of)

    return replace


@pytest.fixture
def fastest(measure) -> Callable[[str], None]:
    """Makes all ways of that beginning the faster ones."""
    return lambda name: measure(lambda way: 1e-3 if way.startswith(name) else 2e-3)


@pytest.fixture
def accelerated(fastest) -> Callable[..., PreTrainedModel]:
    """An optimised tiny model, of which each layer that can be is accelerated."""

    def make(name: str, way: str = "packed", **fields) -> PreTrainedModel:
        fastest(way)
        model = optimize_for_inference(tiny_model(name, **fields))
        assert accelerated_layers(model)
        return model

    return make


def accelerated_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, AcceleratedLayer)]


def types_of(model: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules()}


def assert_close(outputs, expected, tolerance: float = 1e-5):
    for ours, theirs in zip(outputs, expected, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= tolerance * max(1, theirs.abs().max()) if theirs.numel() else True


@torch.no_grad()
def outputs_of(model: nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return main_outputs(model(**inputs))


def packed_layer(fastest, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    """A small layer in which every number of rows is computed from packed weights."""
    torch.manual_seed(0)
    fastest("packed")
    layer = optimize_for_inference(nn.Linear(37, 53, bias=bias).to(dtype).eval())
    assert type(layer) is AcceleratedLinear and layer.accelerator.ways == ["packed"] * len(ROW_COUNTS)
    return layer


@pytest.mark.parametrize("way", ["packed", "vector"])
@pytest.mark.parametrize("bias", [False, True], ids=["without bias", "with bias"])
@pytest.mark.parametrize("name", INPUTS)
def test_linear_layer_computes_what_torch_computes(name, bias, way, fastest):
    torch.manual_seed(0)
    layer, inputs = nn.Linear(37, 53, bias=bias).eval(), INPUTS[name]()
    expected = layer(inputs)
    fastest(way)
    optimize_for_inference(layer)
    assert type(layer) is AcceleratedLinear
    for without_gradients in (torch.no_grad, torch.inference_mode):
        with without_gradients():
            assert_close([layer(inputs)], [expected])
    assert type(layer) is AcceleratedLinear


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_optimised_model_computes_the_same_until_restored(name, way, fastest):
    model = tiny_model(name)
    inputs, types = tiny_inputs(model), types_of(model)
    expected, tensors = outputs_of(model, inputs), {**model.state_dict(keep_vars=True)}
    fastest(way)
    assert optimize_for_inference(model) is model
    is_folded = way.startswith("folded")
    assert bool(accelerated_layers(model)) == (name == "resnet" if is_folded else True)
    assert_close(outputs_of(model, inputs), expected)
    assert restore(model) is model
    assert types_of(model) == types
    assert all(map(torch.equal, outputs_of(model, inputs), expected))
    assert all(tensor is tensors[key] for key, tensor in model.state_dict(keep_vars=True).items())


@pytest.mark.parametrize("way", ["packed", "folded", "folded, channels last"])
@pytest.mark.parametrize("name", ["clip", "resnet", "coca"])
def test_optimised_model_in_bfloat16_is_as_near_to_fp32(name, way, fastest):
    if name != "resnet" and way != "packed":
        pytest.skip("nothing to fold")
    model = tiny_model(name)
    inputs = tiny_inputs(model)
    exact = outputs_of(model, inputs)
    model.bfloat16()
    plain = outputs_of(model, inputs)
    fastest(way)
    optimize_for_inference(model)
    assert accelerated_layers(model)
    for ours, theirs, expected in zip(outputs_of(model, inputs), plain, exact, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - expected).norm() <= 2 * (theirs - expected).norm()


@pytest.mark.parametrize("way", ["packed", "vector"])
def test_captions_are_the_same(way, fastest):
    model = tiny_model("coca")
    pixel_values = tiny_inputs(model)["pixel_values"]
    calls = {"greedy": {}, "beams": {"num_beams": 4}, "groups": {"num_beams": 6, "num_beam_groups": 3}}
    expected = {name: model.generate(pixel_values=pixel_values, max_length=8, **call) for name, call in calls.items()}
    fastest(way)
    optimize_for_inference(model)
    for name, call in calls.items():
        assert torch.equal(model.generate(pixel_values=pixel_values, max_length=8, **call), expected[name]), name
    assert accelerated_layers(model)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_changes_where_plain_layers_are_the_fastest(name, measure):
    model = tiny_model(name)
    types = types_of(model)
    measure(lambda way: 1.0 if way == "plain" else 0.95)  # faster, but by so little that it may be chance
    optimize_for_inference(model)
    assert types_of(model) == types


def test_way_is_chosen_by_the_number_of_rows(monkeypatch):
    """By measured times and nothing else: here packed weights are faster with 4 and 64 rows alone."""
    layer = nn.Linear(37, 53).eval()

    def seconds_of(way, run):
        rows = run.args[1].shape[0]
        run()
        return 0.5 if way == {1: "vector", 4: "packed", 16: "plain", 64: "packed", 256: "plain"}[rows] else 1.0

    monkeypatch.setattr(acceleration, "seconds_of", seconds_of)
    monkeypatch.setattr(acceleration, "LONGEST_RUN", 100)
    optimize_for_inference(layer)
    ways = {rows: layer.accelerator.way_for(torch.empty(rows, 37)) for rows in (1, 2, 7, 8, 31, 32, 127, 128, 5000)}
    assert ways == {
        **{1: "vector", 2: "packed", 7: "packed", 8: "plain", 31: "plain"},
        **{32: "packed", 127: "packed", 128: "plain", 5000: "plain"},
    }
    assert layer.accelerator.way_for(torch.empty(4, 37, dtype=torch.bfloat16)) == "plain"


def test_runs_that_would_take_long_are_not_measured(measure):
    layer = nn.Linear(37, 53).eval()
    measure(lambda way: 0.01 if way == "vector" else 0.04)
    optimize_for_inference(layer)
    assert layer.accelerator.ways == ["vector", *["plain"] * (len(ROW_COUNTS) - 1)]
    assert layer.accelerator.packed is None


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        optimize_for_inference(tiny_model("clip").train())


@pytest.mark.parametrize("way", ["packed", "folded"])
@pytest.mark.parametrize("name", ["clip", "resnet", "coca"])
def test_optimised_model_is_saved_as_the_plain_one(name, way, fastest, tmp_path):
    model = tiny_model(name)
    model.save_pretrained(tmp_path / "plain")
    fastest(way)
    optimize_for_inference(model).save_pretrained(tmp_path / "optimised")
    for file in (tmp_path / "plain").iterdir():
        assert (tmp_path / "optimised" / file.name).read_bytes() == file.read_bytes(), file.name
    assert list(model.state_dict()) == list(tiny_model(name).state_dict())


@pytest.mark.parametrize(
    "move",
    [lambda model: model.bfloat16(), lambda model: model.to(torch.float64), lambda model: model.to("meta")],
    ids=["bfloat16", "float64", "meta"],
)
@pytest.mark.parametrize("name", ["resnet", "coca"])
def test_moving_and_casting_make_the_layers_plain(name, move, accelerated, fastest):
    model, plain = accelerated(name, "packed" if name == "coca" else "folded"), tiny_model(name)
    assert move(model) is model
    assert not accelerated_layers(model)
    assert types_of(model) == types_of(plain)
    if model.device.type != "meta":
        inputs = tiny_inputs(plain)
        assert all(map(torch.equal, outputs_of(model, inputs), outputs_of(move(plain), inputs)))


@pytest.mark.parametrize("name", ["resnet", "coca"])
def test_training_is_that_of_the_plain_model(name, accelerated):
    model, plain = accelerated(name, "packed" if name == "coca" else "folded"), tiny_model(name)
    inputs, gradients = tiny_inputs(plain), []
    for one in (model, plain):
        for training in (False, True):  # gradients in eval mode too
            one.train(training)
            one.zero_grad()
            sum(output.square().sum() for output in main_outputs(one(**inputs))).backward()
            gradients.append({key: parameter.grad for key, parameter in one.named_parameters()})
        torch.optim.SGD(one.parameters(), lr=1e-9).step()
    for ours, theirs in zip(gradients[:2], gradients[2:], strict=True):
        assert ours.keys() == theirs.keys()
        assert all(gradient is None or torch.equal(gradient, theirs[key]) for key, gradient in ours.items())
    assert not accelerated_layers(model)
    assert all(map(torch.equal, outputs_of(model.eval(), inputs), outputs_of(plain.eval(), inputs)))


@pytest.mark.parametrize("name", ["resnet", "coca"])
def test_copies_are_plain(name, accelerated):
    model, plain = accelerated(name, "packed" if name == "coca" else "folded"), tiny_model(name)
    inputs = tiny_inputs(plain)
    other = copy.deepcopy(model)
    assert types_of(other) == types_of(plain)
    assert all(map(torch.equal, outputs_of(other, inputs), outputs_of(plain, inputs)))
    assert accelerated_layers(model)


def test_pickles_are_plain(accelerated):
    for part in (
        accelerated("resnet", "folded").embeddings.conv2,
        accelerated("coca").text_model.encoder.layers[0].mlp,
    ):
        assert accelerated_layers(part)
        read = pickle.loads(pickle.dumps(part))
        assert not accelerated_layers(read) and accelerated_layers(part)
        assert all(map(torch.equal, read.state_dict().values(), part.state_dict().values()))


def test_looking_at_a_model_changes_nothing(accelerated):
    for model in (accelerated("resnet", "folded"), accelerated("coca")):
        count = len(accelerated_layers(model))
        assert "AcceleratedLinear" in str(model) or "FoldedConv2d" in str(model)
        model.eval().state_dict()
        assert (model.num_parameters(), model.dtype, model.device.type) and list(model.named_parameters())
        assert len(accelerated_layers(model)) == count


def change_in_place(layer):
    layer._parameters["weight"].add_(1)


def change_the_bias(layer):
    layer._parameters["bias"].add_(1)


def change_through_data(layer):
    layer.weight.data.add_(1)


def change_the_data(layer):
    next(layer.parameters()).data = next(layer.parameters()).data + 1


def change_by_loading(layer):
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})


def change_by_assigning(layer):
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()}, assign=True)


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


CHANGES = [
    change_in_place,
    change_the_bias,
    change_through_data,
    change_the_data,
    change_by_loading,
    change_by_assigning,
    change_the_parameter,
    change_what_was_freed,
    change_by_parametrizing,
    change_by_quantising,
    change_by_training,
]


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_changed_weights_are_used(change, fastest):
    layer, inputs = packed_layer(fastest), torch.randn(3, 37)
    before = layer(inputs)
    change(layer)
    outputs = layer(inputs)
    assert (outputs - before).abs().max() > 1e-3
    assert_close([outputs], [F.linear(inputs, layer.weight, layer.bias)])


@torch.no_grad()
def test_replaced_layer_is_used(accelerated):
    model = accelerated("coca")
    inputs = tiny_inputs(model)
    before = outputs_of(model, inputs)
    attention = model.text_model.encoder.layers[0].self_attn
    attention.v_proj = nn.Linear(attention.v_proj.in_features, attention.v_proj.out_features)
    after = model(**inputs).logits
    assert not torch.allclose(after, before[0])
    assert torch.allclose(after, restore(model)(**inputs).logits, atol=1e-5)


@torch.no_grad()
def test_hooks_see_the_calls_of_layers(accelerated):
    model = accelerated("coca")
    inputs, seen = tiny_inputs(model), []
    projection = model.text_model.encoder.layers[0].self_attn.q_proj
    handle = projection.register_forward_hook(lambda module, args, output: seen.append((*args, output)))
    model(**inputs)
    (given, returned), *others = seen
    assert not others and type(projection) is AcceleratedLinear
    assert_close([returned], [F.linear(given, projection.weight, projection.bias)])
    handle.remove()


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", ["resnet", "coca"])
def test_adapters_compute_and_merge_as_in_the_plain_model(name, dora, accelerated):
    peft = pytest.importorskip("peft")
    model, plain = accelerated(name, "packed" if name == "coca" else "folded"), tiny_model(name)
    inputs = tiny_inputs(plain)
    targets = [key for key, layer in plain.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    config = peft.LoraConfig(r=2, target_modules=targets, use_dora=dora, init_lora_weights=False)
    adapted = []
    for one in (model, plain):
        torch.manual_seed(0)
        adapted.append(peft.get_peft_model(one, config))
    assert all(map(torch.equal, *(outputs_of(one, inputs) for one in adapted)))
    merged = [one.merge_and_unload() for one in adapted]
    assert types_of(merged[0]) == types_of(merged[1])
    assert all(map(torch.equal, *(outputs_of(one, inputs) for one in merged)))


@torch.no_grad()
def test_adapter_that_was_there_before_is_merged(fastest):
    peft = pytest.importorskip("peft")
    model = tiny_model("text")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "fc1"], init_lora_weights=False)
    model = peft.get_peft_model(model, config).eval()
    inputs = tiny_inputs(model.get_base_model())
    expected = outputs_of(model, inputs)
    fastest("packed")
    optimize_for_inference(model)
    assert accelerated_layers(model)
    assert_close(outputs_of(model, inputs), expected)
    assert_close(outputs_of(model.merge_and_unload(), inputs), expected)


@pytest.mark.filterwarnings("ignore")
def test_dynamic_quantisation_replaces_every_layer_or_says_what_to_do(accelerated):
    model, plain = accelerated("clip"), tiny_model("clip")
    quantize = partial(torch.ao.quantization.quantize_dynamic, qconfig_spec={nn.Linear}, dtype=torch.qint8)
    with pytest.raises(RuntimeError, match=r"restore\(model\)"):
        quantize(model, inplace=True)
    ours, theirs = quantize(model), quantize(plain)
    assert types_of(ours) == types_of(theirs)
    inputs = tiny_inputs(tiny_model("clip"))
    assert all(map(torch.equal, outputs_of(ours, inputs), outputs_of(theirs, inputs)))


def test_autocast_gradients_and_transforms_are_torchs(fastest):
    layer, inputs = packed_layer(fastest), torch.randn(3, 37)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(inputs).dtype == torch.bfloat16
    with torch.no_grad():
        direction = torch.randn(3, 37)
        _, derivative = torch.func.jvp(layer, (inputs,), (direction,))
        assert_close([torch.func.vmap(layer)(inputs)], [layer(inputs)])
        with FlopCounterMode(display=False) as counter:
            layer(inputs)
    assert type(layer) is AcceleratedLinear
    assert counter.get_total_flops() == 2 * 3 * 37 * 53
    assert_close([derivative], [direction @ layer.weight.T])
    layer(inputs).sum().backward()
    assert torch.allclose(layer.weight.grad, inputs.sum(0).expand(53, -1))


@pytest.mark.parametrize("strict", [False, True])
@torch.no_grad()
def test_exported_layer_is_a_plain_one(strict, fastest):
    program = torch.export.export(packed_layer(fastest), (torch.randn(5, 37),), strict=strict)
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert operators == {"aten.linear.default"}


@pytest.mark.parametrize("name", ["resnet", "coca"])
def test_compiled_model_computes_the_same(name, accelerated):
    model = accelerated(name, "packed" if name == "coca" else "folded")
    inputs = tiny_inputs(model)
    expected = outputs_of(model, inputs)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_close(outputs_of(compiled, inputs), expected, 2e-5)


def folded_modules(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, FoldedModule)]


@torch.no_grad()
def test_folded_tower_takes_images_of_other_sizes(accelerated):
    model, plain = accelerated("resnet", "folded"), tiny_model("resnet")
    for size in ((3, 96, 96), (3, 64, 128), (3, 96, 96)):
        inputs = {"pixel_values": torch.randn(2, *size), "interpolate_pos_encoding": True}
        assert_close(outputs_of(model, inputs), outputs_of(plain, inputs), 2e-5)


def change_the_weight(convolution, normalization):
    convolution.weight.mul_(2)


def change_the_weight_through_data(convolution, normalization):
    convolution.weight.data.mul_(2)


def change_the_statistics(convolution, normalization):
    normalization.running_mean.add_(1)


def change_the_scale(convolution, normalization):
    normalization._parameters["weight"].mul_(2)


def change_by_training_the_norm(convolution, normalization):
    normalization.train()
    normalization(torch.randn(4, normalization.num_features, 3, 3))
    normalization.eval()


def change_to_training(convolution, normalization):
    normalization.train()


@pytest.mark.parametrize(
    "change",
    [
        change_the_weight,
        change_the_weight_through_data,
        change_the_statistics,
        change_the_scale,
        change_by_training_the_norm,
        change_to_training,
    ],
)
@pytest.mark.parametrize("place", [0, 4, -1])
@torch.no_grad()
def test_changed_convolutions_and_norms_are_used(change, place, accelerated):
    model = accelerated("resnet", "folded")
    inputs = tiny_inputs(model)
    before = outputs_of(model, inputs)
    change(*acceleration.convolution_and_norm(folded_modules(model)[place]))
    after = outputs_of(model, inputs)
    assert any((ours - theirs).abs().max() > 1e-4 for ours, theirs in zip(after, before, strict=True))
    # A pass in training moves the statistics; the copy made before it has the same.
    assert_close(after, outputs_of(copy.deepcopy(model), inputs), 2e-5)


@torch.no_grad()
def test_replaced_convolution_is_used(accelerated):
    model = accelerated("resnet", "folded")
    inputs = tiny_inputs(model)
    before = outputs_of(model, inputs)
    layer = model.embeddings.conv2
    assert type(layer) is FoldedConvLayer
    layer.convolution = nn.Sequential(layer.convolution, nn.Tanh())
    after = outputs_of(model, inputs)
    assert (after[0] - before[0]).abs().max() > 1e-4
    assert_close(outputs_of(restore(model), inputs), after)


@torch.no_grad()
def test_hooks_see_convolutions_and_norms_apart(accelerated):
    model, seen = accelerated("resnet", "folded"), []
    convolution, normalization = acceleration.convolution_and_norm(model.embeddings.conv2)
    for layer in (convolution, normalization):
        layer.register_forward_hook(lambda module, args, output: seen.append((args[0], output.clone())))
    inputs = tiny_inputs(model)
    model(**inputs)
    (first, second), weight = seen, convolution.weight
    assert_close([first[1]], [F.conv2d(first[0], weight, padding=1)])
    assert_close([second[1]], [normalization(first[1])])


def test_layers_called_alone_compute_plainly(accelerated):
    model, plain = accelerated("resnet", "folded"), tiny_model("resnet")
    hidden_states = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        outputs = [one.embeddings.conv1.convolution(hidden_states) for one in (model, plain)]
        outputs += [one.embeddings.conv1.normalization(outputs[0]) for one in (model, plain)]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[2], outputs[3])
