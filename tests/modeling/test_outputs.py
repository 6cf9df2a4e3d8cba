"""Outputs beside the main result: hidden states, attentions, tuples; and what goes in and out by embedding."""

import pytest
import torch
from tiny_configs import VOCAB_SIZE
from tiny_models import MODELS, main_outputs, tiny_inputs, tiny_model
from transformers.utils import output_capturing


IMAGES, LENGTH = 3, 10
PATCHES = 1 + 3 * 3

# Model -> the name of its recorded outputs' holder (`None` for the output itself), layers, heads, tokens, width.
TOWERS = {
    "vit": ("vit", None, 3, 2, PATCHES, 40),
    "siglip_vit": ("siglip_vit", None, 3, 3, 3 + 3 * 4, 36),
    "text": ("text", None, 2, 3, LENGTH, 36),
    "text_with_class_token": ("text_with_class_token", None, 2, 3, LENGTH + 1, 36),
    "hf_text": ("hf_text", None, 2, 3, LENGTH, 36),
    "vision_with_projection": ("vision_with_projection", None, 3, 2, PATCHES, 40),
    "text_with_projection": ("text_with_projection", None, 2, 3, LENGTH, 36),
    "image_classification": ("image_classification", None, 3, 2, PATCHES, 40),
    "clip_vision": ("clip", "vision_model_output", 3, 2, PATCHES, 40),
    "clip_text": ("clip", "text_model_output", 2, 3, LENGTH, 36),
    "coca_vision": ("coca", "vision_model_output", 3, 2, PATCHES, 36),
    "coca_text": ("coca", "text_model_output", 2, 3, LENGTH + 1, 36),
    "coca_decoder": ("coca", None, 2, 4, LENGTH, 36),
    "coca_modern_decoder": ("coca_modern", None, 3, 3, LENGTH, 36),
    "mammut_modern_decoder": ("mammut_modern", None, 4, 3, LENGTH, 36),
    "coca_hf_text_decoder": ("coca_hf_text", None, 2, 4, LENGTH, 36),
}


@pytest.mark.floor
@pytest.mark.parametrize(("name", "holder", "layers", "heads", "tokens", "width"), TOWERS.values(), ids=TOWERS)
def test_hidden_states_and_attentions_are_recorded(name, holder, layers, heads, tokens, width):
    model = tiny_model(name)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        plain = model(**tiny_inputs(model))
        outputs = model(**tiny_inputs(model), output_hidden_states=True, output_attentions=True)
    assert all(torch.equal(a, b) for a, b in zip(main_outputs(plain), main_outputs(outputs), strict=True))
    plain, outputs = (value if holder is None else value[holder] for value in (plain, outputs))
    assert plain.get("hidden_states") is None and plain.get("attentions") is None
    assert [states.shape for states in outputs.hidden_states] == [(IMAGES, tokens, width)] * (1 + layers)
    assert [weights.shape for weights in outputs.attentions] == [(IMAGES, heads, tokens, tokens)] * layers
    for weights in outputs.attentions:
        assert torch.allclose(weights.sum(-1), torch.ones(()))


@pytest.mark.floor
@pytest.mark.parametrize("name", ["vit", "siglip_vit", "resnet", "text", "hf_text"])
@pytest.mark.parametrize("output", ["hidden_states", "attentions"])
def test_outputs_are_recorded_where_the_configuration_of_a_tower_asks(name, output):
    model = tiny_model(name)
    model.set_attn_implementation("eager")
    asked = model(**tiny_inputs(model), **{f"output_{output}": True})[output]
    setattr(model.config, f"output_{output}", True)
    assert len(model(**tiny_inputs(model))[output]) == len(asked) > 0


def test_coca_output_has_the_name_of_captioners_for_its_vision_output():
    model = tiny_model("coca")
    outputs = model(**tiny_inputs(model))
    assert outputs.image_outputs is outputs.vision_model_output
    assert "image_outputs" not in outputs


@pytest.mark.floor
def test_hidden_states_run_from_the_embeddings_to_the_last_layer():
    model = tiny_model("vit")
    pixel_values = tiny_inputs(model)["pixel_values"]
    with torch.no_grad():
        hidden_states = model(pixel_values, output_hidden_states=True).hidden_states
        expected = model.pre_layernorm(model.embeddings(pixel_values))
        assert torch.equal(hidden_states[0], expected)
        for layer, states in zip(model.encoder.layers, hidden_states[1:], strict=True):
            expected = layer(expected)
            assert torch.equal(states, expected)


def test_hidden_states_of_coca_decoder_start_with_the_text_tokens():
    model = tiny_model("coca")
    with torch.no_grad():
        outputs = model(**tiny_inputs(model), output_hidden_states=True)
    assert torch.equal(outputs.hidden_states[0], outputs.text_model_output.last_hidden_state)
    assert torch.allclose(model.lm_head(outputs.hidden_states[-1]), outputs.logits, atol=1e-6)


@pytest.mark.floor
@pytest.mark.parametrize("captions", [1, 2], ids=["one_caption_an_image", "two_captions_an_image"])
def test_cross_attentions_have_a_row_for_each_caption(captions):
    model = tiny_model("coca")
    model.set_attn_implementation("eager")
    inputs = tiny_inputs(model)
    inputs["input_ids"] = inputs["input_ids"].repeat_interleave(captions, dim=0)
    with torch.no_grad():
        cross_attentions = model(**inputs, output_attentions=True).cross_attentions
    assert [weights.shape for weights in cross_attentions] == [(IMAGES * captions, 4, LENGTH, 7)] * 2
    for weights in cross_attentions:
        assert torch.allclose(weights.sum(-1), torch.ones(()))
        # The same caption twice attends in the same way.
        assert torch.allclose(weights[::captions], weights[captions - 1 :: captions], atol=1e-6)


@pytest.mark.floor
def test_coca_predicts_several_captions_of_an_image_from_one_image_row():
    model = tiny_model("coca")
    inputs = tiny_inputs(model)
    other = inputs["input_ids"].flip(0)
    together = torch.stack([inputs["input_ids"], other], dim=1).flatten(0, 1)
    with torch.no_grad():
        logits = model(together, inputs["pixel_values"]).logits
        expected = [model(ids, inputs["pixel_values"]).logits for ids in (inputs["input_ids"], other)]
    assert torch.allclose(logits[0::2], expected[0], atol=1e-5)
    assert torch.allclose(logits[1::2], expected[1], atol=1e-5)


@pytest.mark.floor
@pytest.mark.parametrize("asked_in", ["call", "config"])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_come_as_tuples_on_request(name, asked_in):
    model = tiny_model(name)
    inputs = tiny_inputs(model)
    with torch.no_grad():
        expected = model(**inputs)
        model.config.return_dict = asked_in == "call"
        values = model(**inputs, **({"return_dict": False} if asked_in == "call" else {}))
    assert type(values) is tuple
    assert len(values) == len(expected)
    for ours, reference in zip(values, expected.to_tuple(), strict=True):
        assert type(ours) is type(reference) and type(ours) in (tuple, torch.Tensor)
        if isinstance(ours, torch.Tensor):
            assert torch.equal(ours, reference)


@pytest.mark.floor
@pytest.mark.parametrize("name", ["clip", "siglip", "coca"])
def test_features_are_output_objects_with_the_embedding(name):
    model = tiny_model(name)
    inputs = tiny_inputs(model)
    with torch.no_grad():
        outputs = model(**inputs)
        image = model.get_image_features(inputs["pixel_values"])
        text = model.get_text_features(inputs["input_ids"])
    normalize = torch.nn.functional.normalize
    assert torch.allclose(normalize(image.pooler_output, dim=-1), outputs.image_embeds, atol=1e-6)
    assert torch.allclose(normalize(text.pooler_output, dim=-1), outputs.text_embeds, atol=1e-6)
    assert not torch.allclose(image.pooler_output.norm(dim=-1), torch.ones(()))
    assert torch.equal(text.last_hidden_state, outputs.text_model_output.last_hidden_state)
    assert type(model.get_image_features(inputs["pixel_values"], return_dict=False)) is tuple
    assert type(model.get_text_features(inputs["input_ids"], return_dict=False)) is tuple


def test_single_tower_heads_give_the_towers_embedding():
    for name, tower, embeds in (
        ("vision_with_projection", "vision_model", "image_embeds"),
        ("text_with_projection", "text_model", "text_embeds"),
    ):
        model = tiny_model(name)
        with torch.no_grad():
            outputs = model(**tiny_inputs(model))
            expected = getattr(model, tower)(**tiny_inputs(model))
        assert torch.equal(outputs[embeds], expected.pooler_output)
        assert torch.equal(outputs.last_hidden_state, expected.last_hidden_state)


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 4])], ids=["last", "last_three", "indices"])
def test_logits_to_keep_computes_those_logits_alone(keep):
    model = tiny_model("coca")
    with torch.no_grad():
        expected = model(**tiny_inputs(model)).logits
        kept = model(**tiny_inputs(model), logits_to_keep=keep).logits
    expected = expected[:, -keep:] if isinstance(keep, int) else expected[:, keep]
    assert torch.allclose(kept, expected, atol=1e-6)


@pytest.mark.floor
@pytest.mark.parametrize("name", ["text", "text_with_projection", "clip", "siglip", "coca"])
def test_token_embeddings_are_reachable_and_can_grow(name):
    model = tiny_model(name)
    inputs = tiny_inputs(model)
    with torch.no_grad():
        expected = main_outputs(model(**inputs))
        rows = model.get_input_embeddings().weight.clone()
        model.resize_token_embeddings(VOCAB_SIZE + 6)
        assert model.get_input_embeddings().weight.shape == (VOCAB_SIZE + 6, 36)
        assert torch.equal(model.get_input_embeddings().weight[:VOCAB_SIZE], rows)
        outputs = model(**inputs)
    assert model.config.get_text_config().vocab_size == VOCAB_SIZE + 6
    for ours, reference in zip(main_outputs(outputs), expected, strict=True):
        ours = ours[..., :VOCAB_SIZE] if name == "coca" and ours.shape[-1] == VOCAB_SIZE + 6 else ours
        assert torch.allclose(ours, reference, atol=1e-6)


@pytest.mark.floor
@pytest.mark.parametrize("name", ["text", "text_with_projection", "clip", "coca", "coca_for_zero_shot"])
def test_texts_with_added_tokens_are_pooled_at_their_end(tmp_path, name):
    model = tiny_model(name)
    model.resize_token_embeddings(VOCAB_SIZE + 1)
    model.save_pretrained(tmp_path)
    inputs = tiny_inputs(model)
    inputs["input_ids"][0, 3] = VOCAB_SIZE
    changed = inputs["input_ids"].clone()
    changed[0, 5] = 7  # behind the new token
    for each in (model, type(model).from_pretrained(tmp_path)):
        assert each.base_model.config.get_text_config().vocab_size == VOCAB_SIZE + 1
        with torch.no_grad():
            forward = getattr(each, "get_text_features", each)
            outputs = (forward(ids) for ids in (inputs["input_ids"], changed))
            embeds, other = (o.get("text_embeds", o.get("pooler_output")) for o in outputs)
        assert not torch.allclose(embeds[0], other[0], atol=1e-3)


@pytest.mark.floor
def test_coca_vocabulary_grows_in_every_part(tmp_path):
    model = tiny_model("coca")
    model.resize_token_embeddings(VOCAB_SIZE + 6)
    assert model.lm_head.weight.shape == (VOCAB_SIZE + 6, 36)
    assert model.get_output_embeddings() is model.lm_head
    assert model.config.text_config.vocab_size == model.config.multimodal_config.vocab_size == VOCAB_SIZE + 6
    labels = tiny_inputs(model)["input_ids"]
    labels[0, 3] = VOCAB_SIZE + 2
    assert model(**tiny_inputs(model), labels=labels).loss.isfinite()
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).lm_head.weight.shape == (VOCAB_SIZE + 6, 36)


@pytest.mark.parametrize("name", MODELS)
def test_input_embeddings_can_be_set(name):
    model = tiny_model(name)
    if name in ("vision_with_projection", "image_classification"):
        model = model.vision_model
    new = torch.nn.Identity()
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new


@pytest.mark.parametrize("captions", [1, 2], ids=["one_caption_an_image", "two_captions_an_image"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_gradients_of_logits_reach_cross_attentions(captions, checkpointing):
    model = tiny_model("coca")
    model.set_attn_implementation("eager")
    inputs = tiny_inputs(model)
    inputs["input_ids"] = inputs["input_ids"].repeat_interleave(captions, dim=0)
    if checkpointing:
        model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    outputs = model(**inputs, output_attentions=True)
    for layers in (outputs.cross_attentions, outputs.attentions, outputs.text_model_output.attentions):
        for weights, gradient in zip(layers, torch.autograd.grad(outputs.logits[1, 5, 7], layers, retain_graph=True)):
            assert gradient.shape == weights.shape
            assert gradient[1].any() and not gradient[torch.arange(len(gradient)) != 1].any()


@pytest.mark.parametrize("name", ["resnet", "clip_resnet"])
def test_gradients_of_embeddings_reach_the_attentions_of_a_resnet(name):
    model = tiny_model(name)
    model.set_attn_implementation("eager")
    outputs = model(**tiny_inputs(model), output_attentions=True)
    tower = outputs if name == "resnet" else outputs.vision_model_output
    (gradient,) = torch.autograd.grad(tower.pooler_output[0, 3], tower.attentions)
    assert gradient.shape == tower.attentions[0].shape and gradient[0].any() and not gradient[1:].any()


@pytest.mark.parametrize(
    "name", ["vit", "siglip_vit", "resnet", "timm_vision", "text", "hf_text", "coca", "coca_hf_text"]
)
@pytest.mark.parametrize("selection", [[0], [1, -1], -2, [0, 40]], ids=str)
def test_hidden_states_are_selected_by_index(name, selection):
    model = tiny_model(name)
    with torch.no_grad():
        every = model(**tiny_inputs(model), output_hidden_states=True).hidden_states
        selected = model(**tiny_inputs(model), output_hidden_states=selection).hidden_states
    if not hasattr(output_capturing, "selected_hidden_states") and not name.startswith(("coca", "timm")):
        pytest.skip("this transformers takes a selection for True")
    indices = [selection] if isinstance(selection, int) else selection
    wanted = {range(len(every))[index] for index in indices if index < len(every)}
    assert len(selected) == len(every)
    for index, states in enumerate(every):
        assert selected[index] is None if index not in wanted else torch.equal(selected[index], states)


def test_text_configuration_of_coca_counts_what_generate_records():
    model = tiny_model("coca")
    model.set_attn_implementation("eager")
    outputs = model.generate(
        pixel_values=tiny_inputs(model)["pixel_values"],
        max_new_tokens=3,
        return_dict_in_generate=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    layers = model.config.get_text_config().num_hidden_layers
    assert [len(attentions) for attentions in outputs.attentions] == [layers] * 3
    assert [len(states) for states in outputs.hidden_states] == [layers + 1] * 3
