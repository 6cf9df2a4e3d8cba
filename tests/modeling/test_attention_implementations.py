"""Every attention function gives the same results, and FlashAttention's is called as it must be."""

import inspect

import pytest
import torch
from tiny_models import MODELS, PAD, main_outputs, tiny_inputs, tiny_model
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils, modeling_utils

from open_clip_transformers.modeling import modeling_layers


def fake_flash_attention(
    module, query, key, value, attention_mask, scaling=None, is_causal=None, dropout=0.0, **kwargs
):
    """FlashAttention as transformers calls it: checks its inputs, and computes what it would.

    Queries, keys and values are (batch, heads, length, dim), the result is (batch, length, heads, dim). The mask is
    `None` or (batch, key length), 0 on padding; queries at padding are dropped, their results are zeros.
    """
    batch, heads, length, head_dim = query.shape
    is_causal = module.is_causal if is_causal is None else is_causal
    assert key.shape == value.shape == (batch, heads, key.shape[2], head_dim)
    assert isinstance(scaling, float) and isinstance(is_causal, bool)
    assert attention_mask is None or (attention_mask.ndim == 2 and attention_mask.shape == (batch, key.shape[2]))
    context = torch.zeros(batch, length, heads, head_dim, dtype=query.dtype)
    for row in range(batch):
        visible, asked = torch.ones(key.shape[2], dtype=torch.bool), torch.ones(length, dtype=torch.bool)
        if attention_mask is not None:
            visible = attention_mask[row].bool()
            asked = visible[-length:] if length > 1 else asked
        scores = scaling * query[row][:, asked] @ key[row][:, visible].transpose(-1, -2)
        if is_causal and length > 1:
            allowed = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(scores.shape[-1] - scores.shape[-2])
            scores = scores.masked_fill(~allowed, -torch.inf)
        where = asked.nonzero().squeeze(1)
        context[row] = context[row].index_copy(0, where, (scores.softmax(-1) @ value[row][:, visible]).transpose(0, 1))
    return context, None


@pytest.fixture
def flash(monkeypatch) -> str:
    """The name of an attention function that transformers takes for a flavour of FlashAttention."""
    AttentionInterface.register("fake_flash_attention", fake_flash_attention)
    AttentionMaskInterface.register("fake_flash_attention", masking_utils.flash_attention_mask)
    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", lambda *args, **kwargs: None)
    return "fake_flash_attention"


@pytest.fixture
def flex():
    """`flex_attention` without compiling its kernels, which takes minutes on a CPU."""
    torch.compiler.set_stance("force_eager")
    yield "flex_attention"
    torch.compiler.set_stance("default")


def left_padded(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ids = inputs["input_ids"]
    order = (ids != PAD).int().argsort(dim=1, stable=True)
    return {**inputs, "input_ids": ids.gather(1, order), "attention_mask": (ids != PAD).long().gather(1, order)}


def padding_inside(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ids = inputs["input_ids"].clone()
    ids[0, 4] = ids[1, 2] = PAD
    return {**inputs, "input_ids": ids}


PADDINGS = {
    "right": lambda inputs: inputs,
    "right_with_mask": lambda inputs: {**inputs, "attention_mask": (inputs["input_ids"] != PAD).long()},
    "left": left_padded,
    "inside": padding_inside,
}


def outputs_with(implementation: str, model, inputs) -> list[torch.Tensor]:
    """Outputs of `model`, zero where left padding leaves them undefined."""
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        outputs = model(**inputs)
    visible = inputs.get("attention_mask")
    values = []
    for value in main_outputs(outputs):
        is_padded = visible is not None and value.shape[:2] == visible.shape
        values.append(value * visible.unsqueeze(-1) if is_padded else value)
    return values


def assert_same_as_eager(implementation: str, name: str, padding: str):
    model = tiny_model(name)
    inputs = tiny_inputs(model)
    inputs = PADDINGS[padding](inputs) if "input_ids" in inputs else inputs
    expected = outputs_with("eager", model, inputs)
    for ours, reference in zip(outputs_with(implementation, model, inputs), expected, strict=True):
        assert torch.allclose(ours, reference, rtol=1e-4, atol=1e-5)


NAMES = ["vit", "siglip_vit", "clip", "clip_hf_text", "siglip", "text_with_class_token", "coca"]
NAMES += ["coca_modern", "mammut_modern"]
every_model = pytest.mark.parametrize("name", NAMES)
every_padding = pytest.mark.parametrize("padding", PADDINGS)


@pytest.mark.floor
@every_padding
@every_model
def test_sdpa_gives_what_eager_gives(name, padding):
    assert_same_as_eager("sdpa", name, padding)


@pytest.mark.filterwarnings("ignore:.*flex_attention called without|.*_compile flag on create_block_mask")
@every_padding
@every_model
def test_flex_attention_gives_what_eager_gives(name, padding, flex):
    assert_same_as_eager(flex, name, padding)


@pytest.mark.slow
def test_compiled_flex_attention_gives_what_eager_gives():
    assert_same_as_eager("flex_attention", "coca", "right")


@pytest.mark.floor
@every_padding
@every_model
def test_flash_attention_gives_what_eager_gives(name, padding, flash):
    assert_same_as_eager(flash, name, padding)


@pytest.mark.floor
@pytest.mark.parametrize("padding", ["right", "right_with_mask", "left"])
@pytest.mark.parametrize("fields", [{}, {"is_causal": True}], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("implementation", ["sdpa", "flash"])
def test_modern_text_gives_what_eager_gives(implementation, fields, padding, flash):
    tower = tiny_model("modern_text", **fields)
    inputs = PADDINGS[padding](tiny_inputs(tower))
    pooled, tokens = [], []
    for name in ("eager", flash if implementation == "flash" else implementation):
        tower.set_attn_implementation(name)
        with torch.no_grad():
            outputs = tower(**inputs)
        # Nobody reads what stands at padding, which FlashAttention leaves out.
        tokens.append(outputs.last_hidden_state * (inputs["input_ids"] != PAD).unsqueeze(-1))
        pooled.append(outputs.pooler_output)
    assert torch.allclose(*pooled, rtol=1e-4, atol=1e-5)
    assert torch.allclose(*tokens, rtol=1e-4, atol=1e-5)


@pytest.mark.floor
@pytest.mark.parametrize(
    "change", [{"correct_cls_mask": True}, {"is_causal": False}], ids=["correct", "bidirectional"]
)
def test_class_token_comes_out_right_under_flash_attention(change, flash):
    model = tiny_model("text_with_class_token", **change)
    inputs = padding_inside(tiny_inputs(model))
    expected = outputs_with("eager", model, inputs)
    for ours, reference in zip(outputs_with(flash, model, inputs), expected, strict=True):
        assert torch.allclose(ours, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.floor
def test_flash_attention_runs_wherever_it_can(flash):
    # The text tower of CoCa hides padding by its own rule, for which FlashAttention has no form.
    model = tiny_model("coca")
    model.set_attn_implementation(flash)
    assert model.config._attn_implementation == flash
    assert model.config.vision_config._attn_implementation == flash
    assert model.config.multimodal_config._attn_implementation == flash
    assert model.config.text_config._attn_implementation == "sdpa"
    model = tiny_model("clip")
    model.set_attn_implementation(flash)
    assert model.config.text_config._attn_implementation == flash


@pytest.mark.floor
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flash"])
@pytest.mark.parametrize("name", ["vit", "siglip_vit", "text", "clip", "coca"])
def test_attention_implementation_is_chosen_at_load(name, implementation, flash, tmp_path):
    implementation = flash if implementation == "flash" else implementation
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation=implementation)
    assert loaded.config._attn_implementation == implementation
    inputs = tiny_inputs(model)
    for ours, reference in zip(
        outputs_with(implementation, loaded, inputs), outputs_with("eager", model, inputs), strict=True
    ):
        assert torch.allclose(ours, reference, rtol=1e-4, atol=1e-5)


def test_attention_implementation_can_differ_between_parts():
    model = tiny_model("coca")
    expected = outputs_with("eager", model, tiny_inputs(model))
    choice = {"vision_config": "sdpa", "text_config": "eager", "multimodal_config": "sdpa"}
    for ours, reference in zip(outputs_with(choice, model, tiny_inputs(model)), expected, strict=True):
        assert torch.allclose(ours, reference, rtol=1e-4, atol=1e-5)
    assert model.config.vision_config._attn_implementation == "sdpa"
    assert model.config.text_config._attn_implementation == "eager"


@pytest.mark.floor
@pytest.mark.parametrize("strategy", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generate_under_flash_attention_gives_the_same_captions(strategy, flash):
    model = tiny_model("coca")
    pixel_values = tiny_inputs(model)["pixel_values"]
    prompts = torch.tensor([[95, 7, 8], [PAD, 95, 9], [95, PAD, 11]])
    settings = {"attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 1]]), "max_new_tokens": 5, **strategy}
    captions = []
    for implementation in ("sdpa", flash):
        model.set_attn_implementation(implementation)
        captions.append(model.generate(prompts, pixel_values=pixel_values, **settings))
    assert torch.equal(*captions)


@pytest.mark.filterwarnings("ignore:.*flex_attention called without|.*_compile flag on create_block_mask")
def test_generate_under_flex_attention_gives_the_same_captions(flex):
    model = tiny_model("coca")
    pixel_values = tiny_inputs(model)["pixel_values"]
    captions = []
    for implementation in ("sdpa", flex):
        model.set_attn_implementation(implementation)
        captions.append(model.generate(pixel_values=pixel_values, max_new_tokens=4, num_beams=2))
    assert torch.equal(*captions)


def test_attention_classes_live_where_transformers_looks_for_them():
    # `set_attn_implementation` refuses a model whose own file defines an attention class.
    for model_class, _ in MODELS.values():
        assert "Attention(nn.Module)" not in inspect.getsource(inspect.getmodule(model_class))
    assert "Attention(nn.Module)" in inspect.getsource(modeling_layers)


@pytest.mark.floor
@pytest.mark.parametrize("name", ["clip", "coca", "siglip_vit"])
def test_attention_projections_are_separate_linear_layers(name):
    # What PEFT, quantisers and tensor parallelism look for.
    projections = [
        module
        for key, module in tiny_model(name).named_modules()
        if key.endswith(("q_proj", "k_proj", "v_proj", "out_proj"))
    ]
    attentions = [m for m in tiny_model(name).modules() if type(m).__name__.endswith("Attention")]
    assert len(projections) == 4 * len(attentions) > 0
    assert all(isinstance(module, torch.nn.Linear) for module in projections)


def test_attention_dropout_acts_in_training_alone():
    model = tiny_model("vit", attention_dropout=0.5)
    inputs = tiny_inputs(model)
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            assert torch.equal(model.eval()(**inputs).pooler_output, model(**inputs).pooler_output)
            assert not torch.allclose(model.train()(**inputs).pooler_output, model(**inputs).pooler_output)
