"""The tables of suites and contestants hold together, and making cells needs no heavy library."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import contestants
import pytest
import suites
from harness.cells import Options
from harness.environments import BENCHMARKS, ENVIRONMENTS


ONLY_ON_CPU = {"conversion", "linear", "quantization", "startup"}

each_suite = pytest.mark.parametrize("name", suites.SUITES)


@each_suite
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
def test_cells_have_names_of_their_own_and_contestants_of_the_table(name, device, quick):
    cells = suites.load(name).cells(Options(device=device, quick=quick))
    assert bool(cells) == (device == "cpu" or name not in ONLY_ON_CPU)
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        assert cell.suite == name and cell.count > 0
        assert cell.contestants[0] == "ours"
        assert cell.reference is None or cell.reference in cell.contestants[1:]
        assert json.loads(json.dumps(cell.settings)) == cell.settings
        for contestant in cell.contestants:
            environment, module = contestants.find(name, contestant)
            assert environment in ENVIRONMENTS
            assert (BENCHMARKS / Path(*module.split("."))).with_suffix(".py").is_file()


@each_suite
def test_cells_of_a_group_follow_each_other(name):
    groups = [cell.group or cell.name for cell in suites.load(name).cells(Options())]
    changes = sum(group != before for before, group in pairwise(groups))
    assert changes + 1 == len(set(groups))


@each_suite
def test_page_of_a_suite_has_a_heading_and_a_text(name):
    suite = suites.load(name)
    assert suite.TITLE and "\n" not in suite.TITLE and suite.ABOUT.strip()


def test_parent_imports_nothing_heavy():
    heavy = {"torch", "transformers", "open_clip", "timm", "PIL", "numpy", "matplotlib"}
    check = "import sys, run, suites; [suites.load(name) for name in suites.SUITES]; "
    check += f"assert not set(sys.modules) & {heavy}"
    subprocess.run([sys.executable, "-c", check], cwd=BENCHMARKS, check=True)
