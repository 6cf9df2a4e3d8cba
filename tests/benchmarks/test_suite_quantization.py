"""The suite of quantisation: its cells, and its contestants on the digits model and a reduced one."""

import pytest
from contestants.weights import make_weights
from suites import quantization


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a function that makes a contestant and runs it."""
    pytest.importorskip("torchao")
    pytest.importorskip("sklearn")
    from contestants.quantization_ours import CONTESTANTS

    folder = tmp_path_factory.mktemp("weights")
    make_weights("ours", {"model": "coca_ViT-B-32", "reduced": True}, folder)

    def make(name: str, **settings):
        contestant = CONTESTANTS[name]({"reduced": True, "device": "cpu", **settings}, folder)
        contestant.result = contestant.run()
        return contestant

    return make


@pytest.mark.parametrize("name", quantization.FORMS)
def test_digits_are_captioned_in_every_form(made, name):
    contestant = made(name, task="digits", pictures=5)
    figures = contestant.figures()
    assert len(contestant.outputs()) == 5
    assert figures["right captions"] >= 0.6
    assert min(figures["cosine, images"], figures["cosine, texts"]) > 0.99
    assert figures["weights, MB"] > 0


@pytest.mark.parametrize("name", ["ours", "ours_int8"])
def test_models_at_full_size_have_captions_and_features(made, name):
    settings = {"model": "coca_ViT-B-32", "batch": 2}
    assert len(made(name, task="captions", length=5, **settings).outputs()) == 2
    images = made(name, task="images", compiled=False, **settings)
    assert len(images.outputs()) == 48
    assert images.figures()["cosine, images"] > 0.99
