"""The suite of start-up: its cells, and its processes on a reduced model."""

import pytest
from contestants.startup_processes import CONTESTANTS
from contestants.weights import make_weights


SETTINGS = {"model": "ViT-B-32", "reduced": True, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for form in ("ours", "transformers"):
        make_weights(form, SETTINGS, folder)
    return folder


@pytest.fixture(autouse=True)
def search_path(monkeypatch):
    """Set the environment variables of a worker."""
    from harness.measure import variables

    for name, value in variables(1).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("name", CONTESTANTS)
def test_processes_load_and_encode(name, folder):
    contestant = CONTESTANTS[name]({**SETTINGS, "task": "encode"}, folder)
    assert 0 < contestant.timed_run() < 60
    assert 0 < contestant.peak_bytes() < 1e9


def test_processes_are_timed_as_a_whole(tmp_path):
    contestant = CONTESTANTS["ours"]({"task": "help"}, tmp_path)
    seconds = contestant.timed_run()
    # Python itself, which the time of a part would leave out.
    assert seconds > 0.01
    assert contestant.peak_bytes() > 5e6


def test_processes_that_fail_say_why(tmp_path):
    contestant = CONTESTANTS["ours"]({"task": "help"}, tmp_path)
    contestant.command[2] = "raise SystemExit('what went wrong')"
    with pytest.raises(OSError, match="what went wrong"):
        contestant.timed_run()
