"""Captioning with a static cache and a compiled model: equal tokens from one graph, and tensors that stay in place."""

import pytest
import torch
from tiny_configs import tiny_coca_cfg
from tiny_models import BOS, PAD, tiny_config, tiny_inputs, tiny_model
from transformers import CompileConfig

from open_clip_transformers.acceleration import AcceleratedLinear, LinearWays
from open_clip_transformers.modeling.modeling_coca import CoCaModel
from open_clip_transformers.modeling.transformers_compat import CACHE_NAME


pytestmark = pytest.mark.floor

STATIC = {"cache_implementation": "static"}
STRATEGIES = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 7, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7},
    "open_clip": {"num_beams": 6, "num_beam_groups": 3, "min_length": 5},
}


def make_model(**changes) -> CoCaModel:
    model = CoCaModel(tiny_config(tiny_coca_cfg(**changes), initializer_range=0.3)).eval()
    # So that captions end at different places.
    model.generation_config.eos_token_id = [7, 33, 58]
    return model


def compiled(model: CoCaModel, backend: str | None = None) -> list[torch.fx.GraphModule]:
    """Compiles `model` and returns the graphs, of which there will be more whenever it is compiled anew."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    model.compile(fullgraph=True, backend=backend or keep)
    return graphs


def generate(model, pixel_values, **settings):
    torch.manual_seed(1)
    return model.generate(pixel_values=pixel_values, **settings)


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return torch.randn(3, 3, 24, 24)


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"text_cfg": {"embed_cls": False}},
        {"vision_cfg": {"attentional_pool": False, "width": 36, "head_width": 18}},
    ],
    ids=["class_token", "no_class_token", "raw_patch_tokens"],
)
def test_generate_with_a_static_cache_is_the_same(strategy, changes, pixel_values):
    model = make_model(**changes)
    expected = generate(model, pixel_values, **strategy)
    assert torch.equal(generate(model, pixel_values, **STATIC, **strategy), expected)
    assert len(set(map(tuple, expected.tolist()))) > 1, "every caption is the same: the test shows nothing"


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_generate_compiles_one_graph_for_all_steps(strategy, pixel_values):
    model = make_model()
    prompts = torch.tensor([[BOS, 11, 12], [PAD, BOS, 21], [PAD, PAD, BOS]])
    continued = {"input_ids": prompts, "attention_mask": (prompts != PAD).long()}
    others = torch.randn(3, 3, 24, 24)
    calls = [(pixel_values, {}), (others, {}), (others, continued)]
    expected = [generate(model, pixels, **strategy, **prompt) for pixels, prompt in calls]
    assert any((tokens[:, 1:] == PAD).any() for tokens in expected), "all captions are as long: the test shows less"

    graphs = compiled(model)
    for (pixels, prompt), tokens in zip(calls, expected):
        assert torch.equal(generate(model, pixels, **STATIC, **strategy, **prompt), tokens)
    assert len(graphs) == 1


def test_generate_compiles_without_a_class_token(pixel_values):
    model = make_model(text_cfg={"embed_cls": False})
    expected = generate(model, pixel_values)
    graphs = compiled(model)
    assert torch.equal(generate(model, pixel_values, **STATIC), expected)
    assert len(graphs) == 1


def test_generate_compiles_by_itself_where_transformers_does(pixel_values):
    # On GPUs without being asked; `_compile_all_devices` is how transformers tests it.
    graphs = []
    config = CompileConfig(fullgraph=True, mode=None, backend=lambda graph, inputs: graphs.append(graph) or graph)
    config._compile_all_devices = True
    torch.compiler.reset()
    model = make_model()
    expected = generate(model, pixel_values)
    for _ in range(2):
        assert torch.equal(generate(model, pixel_values, **STATIC, compile_config=config), expected)
    assert len(graphs) == 1


def test_generate_compiles_with_a_functional_graph(pixel_values):
    model = make_model()
    expected = generate(model, pixel_values, num_beams=3)
    compiled(model, backend="aot_eager")
    assert torch.equal(generate(model, pixel_values, num_beams=3, **STATIC), expected)


@pytest.mark.slow
def test_generate_compiles_with_inductor(pixel_values):
    model = make_model()
    expected = generate(model, pixel_values)
    compiled(model, backend="inductor")
    assert torch.equal(generate(model, pixel_values, **STATIC), expected)


@pytest.mark.slow
@pytest.mark.parametrize("optimized", [False, True])
def test_generate_compiles_with_frozen_weights(optimized, pixel_values):
    model = make_model()
    expected = generate(model, pixel_values)
    for layer in model.modules() if optimized else ():
        if type(layer) is torch.nn.Linear:
            AcceleratedLinear.accelerate(layer, LinearWays(layer, ["packed"] * 5))
    compiled(model, backend="inductor")
    with torch._inductor.config.patch({"freezing": True, "cpp.enable_concat_linear": True}):
        for _ in range(2):
            assert torch.equal(generate(model, pixel_values, **STATIC), expected)


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_static_cache_stays_in_place(strategy, pixel_values):
    # CUDA graphs read from and write to the addresses that they saw first.
    addresses = []

    def note(module, args, kwargs):
        cache = kwargs[CACHE_NAME]
        layers = [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers]
        if cache.get_seq_length() > 0:
            addresses.append([tensor.data_ptr() for layer in layers for tensor in (layer.keys, layer.values)])

    model = make_model()
    model.register_forward_pre_hook(note, with_kwargs=True)
    generate(model, pixel_values, **STATIC, **strategy)
    assert len(addresses) > 2
    assert all(step == addresses[0] for step in addresses)


def test_compiled_model_encodes_the_first_tokens_uncompiled(pixel_values):
    model = make_model()
    graphs = compiled(model)
    model.generate(pixel_values=pixel_values, max_new_tokens=1, **STATIC)
    assert graphs == []
    model.generate(pixel_values=pixel_values, max_new_tokens=2, eos_token_id=None, **STATIC)
    assert len(graphs) == 1


@pytest.mark.parametrize("name", ["coca", "mammut"])
def test_prompts_are_continued_alike_with_a_static_cache(name):
    model = tiny_model(name)
    inputs = {"pixel_values": tiny_inputs(model)["pixel_values"], "max_new_tokens": 3, "eos_token_id": None}
    prompts = torch.tensor([[95, 7, 8, 9], [PAD, 95, 9, 10], [95, 9, 11, 12]])
    inputs |= {"input_ids": prompts, "attention_mask": (prompts != PAD).long(), "return_dict_in_generate": True}
    dynamic, static = (
        model.generate(**inputs, output_logits=True, cache_implementation=cache) for cache in (None, "static")
    )
    torch.testing.assert_close(static.logits, dynamic.logits, rtol=1e-4, atol=1e-5)
