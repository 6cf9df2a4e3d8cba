"""The suite of zero-shot classification: its cells, and its contestants on a reduced model in this process."""

import json
from importlib import import_module

import contestants
import pytest
from contestants.weights import make_weights
from contestants.zero_shot_inputs import candidate_labels
from harness.cells import Options
from suites import zero_shot


SETTINGS = {"model": "ViT-B-32", "reduced": True, "device": "cpu", "dtype": "float32", "labels": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights in all forms, which otherwise processes of their own make."""
    folder = tmp_path_factory.mktemp("weights")
    for form in ("ours", "transformers"):
        make_weights(form, SETTINGS, folder)
    return folder


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
def test_cells_have_names_and_contestants_of_their_own(device, quick):
    cells = zero_shot.cells(Options(device=device, quick=quick))
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        assert cell.contestants[0] == "ours"
        assert json.loads(json.dumps(cell.settings)) == cell.settings
        assert all(contestants.find(cell.suite, name) for name in cell.contestants)


def test_labels_are_short_and_differ():
    labels = candidate_labels({"labels": 100})
    assert len(set(labels)) == 100
    assert {len(label.split()) for label in labels} == {1, 2, 3}


def test_scores_are_near_those_of_open_clip(folder):
    outputs = {}
    for name in ("ours", "ours_fused", "open_clip", "transformers"):
        contestant_class = import_module(contestants.find("zero_shot", name)[1]).CONTESTANTS[name]
        contestant = contestant_class(SETTINGS, folder)
        contestant.result = contestant.run()
        outputs[name] = contestant.outputs()
    for scores in outputs.values():
        assert sum(scores) == pytest.approx(1.0, abs=1e-4)
        # The pixels of torchvision, and transformers' crop, are not quite open_clip's.
        assert scores == pytest.approx(outputs["open_clip"], abs=0.05)
