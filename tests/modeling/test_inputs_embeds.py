"""Embedded tokens instead of ids: the same values, soft prompts, and PEFT's wrappers that pass them."""

import pytest
import torch
from tiny_configs import tiny_coca_cfg, tiny_hf_text_cfg
from tiny_models import randomized, tiny_config, tiny_inputs, tiny_model

from open_clip_transformers.modeling.modeling_coca import CoCaModel
from open_clip_transformers.modeling.modeling_hf_text import HfTextModel


STRATEGIES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "static": {"cache_implementation": "static"},
    "padded": {"attention_mask": torch.tensor([[1, 1, 1, 1, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])},
}


def inputs_without_padding(model, length: int = 5) -> dict[str, torch.Tensor]:
    inputs = tiny_inputs(model)
    return {**inputs, "input_ids": inputs["input_ids"][:, :length].clamp(min=1)}


OTHERS = ["coca_hf_text", "coca_modern", "mammut_modern"]


def embedded(model, inputs: dict) -> dict[str, torch.Tensor]:
    """`inputs` with embeddings instead of ids."""
    others = {name: value for name, value in inputs.items() if name != "input_ids"}
    return {**others, "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}


@pytest.mark.parametrize("name", ["text_with_class_token", "hf_text", "modern_text", "coca", *OTHERS])
def test_embeddings_give_what_their_ids_give(name):
    model = tiny_model(name)
    inputs = inputs_without_padding(model)
    with torch.no_grad():
        expected, outputs = model(**inputs), model(**embedded(model, inputs))
        for key in ("logits", "text_embeds", "last_hidden_state", "pooler_output"):
            if key in expected:
                assert torch.equal(outputs[key], expected[key])


@pytest.mark.parametrize("name", ["coca", *OTHERS])
def test_gradients_reach_a_soft_prompt(name):
    model = tiny_model(name)
    inputs = inputs_without_padding(model)
    soft = torch.randn(3, 2, 36, requires_grad=True)
    embeds = torch.cat([soft, embedded(model, inputs)["inputs_embeds"]], dim=1)
    labels = torch.nn.functional.pad(inputs["input_ids"], (2, 0), value=-100)
    model(inputs_embeds=embeds, pixel_values=inputs["pixel_values"], labels=labels, return_loss=True).loss.backward()
    assert soft.grad.isfinite().all() and soft.grad.flatten(1).any(dim=1).all()


@pytest.mark.parametrize("name", ["coca", "coca_modern", "mammut_modern"])
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_generate_continues_embeddings(strategy, name):
    model = tiny_model(name)
    inputs = inputs_without_padding(model)
    arguments = {"max_length": 10, "eos_token_id": None, **strategy}
    captions = model.generate(**inputs, **arguments)
    assert torch.equal(model.generate(**embedded(model, inputs), **arguments), captions[:, 5:])


def test_generate_counts_the_positions_of_embeddings():
    model = tiny_model("coca")
    inputs = embedded(model, inputs_without_padding(model))
    assert model.generate(**inputs, max_new_tokens=5, eos_token_id=None).shape == (3, 5)
    with pytest.raises(ValueError, match="prompt of 5 tokens with max_length=11 does not fit"):
        model.generate(**inputs, max_new_tokens=6)


def test_generate_of_a_bidirectional_text_tower_takes_ids_alone():
    model = tiny_model("coca_hf_text")
    with pytest.raises(ValueError, match=r"bidirectional.*pass input_ids"):
        model.generate(**embedded(model, inputs_without_padding(model)))


@pytest.mark.parametrize("name", ["text", "text_with_class_token", "hf_text", "coca", "coca_hf_text"])
def test_ids_and_embeddings_exclude_each_other(name):
    model = tiny_model(name)
    inputs = tiny_inputs(model)
    embeds = embedded(model, inputs)["inputs_embeds"]
    with pytest.raises(ValueError, match="input_ids or inputs_embeds, got input_ids and inputs_embeds"):
        model(**inputs, inputs_embeds=embeds)
    del inputs["input_ids"]
    with pytest.raises(ValueError, match=r"inputs_embeds have shape \(3, 10, 35\), .* \(batch, length, 36\)"):
        model(**inputs, inputs_embeds=embeds[..., 1:])
    if name == "text":
        with pytest.raises(ValueError, match="knows by its id: pass input_ids"):
            model(**inputs, inputs_embeds=embeds)


@pytest.mark.parametrize("encoder", ["roberta", "m2m_100"])
def test_encoders_that_count_positions_refuse_left_padding_of_embeddings(encoder):
    model = HfTextModel(tiny_config(tiny_hf_text_cfg(encoder)).text_config)
    embeds = torch.randn(2, 4, model.config.token_dim)
    model(inputs_embeds=embeds, attention_mask=torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]))
    with pytest.raises(ValueError, match="pad inputs_embeds on the right"):
        model(inputs_embeds=embeds, attention_mask=torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]))


@pytest.mark.parametrize(
    ("name", "task"),
    [("coca", "CAUSAL_LM"), ("coca", "FEATURE_EXTRACTION"), ("coca", "SEQ_2_SEQ_LM"), ("clip", "FEATURE_EXTRACTION")],
)
def test_wrappers_of_peft_change_nothing_before_training(name, task):
    peft = pytest.importorskip("peft")
    model = tiny_model(name)
    inputs = tiny_inputs(model)
    with torch.no_grad():
        expected = model(**inputs)
        wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type=task, target_modules=["q_proj"])).eval()
        outputs = wrapped(**inputs)
    assert torch.equal(outputs.logits_per_image, expected.logits_per_image)
    if name == "coca":
        assert torch.equal(outputs.logits, expected.logits)
        assert wrapped.generate(pixel_values=inputs["pixel_values"], max_new_tokens=3).shape[0] == 3


@pytest.mark.parametrize(
    ("method", "settings"),
    [("PromptTuning", {}), ("PromptEncoder", {"encoder_hidden_size": 8}), ("PrefixTuning", {})],
    ids=["prompt", "p_tuning", "prefix"],
)
def test_soft_prompts_of_peft_learn_and_caption(method, settings):
    peft = pytest.importorskip("peft")
    # A prefix is a cache of heads that are alike in all layers.
    heads = {"heads": 4, "width": 36}
    model = randomized(CoCaModel(tiny_config(tiny_coca_cfg(text_cfg=heads, multimodal_cfg=heads))).eval())
    model.generation_config.eos_token_id = None
    inputs = inputs_without_padding(model)
    config = getattr(peft, f"{method}Config")(task_type="CAUSAL_LM", num_virtual_tokens=2, **settings)
    tuned = peft.get_peft_model(model, config).eval()
    outputs = tuned(**inputs, labels=inputs["input_ids"], attention_mask=torch.ones_like(inputs["input_ids"]))
    outputs.loss.backward()
    assert all(weight.grad.any() for weight in tuned.prompt_encoder.parameters())
    with torch.no_grad():
        for weight in tuned.prompt_encoder.parameters():
            weight.normal_(std=2)
        texts = inputs["input_ids"][:, :3]
        expected, images = texts, {"pixel_values": inputs["pixel_values"]}
        for _ in range(4):
            expected = torch.cat([expected, tuned(input_ids=expected, **images).logits[:, -1:].argmax(dim=-1)], dim=1)
        assert torch.equal(tuned.generate(input_ids=texts, max_new_tokens=4, **images), expected)
        beams = tuned.generate(
            input_ids=texts, max_new_tokens=4, num_beams=3, return_dict_in_generate=True, output_scores=True, **images
        )
        logits = tuned(input_ids=beams.sequences[:, :-1], **images).logits[:, -4:]
        chosen = logits.log_softmax(dim=-1).gather(2, beams.sequences[:, -4:, None])
        assert torch.allclose(beams.sequences_scores, chosen.sum(dim=(1, 2)) / 4, atol=1e-4)


def test_prefix_of_other_heads_than_the_models_is_refused():
    peft = pytest.importorskip("peft")
    model = tiny_model("coca")
    tuned = peft.get_peft_model(model, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).eval()
    with pytest.raises(ValueError, match="has 3 heads of width 12, and this model 4 of width 9"):
        tuned(**inputs_without_padding(model))
