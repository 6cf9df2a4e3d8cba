"""The suite of towers: its cells, and its contestants on reduced models in this process."""

from importlib import import_module

import contestants
import pytest
import torch
from contestants.model_bounds import meta_model, tower_bound
from contestants.model_inputs import input_ids, pixel_values
from contestants.weights import make_weights
from harness.cells import difference


SETTINGS = {"model": "ViT-B-32", "reduced": True, "device": "cpu", "batch": 3, "compiled": False}
PEERS = {"image": ("ours_optimized", "open_clip", "transformers", "timm"), "text": ("open_clip", "transformers")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make the weights in all forms in this process, as processes of their own do in a run."""
    folder = tmp_path_factory.mktemp("weights")
    for form in ("ours", "transformers", "features"):
        make_weights(form, SETTINGS, folder)
    return folder


def run(name: str, folder, **settings):
    """A contestant that has run."""
    contestant_class = import_module(contestants.find("encoder", name)[1]).CONTESTANTS[name]
    contestant = contestant_class({**SETTINGS, **settings}, folder)
    contestant.result = contestant.run()
    return contestant


def test_inputs_are_the_same_rows_in_every_batch():
    few, many = ({**SETTINGS, "batch": batch, "dtype": "float32"} for batch in (2, 5))
    assert torch.equal(pixel_values(few), pixel_values(many)[:2])
    assert torch.equal(input_ids(few), input_ids(many)[:2])


@pytest.mark.parametrize("tower", PEERS)
def test_contestants_compute_the_same_features(tower, folder):
    ours = run("ours", folder, tower=tower, dtype="float32")
    assert ours.result.shape == (3, 48)
    for name in PEERS[tower]:
        peer = run(name, folder, tower=tower, dtype="float32")
        assert difference(ours.outputs(), peer.outputs())[0] < 2e-5
        assert peer.figures() == {}


@pytest.mark.parametrize("name", ["ours", "open_clip", "timm"])
def test_contestants_in_bfloat16_tell_their_error(name, folder):
    contestant = run(name, folder, tower="image", dtype="bfloat16")
    assert contestant.result.dtype == torch.bfloat16
    assert 1e-4 < contestant.figures()["error against fp32"] < 0.05


@pytest.mark.parametrize("tower", ["image", "text"])
def test_bound_reads_every_weight_once(tower, folder):
    settings = {**SETTINGS, "tower": tower, "dtype": "bfloat16"}
    model = meta_model(folder / "ViT-B-32-reduced-ours")
    bound = tower_bound(model, settings)
    table = model.text_model.embeddings.token_embedding.weight
    weights = (model.vision_model if tower == "image" else model.text_model).num_parameters()
    assert bound["bytes"] == 2 * (weights - (table.numel() if tower == "text" else 0))
    assert bound["dtype"] == "bfloat16"
    # Twice the rows, twice the work.
    assert tower_bound(model, {**settings, "batch": 6})["flops"] == 2 * bound["flops"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ours", "open_clip", "transformers", "timm"])
def test_contestants_compile(name, folder):
    settings = {"tower": "image", "dtype": "float32"}
    plain, compiled = run(name, folder, **settings), run(name, folder, **settings, compiled=True)
    assert difference(plain.outputs(), compiled.outputs())[0] < 2e-5
