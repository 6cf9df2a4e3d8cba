"""Captioners with modern layers beyond open_clip's values: caches, what goes with what, and tied heads."""

import pytest
import torch
from tiny_configs import tiny_coca_cfg, tiny_mammut_4_cfg, tiny_modern_coca_cfg, tiny_modern_mammut_cfg
from tiny_models import BOS, PAD, randomized, tiny_config, tiny_inputs, tiny_model
from transformers import AutoModel, DynamicCache

from open_clip_transformers.configuration.configuration_coca import CoCaConfig
from open_clip_transformers.configuration.configuration_mammut import MaMMUTConfig
from open_clip_transformers.configuration.configuration_modern_decoder import (
    CoCaModernDecoderConfig,
    MaMMUTModernDecoderConfig,
)
from open_clip_transformers.modeling.modeling_coca import CoCaForConditionalGeneration
from open_clip_transformers.modeling.modeling_mammut import MaMMUTForConditionalGeneration
from open_clip_transformers.modeling.transformers_compat import CACHE_NAME


pytestmark = pytest.mark.floor

EVERY = ("coca_modern", "mammut_modern")
every_captioner = pytest.mark.parametrize("name", EVERY)
STRATEGIES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "open_clip_groups": {"num_beams": 4, "num_beam_groups": 2},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
}


def count_calls(module: torch.nn.Module) -> list:
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@every_captioner
def test_caches_change_no_caption_and_images_are_encoded_once(name, strategy):
    model = tiny_model(name)
    pixel_values = tiny_inputs(model)["pixel_values"]
    prompts = torch.tensor([[BOS, 7, 8], [PAD, BOS, 9], [PAD, PAD, BOS]])
    inputs = {"pixel_values": pixel_values, "input_ids": prompts, "attention_mask": (prompts != PAD).long()}
    images = count_calls(model.vision_model)
    keys = [count_calls(layer.cross_attn.k_proj) for layer in model.multimodal_decoder.cross_attention_layers]
    captions = []
    for settings in ({"use_cache": False}, {}, {"cache_implementation": "static"}):
        torch.manual_seed(0)
        captions.append(model.generate(**inputs, max_length=9, eos_token_id=None, **strategy, **settings).tolist())
    assert captions[0] == captions[1] == captions[2]
    assert len(images) == 3
    assert {len(calls) for calls in keys} == {6 + 1 + 1}  # once a step without a cache, once with one


@every_captioner
def test_a_step_sees_what_all_tokens_together_see(name):
    model = tiny_model(name)
    inputs = tiny_inputs(model)
    ids = inputs["input_ids"]
    with torch.no_grad():
        expected = model(**inputs).logits
        first = model(**{**inputs, "input_ids": ids[:, :4]}, use_cache=True)
        rest = model(input_ids=ids[:, 4:], cache=first[CACHE_NAME])
    assert torch.allclose(torch.cat([first.logits, rest.logits], dim=1), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("text_cfg", "what"),
    [({"reg_tokens": 2}, "has register tokens"), ({"attention_mode": "bidirectional"}, "is bidirectional")],
    ids=["registers", "bidirectional"],
)
def test_text_towers_that_cannot_be_continued_say_so(text_cfg, what):
    config = tiny_config(tiny_modern_coca_cfg(text_cfg=text_cfg))
    model = randomized(CoCaForConditionalGeneration(config).eval())
    pixel_values = tiny_inputs(model)["pixel_values"]
    captions = model.generate(pixel_values=pixel_values, max_length=7, eos_token_id=None)
    with torch.no_grad():
        for length in range(1, 7):
            logits = model(input_ids=captions[:, :length], pixel_values=pixel_values).logits
            assert torch.equal(logits[:, -1].argmax(-1), captions[:, length])
    with pytest.raises(ValueError, match=f"text tower of this model {what}.*without a cache"):
        model(input_ids=captions, pixel_values=pixel_values, cache=DynamicCache())
    with pytest.raises(ValueError, match=f"text tower of this model {what}.*leave it out"):
        model.generate(pixel_values=pixel_values, cache_implementation="static")
    with pytest.raises(ValueError, match=r"cannot continue from a cache: .* without a cache"):
        model.text_model(captions, cache=DynamicCache())


def test_bidirectional_text_towers_hide_padding_inside_captions():
    """Padding is known by its id alone while a text captions, which open_clip does too."""
    config = tiny_config(tiny_modern_coca_cfg(text_cfg={"attention_mode": "bidirectional"}))
    model = randomized(CoCaForConditionalGeneration(config).eval())
    pixel_values = tiny_inputs(model)["pixel_values"]
    arguments = {"pixel_values": pixel_values, "max_length": 8, "eos_token_id": None}
    config.text_config.pad_token_id = int(model.generate(**arguments)[0, 1])
    outputs = model.generate(**arguments, output_logits=True, return_dict_in_generate=True)
    assert (outputs.sequences[:, 1:-1] == config.text_config.pad_token_id).any()
    with torch.no_grad():
        for length, logits in enumerate(outputs.logits, start=1):
            expected = model(input_ids=outputs.sequences[:, :length], pixel_values=pixel_values).logits[:, -1]
            assert torch.allclose(logits, expected, atol=1e-5)


@every_captioner
def test_captions_without_a_start_are_refused(name):
    model = tiny_model(name)
    pixel_values = tiny_inputs(model)["pixel_values"]
    expected = model.generate(pixel_values=pixel_values, max_length=5, eos_token_id=None)
    model.config.bos_token_id = model.generation_config.bos_token_id = None
    with pytest.raises(ValueError, match=r"no bos_token_id, from which captions start: pass one, or input_ids"):
        model.generate(pixel_values=pixel_values)
    given = model.generate(pixel_values=pixel_values, max_length=5, eos_token_id=None, bos_token_id=BOS)
    assert torch.equal(given, expected)


def test_the_head_of_a_mammut_may_be_its_token_embedding(tmp_path):
    config = tiny_config(tiny_modern_mammut_cfg(multimodal_cfg={"tie_lm_head": True}))
    model = randomized(MaMMUTForConditionalGeneration(config).eval())
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.get_input_embeddings().weight
    inputs = tiny_inputs(model)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    again.resize_token_embeddings(101)
    assert again.lm_head.weight.shape == again.get_input_embeddings().weight.shape == (101, 36)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: MaMMUTConfig(text_config={"model_type": "open_clip_modern_text", "is_causal": False}),
            "is of type 'open_clip_mammut_modern_decoder', got multimodal_config of type 'open_clip_mammut_decoder'",
        ),
        (
            lambda: MaMMUTConfig(multimodal_config=MaMMUTModernDecoderConfig()),
            "is of type 'open_clip_mammut_decoder', got multimodal_config of type 'open_clip_mammut_modern_decoder'",
        ),
        (
            lambda: MaMMUTConfig(
                text_config={"model_type": "open_clip_modern_text"}, multimodal_config=MaMMUTModernDecoderConfig()
            ),
            "is_causal must be false and num_register_tokens 0, got True and 0",
        ),
        (
            lambda: CoCaConfig(multimodal_config={"model_type": "open_clip_mammut_decoder"}),
            "multimodal_config: model_type must be one of open_clip_coca_decoder, open_clip_coca_modern_decoder",
        ),
        (lambda: CoCaModernDecoderConfig(cross_attention_layers=[0, 12]), "must hold indices of the 12 layers"),
        (lambda: MaMMUTModernDecoderConfig(num_hidden_layers=5), "num_hidden_layers is 5.* has 6 entries"),
        (lambda: CoCaModernDecoderConfig(hidden_size=9, num_attention_heads=3), "heads must be of an even width"),
    ],
    ids=["decoder", "text", "causal", "coca", "layers", "number", "heads"],
)
def test_parts_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make_cfg",
    [tiny_coca_cfg, tiny_mammut_4_cfg, tiny_modern_coca_cfg, tiny_modern_mammut_cfg],
    ids=lambda f: f.__name__,
)
def test_configurations_of_decoders_come_back_from_files(make_cfg, tmp_path):
    config = tiny_config(make_cfg())
    config.save_pretrained(tmp_path)
    again = type(config).from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert type(again.multimodal_config) is type(config.multimodal_config)
