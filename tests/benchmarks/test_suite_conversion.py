"""The suite of conversions: its cells, and both contestants on a reduced checkpoint."""

import os

import pytest
import torch
from contestants.conversion_files import CONTESTANTS, checkpoint
from contestants.weights import make_weights
from harness.measure import variables
from safetensors.torch import load_file


SETTINGS = {"model": "coca_ViT-B-32", "reduced": True, "dtype": "bfloat16"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    make_weights("open_clip", SETTINGS, folder)
    return folder


@pytest.fixture(autouse=True)
def search_path(monkeypatch):
    """Set the environment variables of a worker."""
    for name, value in variables(1).items():
        monkeypatch.setenv(name, value)


def test_checkpoints_of_both_formats_hold_the_same(folder):
    tensors = load_file(checkpoint({**SETTINGS, "format": "safetensors"}, folder))
    packed = torch.load(checkpoint({**SETTINGS, "format": "pt"}, folder), weights_only=True)
    assert tensors.keys() == packed.keys()
    assert all(torch.equal(tensor, packed[name]) for name, tensor in tensors.items())


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system's cache cannot be emptied")
@pytest.mark.parametrize("name", CONTESTANTS)
def test_contestants_leave_the_source_alone(name, folder):
    contestant = CONTESTANTS[name]({**SETTINGS, "format": "pt"}, folder)
    source, before = contestant.source.read_bytes(), sorted(folder.iterdir())
    assert 0 < contestant.timed_run() < 60
    assert contestant.source.read_bytes() == source
    assert sorted(folder.iterdir()) == before


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system's cache cannot be emptied")
def test_conversion_tells_its_memory(folder):
    contestant = CONTESTANTS["ours"]({**SETTINGS, "format": "safetensors"}, folder)
    contestant.timed_run()
    figures = contestant.figures()
    assert 0 < contestant.peak_bytes() < 500e6
    assert figures["seconds of processors"] > 0
    assert figures["checkpoint, GB"] == contestant.source.stat().st_size / 1e9


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system's cache cannot be emptied")
def test_conversions_that_fail_are_errors(folder):
    contestant = CONTESTANTS["ours"]({**SETTINGS, "dtype": "int7", "format": "pt"}, folder)
    with pytest.raises(OSError, match="failed with exit code 1"):
        contestant.timed_run()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_conversion_memory_is_bounded(tmp_path, kind, dtype):
    settings = {"model": "ViT-L-14", "reduced": False, "format": kind, "dtype": dtype}
    contestant = CONTESTANTS["ours"](settings, tmp_path)
    contestant.timed_run()
    size = contestant.source.stat().st_size
    assert size > 1.7e9
    assert contestant.peak_bytes() <= 0.15 * size + 200e6
