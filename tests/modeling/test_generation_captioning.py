"""Captioning with CoCa: one image pass, caches that change nothing, and every way of choosing tokens."""

import pytest
import torch
from tiny_configs import tiny_coca_cfg
from tiny_models import tiny_inputs, tiny_model
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from open_clip_transformers.convert_scripts.mapping.config import TokenIds, build_config
from open_clip_transformers.modeling.modeling_captioning import CaptioningCache
from open_clip_transformers.modeling.modeling_coca import CoCaForConditionalGeneration, CoCaModel
from open_clip_transformers.modeling.transformers_compat import CACHE_NAME


pytestmark = pytest.mark.floor

BOS, EOS, PAD = 5, 9, 0


def make_model(model_class=CoCaModel, **changes) -> CoCaModel:
    config = build_config(tiny_coca_cfg(**changes), TokenIds(bos=BOS, eos=EOS, pad=PAD))
    for part in (config, config.vision_config, config.text_config, config.multimodal_config):
        part.initializer_range = 0.3
    return model_class(config).eval()


@pytest.fixture
def model() -> CoCaModel:
    return make_model()


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return torch.randn(3, 3, 24, 24)


def count_calls(module: torch.nn.Module) -> list[torch.Tensor]:
    calls = []
    module.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append([*args, *kwargs.values()][0]), with_kwargs=True
    )
    return calls


def test_generate_takes_whole_captions_as_prompts(model, pixel_values):
    prompts = torch.tensor([[BOS, 3, 4], [PAD, BOS, 6], [PAD, PAD, BOS]])
    captions = torch.tensor([[BOS, 3, 4, EOS, PAD], [BOS, 6, EOS, PAD, PAD], [BOS, EOS, PAD, PAD, PAD]])
    lengths = torch.tensor([[3], [2], [1]])
    kwargs = {"pixel_values": pixel_values, "max_new_tokens": 4}
    expected = model.generate(prompts, attention_mask=(torch.arange(3) >= 3 - lengths).long(), **kwargs)
    outputs = model.generate(captions, attention_mask=(torch.arange(5) < 1 + lengths).long(), **kwargs)
    assert torch.equal(outputs, expected)
    # Nothing but the token that ends is a prompt of its own.
    ends = torch.full((3, 1), EOS)
    assert model.generate(ends, attention_mask=torch.ones_like(ends), **kwargs)[:, 0].tolist() == [EOS] * 3


STRATEGIES = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "long_beams": {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7},
    "top_k": {"do_sample": True, "top_k": 5, "num_return_sequences": 3},
    "top_p": {"do_sample": True, "top_p": 0.7, "top_k": 0, "temperature": 1.7},
    "penalties": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_length": 4},
}


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
def test_generate_is_the_same_without_a_cache(strategy, changes, pixel_values):
    model = make_model(**changes)
    sequences = []
    for use_cache in (True, False):
        torch.manual_seed(1)
        sequences.append(model.generate(pixel_values=pixel_values, use_cache=use_cache, **strategy))
    assert sequences[0].shape == sequences[1].shape
    assert torch.equal(*sequences)
    assert len(set(map(tuple, sequences[0].tolist()))) > 1, "every caption is the same: the test shows nothing"


def test_generate_encodes_each_image_once(model, pixel_values):
    images, decoded = count_calls(model.vision_model), count_calls(model.text_model)
    model.generate(pixel_values=pixel_values, num_beams=4, max_new_tokens=6, eos_token_id=None)
    assert [len(pixels) for pixels in images] == [3]
    assert [ids.shape for ids in decoded] == [(12, 1)] * 6


def test_generate_computes_only_the_last_logits(model, pixel_values):
    prompt = torch.randint(10, 90, (3, 4))
    hidden_states = count_calls(model.lm_head)
    model.generate(prompt, pixel_values=pixel_values, max_new_tokens=5, eos_token_id=None)
    assert {states.shape[1] for states in hidden_states} == {1}


def test_generate_keeps_one_row_of_image_keys_per_image(model, pixel_values):
    outputs = model.generate(
        pixel_values=pixel_values, num_beams=4, max_new_tokens=3, eos_token_id=None, return_dict_in_generate=True
    )
    cache = outputs[CACHE_NAME]
    assert isinstance(cache, CaptioningCache)
    assert [len(layer.keys) for layer in cache.self_attention_cache.layers] == [12] * 4
    assert [len(layer.keys) for layer in cache.cross_attention_cache.layers] == [3] * 2


def test_generate_projects_image_keys_once(model, pixel_values):
    projected = count_calls(model.multimodal_decoder.cross_attention_layers[0].cross_attn.k_proj)
    model.generate(pixel_values=pixel_values, num_beams=2, max_new_tokens=5, eos_token_id=None)
    assert [len(states) for states in projected] == [3]


def test_generate_continues_prompts_of_different_lengths(model, pixel_values):
    prompts = [[BOS, 11, 12, 13], [BOS, 21], [BOS]]
    padded = torch.tensor([[PAD] * (4 - len(prompt)) + prompt for prompt in prompts])
    attention_mask = torch.tensor([[0] * (4 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    batch = model.generate(
        padded, attention_mask=attention_mask, pixel_values=pixel_values, max_new_tokens=4, eos_token_id=None
    )
    for row, prompt in enumerate(prompts):
        alone = model.generate(
            torch.tensor([prompt]), pixel_values=pixel_values[row : row + 1], max_new_tokens=4, eos_token_id=None
        )
        assert batch[row, 4 - len(prompt) :].tolist() == alone[0].tolist()


def test_generate_beams_continue_prompts_of_different_lengths(model, pixel_values):
    prompts = torch.tensor([[BOS, 11, 12], [PAD, BOS, 21], [PAD, PAD, BOS]])
    attention_mask = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 1]])
    settings = {"num_beams": 3, "max_new_tokens": 4, "eos_token_id": None}
    batch = model.generate(prompts, attention_mask=attention_mask, pixel_values=pixel_values, **settings)
    uncached = model.generate(
        prompts, attention_mask=attention_mask, pixel_values=pixel_values, use_cache=False, **settings
    )
    alone = model.generate(prompts[2:, 2:], pixel_values=pixel_values[2:], **settings)
    assert torch.equal(batch, uncached)
    assert batch[2, 2:].tolist() == alone[0].tolist()


class ForceToken(LogitsProcessor):
    """Makes the model choose a token at a given length."""

    def __init__(self, length: int, token: int):
        self.length, self.token = length, token

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] == self.length:
            forced = torch.full_like(scores, -1e4)
            forced[:, self.token] = 0.0
            return forced
        return scores


CACHES = {"dynamic": {}, "static": {"cache_implementation": "static"}, "none": {"use_cache": False}}


@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize("name", ["coca", "mammut"])
def test_generate_takes_the_padding_id_inside_a_prompt_for_a_token(name, cache, pixel_values):
    """It is a "!" in CLIP's vocabulary, and shown by a mask alone where it is padding; before a prompt, by itself."""
    model = tiny_model(name)
    prompts = torch.tensor([[BOS, PAD, 4, 7], [BOS, 3, 4, PAD], [PAD, PAD, BOS, 6]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1]])
    arguments = {"pixel_values": pixel_values, "max_length": 9, "min_length": 9}
    expected = model.generate(prompts, attention_mask=mask, use_cache=False, **arguments)
    assert model.generate(prompts, **arguments, **cache).tolist() == expected.tolist()
    with torch.no_grad():
        logits = model(prompts[:2], pixel_values[:2]).logits[:, -1]
    assert logits.argmax(-1).tolist() == expected[:2, 4].tolist()


@pytest.mark.parametrize("num_beams", [1, 3], ids=["greedy", "beams"])
@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])
def test_generate_hides_the_token_behind_a_generated_padding_id(num_beams, cache, model, pixel_values):
    # open_clip masks the key behind each id 0, also one inside a text (transformer.py, _build_additive_mask).
    def run(token, **settings):
        return model.generate(
            pixel_values=pixel_values,
            logits_processor=LogitsProcessorList([ForceToken(3, token)]),
            num_beams=num_beams,
            eos_token_id=None,
            max_new_tokens=8,
            **settings,
        )

    assert torch.equal(run(PAD, **cache), run(PAD, use_cache=False))
    assert not torch.equal(run(PAD)[:, 4:], run(PAD + 1)[:, 4:])


def test_generate_reaches_the_last_position(model, pixel_values):
    settings = {"max_length": 10, "eos_token_id": None}
    longest = model.generate(pixel_values=pixel_values, **settings)
    assert longest.shape == (3, 10)
    assert torch.equal(longest, model.generate(pixel_values=pixel_values, use_cache=False, **settings))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 10}, r"prompt of 1 tokens with max_length=11 does not fit.*10 positions"),
        ({"max_length": 11, "num_beams": 2}, r"does not fit.*10 positions"),
        ({"input_ids": torch.full((3, 10), 7)}, r"prompt of 10 tokens.*does not fit"),
        ({"input_ids": torch.full((2, 3), 7)}, r"3 images and 2 prompts"),
        ({"image_hidden_states": torch.zeros(3, 7, 36)}, r"not both"),
        ({"pixel_values": None}, r"needs either pixel_values"),
        ({"num_beams": 6, "num_beam_groups": 4}, r"divisible"),
    ],
    ids=["new_tokens", "length", "prompt", "images_and_prompts", "both_images", "no_image", "groups"],
)
def test_generate_refuses_what_cannot_be(arguments, message, model, pixel_values):
    with pytest.raises(ValueError, match=message):
        model.generate(**{"pixel_values": pixel_values, **arguments})


@pytest.mark.parametrize("inputs", ["photo.jpg", [[1, 2]]], ids=["path", "list"])
def test_generate_refuses_what_is_no_tensor(inputs, model, pixel_values):
    with pytest.raises(TypeError, match=f"got {type(inputs).__name__}: prepare images and texts with the processor"):
        model.generate(inputs, pixel_values=pixel_values)


@pytest.mark.parametrize("settings", [{"max_new_tokens": 1024}, {"max_length": 200}], ids="-".join)
def test_generate_cuts_the_length_that_a_configuration_allows(model, pixel_values, settings, warnings_of_transformers):
    """`transformers serve` allows each model at least 1024 tokens."""
    allowed = GenerationConfig(**settings, eos_token_id=None)
    prompts = torch.full((3, 4), 7)
    expected = model.generate(prompts, pixel_values=pixel_values, max_length=10, eos_token_id=None)
    assert torch.equal(model.generate(prompts, pixel_values=pixel_values, generation_config=allowed), expected)
    assert expected.shape == (3, 10)
    assert allowed.to_diff_dict().items() >= settings.items()
    assert any("10 positions" in record.message for record in warnings_of_transformers.records)


def test_generate_takes_max_new_tokens_without_a_warning(model, pixel_values, caplog):
    assert model.generate(pixel_values=pixel_values, max_new_tokens=3, eos_token_id=None).shape == (3, 4)
    assert not caplog.records


def test_generate_default_fits_the_position_table(model, pixel_values):
    assert model.generate(pixel_values=pixel_values, eos_token_id=None).shape == (3, 10)


def test_generate_takes_images_encoded_before(model, pixel_values):
    image_hidden_states = model.get_image_features(pixel_values).last_hidden_state
    from_tokens = model.generate(image_hidden_states=image_hidden_states, num_beams=2)
    assert torch.equal(from_tokens, model.generate(pixel_values=pixel_values, num_beams=2))


@pytest.mark.parametrize("num_beams", [1, 3], ids=["greedy", "beams"])
def test_generate_gives_embeddings_from_the_same_pass(num_beams, model, pixel_values):
    images = count_calls(model.vision_model)
    outputs = model.generate(
        pixel_values=pixel_values, num_beams=num_beams, return_dict_in_generate=True, output_scores=True
    )
    assert len(images) == 1
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.get_image_features(pixel_values).pooler_output, dim=-1)
    assert torch.equal(outputs.image_embeds, expected)
    assert len(outputs.scores) == outputs.sequences.shape[1] - 1


def test_generate_scores_are_those_of_forward(model, pixel_values):
    outputs = model.generate(
        pixel_values=pixel_values, eos_token_id=None, return_dict_in_generate=True, output_logits=True
    )
    logits = model(outputs.sequences, pixel_values=pixel_values).logits
    torch.testing.assert_close(torch.stack(outputs.logits, dim=1), logits[:, :-1], rtol=1e-4, atol=1e-5)


def test_generate_attentions_come_with_each_token(model, pixel_values):
    model.set_attn_implementation("eager")
    outputs = model.generate(
        pixel_values=pixel_values,
        num_beams=2,
        max_new_tokens=3,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    assert [step[0].shape for step in outputs.attentions] == [(6, 4, 1, length) for length in (1, 2, 3)]
    assert [len(step) for step in outputs.hidden_states] == [3] * 3


def test_generate_stops_by_criteria_and_streams(model, pixel_values):
    class Stop(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), input_ids.shape[1] >= 4)

    class Record(BaseStreamer):
        tokens: list = []

        def put(self, value):
            self.tokens.extend(value.flatten().tolist())

        def end(self):
            self.tokens.append("end")

    streamer = Record()
    sequences = model.generate(
        pixel_values=pixel_values[:1],
        stopping_criteria=StoppingCriteriaList([Stop()]),
        streamer=streamer,
        eos_token_id=None,
    )
    assert sequences.shape == (1, 4)
    assert streamer.tokens == [*sequences[0].tolist(), "end"]


def test_generate_pads_finished_captions(model, pixel_values):
    free = model.generate(pixel_values=pixel_values, eos_token_id=None)
    end = int(free[0, 3])
    ended = model.generate(pixel_values=pixel_values, eos_token_id=end)
    first_end = free[0].tolist().index(end)
    assert ended[0, first_end + 1 :].tolist() == [PAD] * (ended.shape[1] - first_end - 1)


def test_generate_finds_groups_in_the_generation_config(model, pixel_values):
    model.generation_config.update(num_beams=4, num_beam_groups=2, diversity_penalty=0.7)
    from_config = model.generate(pixel_values=pixel_values, num_return_sequences=4)
    model.generation_config = model.default_generation_config()
    from_call = model.generate(pixel_values=pixel_values, num_return_sequences=4, **STRATEGIES["groups"])
    assert torch.equal(from_config, from_call)


def test_generate_with_groups_in_the_generation_config_can_be_greedy(model, pixel_values):
    greedy = model.generate(pixel_values=pixel_values)
    model.generation_config.update(num_beams=4, num_beam_groups=2)
    assert torch.equal(model.generate(pixel_values=pixel_values, num_beams=1), greedy)


def test_generate_refuses_to_stream_groups(model, pixel_values):
    with pytest.raises(ValueError, match="cannot stream"):
        model.generate(pixel_values=pixel_values[:1], num_beams=4, num_beam_groups=2, streamer=BaseStreamer())


def test_generate_without_causal_text_recomputes(pixel_values):
    model = make_model(text_cfg={"no_causal_mask": True})
    tokens = count_calls(model.text_model)
    model.generate(pixel_values=pixel_values, num_beams=2, max_new_tokens=3, eos_token_id=None)
    assert [ids.shape[1] for ids in tokens] == [1, 2, 3]


def test_forward_with_a_cache_continues(model, pixel_values):
    input_ids = torch.randint(10, 90, (3, 7))
    whole = model(input_ids, pixel_values).logits
    first = model(input_ids[:, :4], pixel_values, use_cache=True)
    second = model(input_ids[:, 4:], cache=first[CACHE_NAME])
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), whole, rtol=1e-4, atol=1e-5)
    assert second[CACHE_NAME].get_seq_length() == 7


def test_forward_with_a_new_cache_hides_the_token_behind_a_padding_id(model, pixel_values):
    input_ids = torch.randint(10, 90, (3, 7))
    input_ids[0, 2] = PAD
    logits = model(input_ids, pixel_values, use_cache=True).logits
    torch.testing.assert_close(logits, model(input_ids, pixel_values).logits, rtol=1e-4, atol=1e-5)


def test_forward_fills_the_cache_it_is_given(model, pixel_values):
    cache = DynamicCache()
    model(torch.randint(10, 90, (3, 4)), pixel_values, cache=cache)
    assert cache.get_seq_length() == 4


def test_forward_takes_a_static_cache(model, pixel_values):
    input_ids = torch.randint(10, 90, (3, 4))
    cache = StaticCache(config=model.config, max_cache_len=8)
    logits = model(input_ids, pixel_values, cache=cache).logits
    torch.testing.assert_close(logits, model(input_ids, pixel_values).logits, rtol=1e-4, atol=1e-5)


def test_generate_belongs_to_both_class_names(pixel_values, tmp_path):
    model = make_model(CoCaForConditionalGeneration)
    model.save_pretrained(tmp_path)
    reloaded = CoCaModel.from_pretrained(tmp_path)
    assert reloaded.can_generate()
    assert reloaded.generation_config.max_length == model.generation_config.max_length == 10
    assert torch.equal(reloaded.generate(pixel_values=pixel_values), model.generate(pixel_values=pixel_values))


def test_generate_in_half_precision(model, pixel_values):
    sequences = model.to(torch.bfloat16).generate(pixel_values=pixel_values, num_beams=2)
    assert sequences[:, 0].tolist() == [BOS] * 3


def test_images_may_come_first(model, pixel_values):
    assert torch.equal(model.generate(pixel_values), model.generate(pixel_values=pixel_values))
    with pytest.raises(ValueError, match="either inputs or pixel_values, got inputs and pixel_values"):
        model.generate(pixel_values, pixel_values=pixel_values)


def test_prompts_of_a_training_batch_end_before_their_labels(model):
    inputs = tiny_inputs(model)
    labels = inputs["input_ids"].clone()
    labels[0, :3] = labels[1, :2] = -100
    arguments = {"max_new_tokens": 3, "eos_token_id": None}
    captions = model.generate(**inputs, labels=labels, return_loss=True, **arguments)
    for row, length in enumerate((3, 2, 1)):
        image = {"pixel_values": inputs["pixel_values"][row : row + 1]}
        expected = model.generate(inputs["input_ids"][row : row + 1, :length], **image, **arguments)
        assert captions[row, 3 - length :].tolist() == expected[0].tolist()


@pytest.mark.parametrize("groups", [{}, {"num_beam_groups": 2, "diversity_penalty": 0.5}], ids=["beams", "groups"])
@pytest.mark.parametrize(
    ("beams", "message"),
    [(98, "num_beams is 98, more than the 97 tokens"), (10**6, r"num_beams must be .* in \[1, 4096\], got 1000000")],
    ids=["more-than-tokens", "more-than-memory"],
)
def test_generate_refuses_more_beams_than_it_can_have(model, pixel_values, groups, beams, message):
    with pytest.raises(ValueError, match=message):
        model.generate(pixel_values=pixel_values, num_beams=beams, **groups)
    model.generation_config.update(num_beams=beams, **groups)
    with pytest.raises(ValueError, match=message):
        model.generate(pixel_values=pixel_values)


@pytest.mark.parametrize("value", [0, -1, 10**6, 10**30, 1.5, float("nan"), "2", [2]], ids=repr)
@pytest.mark.parametrize("name", ["num_beams", "num_beam_groups", "num_return_sequences"])
def test_generate_refuses_numbers_of_rows_that_no_search_has(model, pixel_values, name, value):
    settings = {"num_beams": 4, "do_sample": name == "num_return_sequences", name: value}
    with pytest.raises(ValueError, match=f"{name} must be a whole number in"):
        model.generate(pixel_values=pixel_values, **settings)


@pytest.mark.parametrize("value", [0, 1.5, float("nan"), "2"], ids=repr)
@pytest.mark.parametrize("name", ["max_length", "max_new_tokens"])
def test_generate_refuses_lengths_that_are_no_number_of_tokens(model, pixel_values, name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number in"):
        model.generate(pixel_values=pixel_values, **{name: value})


@pytest.mark.parametrize("value", [1.5, float("nan"), True, "2", 10**30, -2, [1, None]], ids=repr)
@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id", "pad_token_id"])
def test_generate_refuses_what_is_no_id_of_a_token(model, pixel_values, name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number in"):
        model.generate(pixel_values=pixel_values, **{name: value})


@pytest.mark.parametrize("name", ["length_penalty", "diversity_penalty", "repetition_penalty", "top_p"])
def test_generate_refuses_penalties_that_no_score_can_be_made_of(model, pixel_values, name):
    for value in (10**30, 1e30, float("nan"), float("inf"), "1"):
        model.generation_config.update(**{name: value})
        with pytest.raises(ValueError, match=f"generate: {name} must be a number in"):
            model.generate(pixel_values=pixel_values, num_beams=4, num_beam_groups=2)


@pytest.mark.parametrize("max_length", [10, 9], ids=["positions", "shorter"])
def test_generate_drafts_no_further_than_the_longest_caption(model, pixel_values, max_length):
    assert model.config.max_position_embeddings == 10
    # What stands behind the first 3 and 4 is drafted: more tokens than are left.
    prompt = torch.tensor([[BOS, 3, 4, 3, 4, 3, 4]])
    kwargs = {"pixel_values": pixel_values[:1], "max_length": max_length}
    assert torch.equal(
        model.generate(prompt, prompt_lookup_num_tokens=20, **kwargs),
        model.generate(prompt, **kwargs),
    )
