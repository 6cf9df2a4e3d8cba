"""The suite of processors: its cells, and its contestants on small images and few texts in this process."""

from importlib import import_module

import contestants
import pytest
import torch
from harness.cells import difference


IMAGES = {"task": "images", "device": "cpu", "sizes": [[64, 48], [39, 55]], "count": 3, "on_torchvision": False}
TEXTS = {"task": "texts", "device": "cpu", "count": 5}
# Half a level of 255 on average, as the image processor says of itself.
TORCHVISION_ERROR = 0.5


def run(name: str, folder, settings: dict):
    """A contestant that has run."""
    contestant = import_module(contestants.find("processing", name)[1]).CONTESTANTS[name](settings, folder)
    contestant.result = contestant.run()
    return contestant


@pytest.mark.parametrize("form", ["pil", "jpeg"])
def test_pixels_on_pillow_are_those_of_open_clip(form, tmp_path):
    settings = {**IMAGES, "form": form}
    ours, open_clip = (run(name, tmp_path, settings) for name in ("ours", "open_clip"))
    assert ours.result.shape == (3, 3, 224, 224)
    assert torch.equal(ours.result, open_clip.result)
    assert difference(ours.outputs(), open_clip.outputs()) == (0.0, False)
    assert set(ours.figures().values()) == {0.0}
    for name in ("transformers", "transformers_pil"):
        assert run(name, tmp_path, settings).result.shape == ours.result.shape


@pytest.mark.parametrize("form", ["tensor", "stacked"])
def test_pixels_on_torchvision_are_near_those_of_open_clip(form, tmp_path):
    settings = {**IMAGES, "form": form, "on_torchvision": True, "sizes": [[64, 48]]}
    assert run("open_clip", tmp_path, settings).figures()["largest error, of 255"] == 0
    for name in ("ours", "transformers"):
        assert 0 < run(name, tmp_path, settings).figures()["mean error, of 255"] < TORCHVISION_ERROR


@pytest.mark.parametrize("kind", ["ascii", "mixed"])
@pytest.mark.parametrize("tokenizer", ["clip", "siglip"])
def test_ids_are_those_of_open_clip(tokenizer, kind, tmp_path):
    settings = {**TEXTS, "tokenizer": tokenizer, "kind": kind}
    for batch in (1, 5):
        ours, open_clip = (run(name, tmp_path, {**settings, "batch": batch}) for name in ("ours", "open_clip"))
        assert ours.result.shape == (5, 77 if tokenizer == "clip" else 64)
        assert difference(ours.outputs(), open_clip.outputs()) == (0.0, True)
        assert run("transformers", tmp_path, {**settings, "batch": batch}).result.shape == ours.result.shape


def test_captions_of_both_kinds_differ(tmp_path):
    from contestants.processing_inputs import captions

    ascii_texts, mixed = (captions({"kind": kind, "count": 20}) for kind in ("ascii", "mixed"))
    assert all(text.isascii() for text in ascii_texts)
    assert 5 < sum(not text.isascii() for text in mixed) < 20
    assert len(set(mixed)) == 20
