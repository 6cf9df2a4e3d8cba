"""The Hugging Face text tower: what its encoders must do within it, whichever they are, and CoCa with one."""

import pytest
import torch
from tiny_configs import HF_ENCODERS, VOCAB_SIZE, tiny_hf_coca_cfg, tiny_hf_text_cfg
from tiny_models import randomized, tiny_config, tiny_inputs
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from open_clip_transformers.modeling.modeling_coca import CoCaModel
from open_clip_transformers.modeling.modeling_hf_text import HfTextModel
from open_clip_transformers.modeling.modeling_open_clip import OpenClipModel
from open_clip_transformers.modeling.transformers_compat import CACHE_NAME


every_encoder = pytest.mark.parametrize("model_type", HF_ENCODERS)


def make_tower(model_type: str, **text_cfg) -> HfTextModel:
    return randomized(HfTextModel(tiny_config(tiny_hf_text_cfg(model_type, text_cfg=text_cfg)).text_config).eval())


def make_texts(model, lengths=(4, 7, 10)) -> torch.Tensor:
    ids = torch.randint(2, VOCAB_SIZE, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(3))
    for row, length in enumerate(lengths):
        ids[row, length:] = model.config.pad_token_id
    return ids


@every_encoder
def test_hf_text_model_builds_the_encoder_alone(model_type):
    names = [name for name, _ in make_tower(model_type).named_parameters()]
    assert not any(word in name for name in names for word in ("decoder", "pooler", "shared", "lm_head"))
    assert sum(name.endswith(("embed_tokens.weight", "word_embeddings.weight")) for name in names) == 1


@pytest.mark.parametrize(
    ("model_type", "pooler", "expected"),
    [
        ("roberta", "cls_pooler", True),
        ("bert", "cls_pooler", True),
        ("bert", "cls_last_hidden_state_pooler", False),
        ("xlm-roberta", "mean_pooler", False),
        ("m2m_100", "cls_pooler", False),
    ],
)
def test_hf_text_model_has_a_pooling_layer_where_it_is_used(model_type, pooler, expected):
    model = make_tower(model_type, hf_pooler_type=pooler)
    assert any(name.startswith("hf_model.pooler.dense") for name, _ in model.named_parameters()) == expected


@every_encoder
def test_hidden_states_and_attentions_of_every_encoder_are_recorded(model_type):
    model = make_tower(model_type, hf_pooler_type="cls_pooler")
    model.set_attn_implementation("eager")
    outputs = model(make_texts(model), output_hidden_states=True, output_attentions=True)
    assert [states.shape for states in outputs.hidden_states] == [(3, 10, 36)] * 3
    assert [weights.shape for weights in outputs.attentions] == [(3, 3, 10, 10)] * 2
    assert torch.equal(outputs.hidden_states[-1][:, 1:], outputs.last_hidden_state)


@every_encoder
@pytest.mark.parametrize("pooler", ["mean_pooler", "max_pooler", "cls_pooler", "cls_last_hidden_state_pooler"])
def test_padding_behind_a_text_changes_nothing(model_type, pooler):
    model = make_tower(model_type, hf_pooler_type=pooler)
    texts = make_texts(model)
    with torch.no_grad():
        padded = model(texts).pooler_output
        alone = [model(texts[row : row + 1, :length]).pooler_output for row, length in enumerate((4, 7, 10))]
    assert torch.allclose(padded, torch.cat(alone), atol=1e-5)


@every_encoder
def test_left_padding_of_any_id_changes_nothing(model_type):
    model = make_tower(model_type)
    texts = make_texts(model)
    padded = torch.nn.functional.pad(texts, (1, 0), value=77)
    attention_mask = torch.nn.functional.pad(torch.ones_like(texts), (1, 0))
    position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = model(texts)
        outputs = model(padded, attention_mask, position_ids)
    assert torch.allclose(outputs.pooler_output, expected.pooler_output, atol=1e-5)
    visible = texts != model.config.pad_token_id
    assert torch.allclose(outputs.last_hidden_state[:, 1:][visible], expected.last_hidden_state[visible], atol=1e-5)


def test_max_pooler_takes_the_largest_value_of_the_tokens_that_are_no_padding():
    model = make_tower("roberta", hf_pooler_type="max_pooler")
    texts = make_texts(model)
    outputs = model(texts)
    expected = torch.stack([tokens[:n].amax(0) for tokens, n in zip(outputs.last_hidden_state, (4, 7, 10))])
    assert torch.allclose(outputs.pooler_output, model.projection(expected), atol=1e-6)


@every_encoder
def test_sdpa_gives_what_eager_gives_in_every_encoder(model_type):
    model = make_tower(model_type)
    if not model.hf_model._supports_sdpa:
        pytest.skip("T5 has an attention of its own in the oldest supported transformers")
    outputs = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        assert model.config.hf_config._attn_implementation == implementation
        outputs.append(model(make_texts(model)).pooler_output)
    assert torch.allclose(*outputs, atol=1e-5)


@pytest.mark.parametrize(
    "model_type", [name if name == "m2m_100" else pytest.param(name, marks=pytest.mark.slow) for name in HF_ENCODERS]
)
def test_encoder_compiles_without_a_graph_break(model_type):
    torch.compiler.reset()
    model = make_tower(model_type)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(make_texts(model)).pooler_output, model(make_texts(model)).pooler_output)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_.* is deprecated:FutureWarning")
@every_encoder
def test_gradient_checkpointing_of_every_encoder_changes_no_gradient(model_type):
    model = make_tower(model_type).train()

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        (model(make_texts(model)).pooler_output ** 2).mean().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    expected = gradients()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing]
    forwards = []
    for layer in layers:
        next(layer.children()).register_forward_hook(lambda *_: forwards.append(1))
    assert len(layers) == 2
    for name, gradient in gradients().items():
        assert torch.equal(gradient, expected[name]), name
        assert gradient.isfinite().all() and gradient.any(), name


@every_encoder
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_tables_of_the_encoder_are_right_after_loading(model_type, dtype, tmp_path, memory_of_nans):
    # No file holds them, and models are built on the meta device.
    model = make_tower(model_type)
    model.save_pretrained(tmp_path)
    loaded = HfTextModel.from_pretrained(tmp_path, dtype=dtype)
    expected = dict(model.to(dtype).named_buffers())
    assert loaded.state_dict().keys() & expected.keys() == set()
    assert dict(loaded.named_buffers()).keys() == expected.keys()
    for name, table in loaded.named_buffers():
        assert table.device.type == "cpu" and torch.equal(table, expected[name]), name


@every_encoder
def test_token_embeddings_of_every_encoder_can_grow(model_type):
    model = make_tower(model_type)
    texts = make_texts(model)
    with torch.no_grad():
        expected = model(texts).pooler_output
        rows = model.config.vocab_size
        model.resize_token_embeddings(rows + 5)
        assert torch.allclose(model(texts).pooler_output, expected, atol=1e-6)
        assert model(texts.clamp(min=rows + 2)).pooler_output.isfinite().all()
    assert model.config.vocab_size == model.config.hf_config.vocab_size == rows + 5
    assert model.get_input_embeddings().weight.shape == (rows + 5, 36)


def test_hf_text_model_loads_from_the_folder_of_a_whole_model(tmp_path):
    model = OpenClipModel(tiny_config(tiny_hf_text_cfg("mt5")))
    model.save_pretrained(tmp_path)
    loaded, info = HfTextModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, model.text_model.state_dict()[name]), name


@pytest.fixture
def coca() -> CoCaModel:
    config = tiny_config(tiny_hf_coca_cfg("roberta"))
    config.pad_token_id = config.text_config.pad_token_id
    return randomized(CoCaModel(config).eval())


def test_coca_makes_no_cache_for_a_bidirectional_text_tower(coca):
    inputs = tiny_inputs(coca)
    with torch.no_grad():
        expected, outputs = coca(**inputs), coca(**inputs, use_cache=True)
    assert CACHE_NAME not in outputs
    assert torch.equal(outputs.logits, expected.logits)
    assert torch.equal(outputs.text_embeds, expected.text_embeds)


def test_coca_refuses_a_cache_for_a_bidirectional_text_tower(coca):
    with pytest.raises(ValueError, match=r"bidirectional.*without a cache"):
        coca(**tiny_inputs(coca), cache=DynamicCache())


@pytest.mark.parametrize("strategy", [{}, {"num_beams": 3}, {"num_beams": 4, "num_beam_groups": 2}])
def test_coca_encodes_each_image_once_and_each_text_anew(coca, strategy):
    calls = []
    coca.vision_model.register_forward_hook(lambda *_: calls.append("image"))
    coca.text_model.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape[1]))
    coca.generate(pixel_values=tiny_inputs(coca)["pixel_values"], max_length=6, min_length=6, **strategy)
    assert calls == ["image", 1, 2, 3, 4, 5]


def test_coca_continues_prompts_of_different_lengths(coca):
    pixel_values = tiny_inputs(coca)["pixel_values"][:2]
    prompts = torch.tensor([[5, 9, 17, 33], [1, 1, 5, 8]])
    attention_mask = (prompts != 1).long()
    together = coca.generate(
        pixel_values=pixel_values, input_ids=prompts, attention_mask=attention_mask, max_new_tokens=4
    )
    first = coca.generate(pixel_values=pixel_values[:1], input_ids=prompts[:1], max_new_tokens=4)
    second = coca.generate(pixel_values=pixel_values[1:], input_ids=prompts[1:, 2:], max_new_tokens=4)
    assert together[0].tolist() == first[0].tolist()
    assert together[1, 2:].tolist() == second[0].tolist()


def test_coca_takes_texts_longer_than_its_decoder(coca):
    # In open_clip the last token is no more than a label: `coca_roberta-ViT-B-32` has texts of 77 and a decoder of 76.
    inputs = tiny_inputs(coca, length=11)
    assert coca.config.text_config.max_position_embeddings == 11
    assert coca.config.multimodal_config.max_position_embeddings == coca.config.max_position_embeddings == 10
    outputs = coca(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] > VOCAB_SIZE - 1, -100))
    assert outputs.logits.shape == (3, 11, VOCAB_SIZE) and outputs.loss.isfinite()
