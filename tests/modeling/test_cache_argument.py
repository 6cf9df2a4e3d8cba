"""The key-value cache of a call: both its names, names that nothing reads, and gradient checkpointing."""

from dataclasses import fields

import pytest
import torch
from tiny_models import tiny_inputs, tiny_model
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, StaticCache
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions

from open_clip_transformers.modeling.modeling_captioning import CaptioningOutput
from open_clip_transformers.modeling.transformers_compat import CACHE_NAME


pytestmark = pytest.mark.floor
NAMES = ("cache", "past_key_values")
STRATEGIES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "sampling": {"do_sample": True, "top_k": 5},
}


@pytest.fixture
def coca():
    return tiny_model("coca").eval()


@pytest.fixture
def inputs(coca):
    inputs = tiny_inputs(coca)
    return {name: inputs[name] for name in ("input_ids", "pixel_values")}


@pytest.mark.parametrize("name", NAMES)
def test_forward_fills_a_cache_given_by_either_name(name, coca, inputs):
    cache = DynamicCache()
    outputs = coca(**inputs, **{name: cache})
    assert cache.get_seq_length() == inputs["input_ids"].shape[1]
    assert outputs[CACHE_NAME] is cache


@torch.no_grad()
def test_forward_continues_a_plain_cache_with_the_images_given_again(coca, inputs):
    ids, cache = torch.randint(10, 90, (3, 7)), DynamicCache()
    first = coca(ids[:, :4], inputs["pixel_values"], cache=cache)
    rest = coca(ids[:, 4:], image_hidden_states=first.image_hidden_states, cache=first[CACHE_NAME])
    expected = coca(ids, inputs["pixel_values"]).logits[:, 4:]
    torch.testing.assert_close(rest.logits, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="only an EncoderDecoderCache"):
        coca(ids[:, :1], cache=cache)


@torch.no_grad()
def test_forward_uses_both_parts_of_a_pair_of_caches(coca, inputs):
    ids, pixel_values = torch.randint(10, 90, (3, 7)), inputs["pixel_values"]
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    assert coca(ids[:, :4], pixel_values, cache=cache)[CACHE_NAME] is cache
    assert cache.get_seq_length() == 4 and all(cache.is_updated.values())
    # The images are in the cache by now.
    rest = coca(ids[:, 4:], cache=cache).logits
    torch.testing.assert_close(rest, coca(ids, pixel_values).logits[:, 4:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make_cache",
    [DynamicCache, lambda: EncoderDecoderCache(DynamicCache(), DynamicCache())],
    ids=["plain", "pair"],
)
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_generate_uses_a_cache_and_hands_it_back(strategy, make_cache, coca, inputs):
    arguments = {"pixel_values": inputs["pixel_values"], "max_new_tokens": 4, "eos_token_id": None, **strategy}
    cache = make_cache()
    torch.manual_seed(0)
    outputs = coca.generate(**arguments, cache=cache, return_dict_in_generate=True)
    torch.manual_seed(0)
    assert torch.equal(outputs.sequences, coca.generate(**arguments))
    assert outputs[CACHE_NAME] is cache and cache.get_seq_length() == 4


@pytest.mark.parametrize("name", NAMES)
def test_text_tower_continues_a_cache_given_by_either_name(name, coca, inputs):
    ids = inputs["input_ids"]
    cache = DynamicCache()
    coca.text_model(ids[:, :3], **{name: cache})
    continued = coca.text_model(ids[:, 3:], **{name: cache}).last_hidden_state
    whole = coca.text_model(ids, cache=DynamicCache()).last_hidden_state
    torch.testing.assert_close(continued, whole[:, 3:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_generate_continues_a_cache_given_by_either_name(name, coca, inputs):
    prompt, pixel_values = inputs["input_ids"][:, :4], inputs["pixel_values"]
    expected = coca.generate(prompt, pixel_values=pixel_values, max_new_tokens=4, eos_token_id=None)
    cache = DynamicCache()
    coca(prompt[:, :-1], pixel_values, cache=cache)
    captions = coca.generate(prompt, pixel_values=pixel_values, max_new_tokens=4, eos_token_id=None, **{name: cache})
    assert torch.equal(captions, expected)
    assert cache.get_seq_length() == 7


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_generate_passes_one_token_a_step(strategy, coca, inputs):
    lengths = []
    coca.text_model.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    coca.generate(pixel_values=inputs["pixel_values"], max_new_tokens=5, eos_token_id=None, **strategy)
    assert lengths == [1] * 5


def test_forward_refuses_two_caches(coca, inputs):
    with pytest.raises(ValueError, match="two names of one argument"):
        coca(**inputs, cache=DynamicCache(), past_key_values=DynamicCache())


@pytest.mark.parametrize("cache", [(), [(torch.ones(1), torch.ones(1))]], ids=["empty_tuple", "pairs"])
def test_forward_refuses_what_is_no_cache(cache, coca, inputs):
    with pytest.raises(TypeError, match=f"such as DynamicCache.., got {type(cache).__name__}"):
        coca(**inputs, cache=cache)


@pytest.mark.parametrize("part", ["coca", "text_model", "multimodal_decoder", "vision_model"])
@pytest.mark.parametrize(
    "cache", [DynamicCache(), EncoderDecoderCache(DynamicCache(), DynamicCache())], ids=["plain", "pair"]
)
def test_forward_refuses_a_cache_under_a_name_that_nothing_reads(part, cache, coca, inputs):
    calls = {
        "coca": lambda **kwargs: coca(**inputs, **kwargs),
        "text_model": lambda **kwargs: coca.text_model(inputs["input_ids"], **kwargs),
        "multimodal_decoder": lambda **kwargs: coca.multimodal_decoder(
            torch.randn(3, 5, coca.config.multimodal_config.hidden_size),
            coca.get_image_features(inputs["pixel_values"]).last_hidden_state,
            **kwargs,
        ),
        "vision_model": lambda **kwargs: coca.vision_model(inputs["pixel_values"], **kwargs),
    }
    with pytest.raises(ValueError, match="Got a cache as attention_memory, a name that is not read here"):
        calls[part](attention_memory=cache)


def test_generate_refuses_a_cache_under_a_name_that_nothing_reads(coca, inputs):
    with pytest.raises(ValueError, match="attention_memory"):
        coca.generate(pixel_values=inputs["pixel_values"], attention_memory=DynamicCache())


def test_generate_of_a_transformers_with_another_name_raises(coca, inputs, monkeypatch):
    # As a later release may rename the cache between `generate` and the model.
    prepare = type(coca).prepare_inputs_for_generation

    def renamed(self, *args, **kwargs):
        model_inputs = prepare(self, *args, **kwargs)
        return {"attention_memory" if name == CACHE_NAME else name: value for name, value in model_inputs.items()}

    monkeypatch.setattr(type(coca), "prepare_inputs_for_generation", renamed)
    with pytest.raises(ValueError, match="attention_memory"):
        coca.generate(pixel_values=inputs["pixel_values"], max_new_tokens=3)


@pytest.mark.parametrize("part", ["coca", "text_model"])
def test_checkpointed_layers_refuse_a_cache(part, coca, inputs):
    coca.train().gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient_checkpointing_disable"):
        if part == "coca":
            coca(**inputs, cache=DynamicCache())
        else:
            coca.text_model(inputs["input_ids"], cache=DynamicCache())


def test_generate_in_training_mode_with_checkpointing_keeps_its_cache(coca, inputs):
    expected = coca.generate(pixel_values=inputs["pixel_values"], max_new_tokens=5, eos_token_id=None)
    coca.train().gradient_checkpointing_enable()
    lengths = []
    coca.text_model.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    captions = coca.generate(pixel_values=inputs["pixel_values"], max_new_tokens=5, eos_token_id=None)
    assert torch.equal(captions, expected) and lengths == [1] * 5


def test_output_has_the_cache_where_transformers_own_has_it():
    assert issubclass(CaptioningOutput, CausalLMOutputWithCrossAttentions)
    own = {field.name for field in fields(CausalLMOutputWithCrossAttentions)}
    assert own <= {field.name for field in fields(CaptioningOutput)}
    assert CACHE_NAME in own
    assert not own & CaptioningOutput.__annotations__.keys()
    cache = DynamicCache()
    assert CaptioningOutput(**{CACHE_NAME: cache})["past_key_values"] is cache


@pytest.mark.parametrize("make_cache", [DynamicCache, lambda: EncoderDecoderCache(DynamicCache(), DynamicCache())])
@torch.no_grad()
def test_an_empty_cache_hides_padding_as_none_does(make_cache, coca, inputs):
    expected = coca(**inputs, use_cache=True).logits
    assert torch.equal(coca(**inputs, cache=make_cache()).logits, expected)


def test_a_cache_with_too_few_layers_is_refused(coca, inputs):
    cache = DynamicCache(config=coca.config.get_text_config())
    for call in (coca, coca.generate):
        with pytest.raises(ValueError, match=r"has 2 layers, .* have 4: make it with config=model.config"):
            call(pixel_values=inputs["pixel_values"], cache=cache)


def test_a_static_cache_for_images_has_their_length(coca, inputs):
    arguments = {"pixel_values": inputs["pixel_values"], "max_new_tokens": 4, "eos_token_id": None}
    tokens = coca.get_image_features(inputs["pixel_values"]).last_hidden_state.shape[1]

    def pair(length: int) -> EncoderDecoderCache:
        return EncoderDecoderCache(*(StaticCache(config=coca.config, max_cache_len=each) for each in (9, length)))

    assert torch.equal(coca.generate(**arguments, cache=pair(tokens)), coca.generate(**arguments))
    with pytest.raises(ValueError, match=f"max_cache_len={tokens + 3}; expected {tokens}"):
        coca.generate(**arguments, cache=pair(tokens + 3))


@pytest.mark.parametrize(
    "arguments",
    [
        {"cache": DynamicCache()},
        {"past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache()), "num_beams": 2},
        {"cache_implementation": "static"},
        {"generation_config": GenerationConfig(cache_implementation="static", max_new_tokens=3)},
    ],
    ids=["plain", "pair", "name", "configuration"],
)
def test_a_bidirectional_text_tower_refuses_a_cache(arguments):
    model = tiny_model("coca_hf_text")
    inputs = tiny_inputs(model)
    with pytest.raises(ValueError, match="text tower of this model is bidirectional"):
        model.generate(pixel_values=inputs["pixel_values"], **arguments)
    if "cache" in arguments:
        with pytest.raises(ValueError, match="text tower of this model is bidirectional"):
            model(**inputs, **arguments)


def test_what_does_not_fit_the_cache_is_refused(coca, inputs):
    inputs["input_ids"] = inputs["input_ids"][:, :4]
    cache = coca(**inputs, use_cache=True)[CACHE_NAME]
    past, limit = cache.get_seq_length(), coca.config.max_position_embeddings
    token, everything = inputs["input_ids"][:, :1], torch.ones(3, past + 1)
    assert coca(token, cache=cache, attention_mask=everything).logits.shape[1] == 1
    with pytest.raises(ValueError, match=f"is of {past + 1} tokens, expected one of {past + 2}"):
        coca(token, cache=cache, attention_mask=everything)
    too_many = token.expand(-1, limit - past)
    with pytest.raises(ValueError, match=f"behind {past + 1} in the cache, and the model takes at most {limit}"):
        coca(too_many, cache=cache)
