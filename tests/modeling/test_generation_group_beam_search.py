"""Group beam search: transformers 4.53.3's results, its limits, and its messages.

The data and the script that made it are in `tests/data/group_beam_search`.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateBeamEncoderDecoderOutput

from open_clip_transformers.modeling.generation_group_beam_search import group_beam_search
from open_clip_transformers.modeling.transformers_compat import CACHE_NAME


DATA = Path(__file__).parents[1] / "data" / "group_beam_search"
MODELS = {"gpt2": (GPT2Config, GPT2LMHeadModel), "bart": (BartConfig, BartForConditionalGeneration)}
REFERENCE = {name: json.loads((DATA / f"{name}.json").read_text()) for name in MODELS}
GROUPS = {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.7}
EOS = 2


def load(name):
    """-> the model and the prompts of `tests/data/group_beam_search/<name>.json`, as arguments of `generate`."""
    reference = REFERENCE[name]
    config_class, model_class = MODELS[name]
    config = config_class(**reference["config"], **reference["special_ids"], attn_implementation="eager")
    model = model_class(config).eval()
    weights = load_file(DATA / f"{name}.safetensors")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    # BART repeats its shared embedding in the state dict
    assert not unexpected and set(missing).isdisjoint(dict(model.named_parameters()))
    model.generation_config = GenerationConfig(**reference["special_ids"])
    inputs = {key: torch.tensor(reference[key]) for key in ("input_ids", "attention_mask")}
    return model, {**inputs, "max_new_tokens": reference["max_new_tokens"], "custom_generate": group_beam_search}


@pytest.fixture
def gpt2():
    return load("gpt2")


@pytest.mark.parametrize(
    ("name", "case"),
    [pytest.param(name, case, id=f"{name}-{case}") for name in MODELS for case in REFERENCE[name]["cases"]],
)
def test_group_beam_search_equals_transformers_4_53(name, case):
    model, inputs = load(name)
    expected = REFERENCE[name]["cases"][case]
    for key in ("input_ids", "attention_mask"):
        inputs[key] = inputs[key][expected["prompts"]]

    outputs = model.generate(**inputs, **expected["generate_kwargs"], output_scores=True, return_dict_in_generate=True)

    assert outputs.sequences.tolist() == expected["sequences"]
    torch.testing.assert_close(
        outputs.sequences_scores, torch.tensor(expected["sequences_scores"]), atol=2e-5, rtol=1e-5
    )


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -0.7], ids=lambda value: f"length_penalty_{value}")
def test_group_beam_search_without_penalty_equals_plain_beam_search(gpt2, length_penalty):
    model, inputs = gpt2
    ours = model.generate(**inputs, num_beams=6, num_beam_groups=2, length_penalty=length_penalty)
    del inputs["custom_generate"]
    plain = model.generate(**inputs, num_beams=3, length_penalty=length_penalty)

    # transformers fills up with the end token where the padding id is 0
    behind_end = (plain == EOS).cumsum(-1) - (plain == EOS).long() > 0
    assert ours.tolist() == plain.masked_fill(behind_end, 0).tolist()


def test_group_beam_search_gives_every_group_the_same_beams_without_penalty(gpt2):
    model, inputs = gpt2
    sequences = model.generate(**inputs, num_beams=6, num_beam_groups=3, num_return_sequences=6)
    for rows in sequences.view(4, 6, -1):
        assert rows.unique(dim=0, return_counts=True)[1].tolist() == [3, 3]


def test_group_beam_search_returns_what_transformers_beam_search_returns(gpt2):
    model, inputs = gpt2
    outputs = model.generate(
        **inputs,
        **GROUPS,
        num_return_sequences=2,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_attentions=True,
        output_hidden_states=True,
    )

    assert isinstance(outputs, GenerateBeamDecoderOnlyOutput)
    num_new = outputs.sequences.shape[1] - inputs["input_ids"].shape[1]
    steps = len(outputs.scores)
    assert num_new <= steps <= 13
    assert outputs.scores[0].shape == outputs.logits[0].shape == (24, 23)
    assert len(outputs.logits) == len(outputs.attentions) == len(outputs.hidden_states) == steps
    assert outputs.attentions[1][0].shape == (24, 3, 1, 6)
    assert outputs.beam_indices.shape == (8, num_new)
    assert outputs[CACHE_NAME].get_seq_length() == inputs["input_ids"].shape[1] + steps - 1


def test_group_beam_search_scores_add_up_along_the_beam_indices(gpt2):
    model, inputs = gpt2
    outputs = model.generate(
        **inputs, **GROUPS, num_return_sequences=4, return_dict_in_generate=True, output_scores=True
    )
    transitions = model.compute_transition_scores(outputs.sequences, outputs.scores, outputs.beam_indices)
    lengths = (outputs.beam_indices >= 0).sum(-1)
    torch.testing.assert_close(transitions.sum(-1) / lengths, outputs.sequences_scores)


def test_group_beam_search_leaves_scores_out_unless_asked(gpt2):
    model, inputs = gpt2
    outputs = model.generate(**inputs, **GROUPS, return_dict_in_generate=True)
    assert outputs.sequences_scores is None and outputs.scores is None and outputs.logits is None


def test_group_beam_search_returns_encoder_decoder_output():
    model, inputs = load("bart")
    outputs = model.generate(**inputs, **GROUPS, return_dict_in_generate=True, output_attentions=True)
    assert isinstance(outputs, GenerateBeamEncoderDecoderOutput)
    assert outputs.encoder_attentions is not None
    assert len(outputs.cross_attentions) == len(outputs.decoder_attentions) > 0


def test_group_beam_search_takes_a_static_cache(gpt2):
    model, inputs = gpt2
    dynamic = model.generate(**inputs, **GROUPS)
    assert model.generate(**inputs, **GROUPS, cache_implementation="static").tolist() == dynamic.tolist()


def test_group_beam_search_ends_at_any_end_token(gpt2):
    model, inputs = gpt2
    sequences = model.generate(**inputs, **GROUPS, eos_token_id=[EOS, 19])
    ends = [row.tolist()[5:].index(19) for row in sequences if 19 in row[5:]]
    assert ends
    for row in sequences[:, 5:].tolist():
        length = next((i for i, token in enumerate(row) if token in (EOS, 19)), len(row))
        assert set(row[length + 1 :]) <= {0}


class _EndsBehind(StoppingCriteria):
    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] == self.token


def test_group_beam_search_ends_beams_by_other_stopping_criteria(gpt2):
    model, inputs = gpt2
    with_criterion = model.generate(**inputs, **GROUPS, stopping_criteria=StoppingCriteriaList([_EndsBehind(19)]))
    as_end_token = model.generate(**inputs, **GROUPS, eos_token_id=[EOS, 19])
    assert (with_criterion == 19).any()
    # with two end tokens more continuations are looked at, which changes nothing here
    assert with_criterion.tolist() == as_end_token.tolist()


def test_group_beam_search_runs_without_end_token(gpt2):
    model, inputs = gpt2
    model.generation_config = GenerationConfig(bos_token_id=1)
    assert model.generate(**inputs, **GROUPS).shape == (4, 18)
    ended = model.generate(**inputs, **GROUPS, stopping_criteria=StoppingCriteriaList([_EndsBehind(19)]))
    assert (ended == -1).any()


def test_group_beam_search_open_clip_scores_rank_by_logits_over_the_whole_length(gpt2):
    model, inputs = gpt2
    outputs = model.generate(
        **inputs, **GROUPS, open_clip_scores=True, return_dict_in_generate=True, output_scores=True, output_logits=True
    )
    torch.testing.assert_close(outputs.scores[0][::6], outputs.logits[0][::6])  # the first group has no penalty
    transitions = model.compute_transition_scores(outputs.sequences, outputs.scores, outputs.beam_indices)
    lengths = (outputs.beam_indices >= 0).sum(-1) + inputs["input_ids"].shape[1]
    torch.testing.assert_close(transitions.sum(-1) / lengths, outputs.sequences_scores)


def test_group_beam_search_open_clip_scores_can_be_the_default(gpt2):
    model, inputs = gpt2
    ours = model.generate(**inputs, **GROUPS, open_clip_scores=True)
    others = model.generate(**inputs, **GROUPS)
    model.generation_config.open_clip_scores = True
    assert model.generate(**inputs, **GROUPS).tolist() == ours.tolist() != others.tolist()
    assert model.generate(**inputs, **GROUPS, open_clip_scores=False).tolist() == others.tolist()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        pytest.param({"num_beams": 5, "num_beam_groups": 2}, "divisible", id="indivisible"),
        pytest.param({"num_beams": 2, "num_beam_groups": 4}, "divisible", id="more_groups_than_beams"),
        pytest.param({"num_beams": 1}, "at least 2", id="one_beam"),
        pytest.param({"num_beams": 4, "num_beam_groups": 2, "do_sample": True}, "sample", id="sampling"),
        pytest.param({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": -0.5}, "negative", id="negative"),
        pytest.param({"num_beams": 4, "diversity_penalty": 0.5}, "between groups", id="penalty_without_groups"),
        pytest.param({**GROUPS, "guidance_scale": 1.5}, "guidance_scale", id="guidance"),
    ],
)
def test_group_beam_search_refuses(gpt2, kwargs, message):
    model, inputs = gpt2
    with pytest.raises(ValueError, match=message):
        model.generate(**inputs, **kwargs)


def test_group_beam_search_refuses_a_streamer_and_unexpanded_prompts(gpt2):
    model, inputs = gpt2
    config = GenerationConfig(num_beams=4, num_beam_groups=2)
    with pytest.raises(ValueError, match="streamer"):
        group_beam_search(model, inputs["input_ids"], [], StoppingCriteriaList(), config, streamer=object())
    with pytest.raises(ValueError, match="3 rows"):
        group_beam_search(model, inputs["input_ids"][:3], [], StoppingCriteriaList(), config)
