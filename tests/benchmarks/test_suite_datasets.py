"""The suite of data sets: its contestants on reduced models and few images, in processes of their own."""

import os
import subprocess
import sys

import numpy
import pytest
from contestants import datasets_processes
from contestants.datasets_processes import CONTESTANTS, proportional_memory
from contestants.weights import make_weights
from harness.cells import Options
from suites import datasets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for form in ("open_clip", "ours"):
        make_weights(form, {"model": datasets.SMALL, "reduced": True}, folder)
    return folder


@pytest.fixture(autouse=True)
def search_path(monkeypatch):
    """Set the environment variables of a worker, and take one Python for all."""
    from harness.measure import variables

    for name, value in variables(1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(datasets_processes, "python_of", lambda environment: sys.executable)


def settings(command, model, count):
    return {"command": command, "model": model, "reduced": True, "count": count, "threads": 1, "device": "cpu"}


def run(name, folder, *cell):
    contestant = CONTESTANTS[name](settings(*cell), folder)
    assert 0 < contestant.timed_run() < 120
    assert 2e8 < contestant.peak_bytes() < 4e9
    figures = contestant.figures()
    assert figures["images/s"] > 0 and figures["cores"] > 0
    return contestant.outputs(), figures


def test_memory_of_processes_is_that_of_their_children_too():
    code = "import time; block = bytearray(80_000_000); print(flush=True); time.sleep(60)"
    before = proportional_memory(os.getpid())
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        after = proportional_memory(os.getpid())
        child.kill()
    assert after > before + 80_000_000


@pytest.mark.slow
def test_commands_and_loops_embed_alike(folder):
    ours, figures = run("ours", folder, "embed", datasets.SMALL, 5)
    assert 0 <= figures["model busy"] <= 1 and figures["model, share of processors"] > 0
    theirs, _ = run("open_clip", folder, "embed", datasets.SMALL, 5)
    numpy.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert len(list((folder / "jpegs-5").iterdir())) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "command", "model"),
    [
        ("transformers", "embed", datasets.SMALL),
        ("ours", "caption", datasets.CAPTIONER),
        ("transformers", "caption", datasets.CAPTIONER),
        ("ours_ray_2", "embed", datasets.SMALL),
    ],
    ids=["pipeline", "caption", "pipeline_caption", "ray"],
)
def test_all_contestants_run(folder, name, command, model):
    run(name, folder, command, model, 4)


@pytest.mark.parametrize("quick", [True, False], ids=["quick", "full"])
def test_every_contestant_has_a_row(quick):
    cells = datasets.cells(Options(quick=quick))
    assert {name for cell in cells for name in cell.contestants} <= CONTESTANTS.keys()
    assert datasets.cells(Options(device="cuda")) == []
