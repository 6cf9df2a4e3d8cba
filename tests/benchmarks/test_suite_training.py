"""The suite of training: contestants on a reduced model have the same loss."""

from importlib import import_module

import contestants
import pytest
from contestants.weights import make_weights


SETTINGS = {"model": "ViT-B-32", "reduced": True, "device": "cpu", "dtype": "float32", "batch": 4, "steps": 2}


def test_losses_are_those_of_open_clip(tmp_path):
    for form in ("ours", "transformers"):
        make_weights(form, SETTINGS, tmp_path)
    outputs = {}
    for name in ("ours", "ours_mini_batches", "open_clip", "transformers"):
        contestant_class = import_module(contestants.find("training", name)[1]).CONTESTANTS[name]
        contestant = contestant_class(SETTINGS, tmp_path)
        contestant.run()
        contestant.result = contestant.run()  # steps leave the weights as they are
        outputs[name] = contestant.outputs()
        assert float(contestant.figures()["memory of a step"].removesuffix(" MB")) > 0
    assert outputs == {name: pytest.approx(outputs["open_clip"], rel=1e-5) for name in outputs}
    assert outputs["ours"][0] > 0.01
