"""The suite of zero-shot classification: its labels, and its contestants on a reduced model in this process."""

from importlib import import_module

import contestants
import pytest
from contestants.weights import make_weights
from contestants.zero_shot_inputs import candidate_labels


SETTINGS = {"model": "ViT-B-32", "reduced": True, "device": "cpu", "dtype": "float32", "labels": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make the weights in all forms in this process, as processes of their own do in a run."""
    folder = tmp_path_factory.mktemp("weights")
    for form in ("ours", "transformers"):
        make_weights(form, SETTINGS, folder)
    return folder


def test_labels_are_short_and_differ():
    labels = candidate_labels({"labels": 100})
    assert len(set(labels)) == 100
    assert {len(label.split()) for label in labels} == {1, 2, 3}


def test_scores_are_those_of_open_clip(folder):
    outputs = {}
    for name in ("ours", "ours_optimized", "open_clip", "transformers"):
        contestant_class = import_module(contestants.find("zero_shot", name)[1]).CONTESTANTS[name]
        contestant = contestant_class(SETTINGS, folder)
        contestant.result = contestant.run()
        outputs[name] = contestant.outputs()
    expected = outputs["open_clip"]
    assert sum(expected) == pytest.approx(1.0)
    assert max(expected) - min(expected) > 0.1  # labels matter
    assert outputs["ours"] == pytest.approx(expected, abs=1e-5)
    assert outputs["ours_optimized"] == pytest.approx(expected, abs=1e-5)
    # transformers converts to RGB and crops in another order.
    assert outputs["transformers"] == pytest.approx(expected, abs=1e-3)
