"""The suite of captions: its cells, and our contestants on a reduced model in this process."""

from importlib import import_module
from itertools import pairwise

import contestants
import pytest
import torch
from contestants.caption_common import captions
from contestants.model_bounds import caption_bound, meta_model
from contestants.weights import make_weights
from harness.cells import Cell, Measurement, NotRun, Options, Record, Result
from harness.measure import python_of
from run import run_suite
from suites import caption


SETTINGS = {
    "model": "coca_ViT-B-32",
    "reduced": True,
    "device": "cpu",
    "batch": 2,
    "strategy": "greedy",
    "length": 8,
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make the weights in this process, as a process of its own does in a run."""
    folder = tmp_path_factory.mktemp("weights")
    make_weights("ours", SETTINGS, folder)
    return folder


def run(name: str, folder, **settings):
    """A contestant that has run."""
    contestant_class = import_module(contestants.find("caption", name)[1]).CONTESTANTS[name]
    contestant = contestant_class({**SETTINGS, **settings}, folder)
    contestant.result = contestant.run()
    return contestant


@pytest.mark.parametrize("strategy", ["beams", "greedy", "top_p"])
def test_captions_are_as_long_as_the_cell_says(strategy, folder):
    optimized = run("ours_optimized", folder, strategy=strategy)
    ours = run("ours", folder, strategy=strategy)
    blip = run("blip", folder, strategy=strategy)
    assert ours.result.shape == optimized.result.shape == blip.result.shape == (2, 8)
    assert ours.outputs() == optimized.outputs()
    assert (ours.outputs() is None) == (strategy == "top_p")


def test_captions_of_another_length_are_an_error():
    with pytest.raises(ValueError, match=r"shape \(2, 7\), not 8 tokens"):
        captions(torch.ones(2, 7), SETTINGS)


def test_bound_has_the_image_and_a_step_for_each_token(folder):
    model = meta_model(folder / "coca_ViT-B-32-reduced-ours")
    image, first, *steps = caption_bound(model, SETTINGS)
    assert len(steps) == 6
    assert image["bytes"] == 4 * model.vision_model.num_parameters()
    # The first step also makes the keys and values of the image; each later one attends to one token more.
    assert first["flops"] > 1.5 * steps[0]["flops"]
    grown = 4 * 2 * 2 * 48 * 4
    assert [later["bytes"] - earlier["bytes"] for earlier, later in pairwise(steps)] == [grown] * 5
    assert all(later["flops"] > earlier["flops"] for earlier, later in pairwise(steps))
    assert steps[0]["bytes"] > 4 * model.lm_head.weight.numel()


def test_bound_of_beams_is_that_of_one_group(folder):
    model = meta_model(folder / "coca_ViT-B-32-reduced-ours")
    beams, greedy = (caption_bound(model, {**SETTINGS, "strategy": name})[-1] for name in ("beams", "greedy"))
    assert beams["flops"] == 2 * greedy["flops"]


def test_notes_tell_what_a_further_token_costs():
    def result(new_tokens: int, seconds: float) -> Result:
        cell = Cell("caption", str(new_tokens), {"new_tokens": new_tokens}, ("ours", "open_clip"))
        return Result(cell, [Measurement("ours", "newest", seconds=[seconds]), Measurement("open_clip", "captioning")])

    unrelated = Result(Cell("caption", "other", {}, ("ours",)), [Measurement("ours", "newest", seconds=[9.0])])
    rows = [result(10, 0.5), unrelated, result(20, 0.6), result(40, 0.9)]
    assert caption.notes(Record("caption", "", {}, {}, results=rows)) == [
        "A further token of ours takes 10.00 ms from 10 to 20, 15.00 ms from 20 to 40 new tokens."
    ]


@pytest.mark.slow
def test_contestants_compile(folder):
    assert run("ours_compiled", folder).outputs() == run("ours", folder).outputs()


@pytest.mark.slow
def test_a_quick_run_finds_equal_captions():
    try:
        python_of("captioning")
    except NotRun as reason:
        pytest.skip(str(reason))
    for result in run_suite("caption", Options(rounds=1, quick=True), None, None).results:
        assert not any(own.error for own in result.measurements)
        assert result.of("open_clip").difference == 0
        assert result.of("open_clip").exact
