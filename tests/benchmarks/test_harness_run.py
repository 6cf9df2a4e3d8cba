"""A whole run of the benchmarks, with contestants that only pretend to work."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import contestants
import pytest
import run
import suites
from harness import runner
from harness.workers import Worker, WorkerError


# Contestants in processes of their own: what they claim to take is what they are measured at.
CONTESTANTS = """
import os, sys, time
from harness.cells import NotRun

class Claims:
    def __init__(self, settings, folder):
        self.settings = settings
        print("chatter on standard output", flush=True)
        os.system("echo chatter of a process; cat")
        (folder / type(self).__name__).touch()

    def timed_run(self):
        return self.settings["seconds"] * self.factor

    def outputs(self):
        return [[1.0, 2.0 + self.apart], [3.0, 4.0]]

    def bound(self):
        return {"flops": 1e3, "bytes": 1e3}

class Ours(Claims):
    factor, apart = 1, 0.0

    def figures(self):
        return {"error": 0.25, "kernel": "fused"}

class Peer(Claims):
    factor, apart = 3, 0.5

    def peak_bytes(self):
        return 5_000_000

class Raises(Claims):
    def timed_run(self):
        raise RuntimeError("no such kernel")

class Dies(Claims):
    def timed_run(self):
        print("about to fail", file=sys.stderr, flush=True)
        os._exit(7)

class Missing:
    def __init__(self, settings, folder):
        raise NotRun("no such library")

class Pid(Claims):
    apart = 0.0

    def timed_run(self):
        return os.getpid() / 1e6

class Works:
    def __init__(self, settings, folder):
        self.held = bytearray(b"x") * 40_000_000

    def run(self):
        time.sleep(0.003)
        return ["a", 3]

    def outputs(self):
        return self.result

CONTESTANTS = {"ours": Ours, "peer": Peer, "raises": Raises, "dies": Dies, "missing": Missing, "works": Works}
CONTESTANTS["pid"] = Pid
"""
SUITE = """
from harness.cells import Cell

TITLE = "Made up"
ABOUT = "Nothing is compared."

def cells(options):
    everyone = ("ours", "peer", "raises", "dies", "missing", "elsewhere")
    return [
        Cell("made_up", "first", {"seconds": 0.5}, everyone, "images", 4, goal=2.0, reference="peer", group="g"),
        Cell("made_up", "second", {"seconds": 0.25}, ("ours", "peer", "pid"), goal=4.0, group="g"),
        Cell("made_up", "third", {}, ("works", "works_too")),
    ]

def notes(results):
    return [f"{len(results)} cells."]
"""


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """A suite "made_up" whose module and contestants are in a temporary folder; returns a folder for results."""
    (tmp_path / "made_up_contestants.py").write_text(CONTESTANTS + 'CONTESTANTS["works_too"] = Works\n')
    (tmp_path / "made_up.py").write_text(SUITE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("BENCH_CAPTIONING_PYTHON", str(tmp_path / "no_python"))
    monkeypatch.setattr(suites, "__path__", [*suites.__path__, str(tmp_path)])
    monkeypatch.setattr(run, "SUITES", ("made_up",))
    monkeypatch.delitem(sys.modules, "suites.made_up", raising=False)
    names = ("ours", "peer", "raises", "dies", "missing", "pid", "works", "works_too")
    rows = {("made_up", name): ("newest", "made_up_contestants") for name in names}
    rows["made_up", "elsewhere"] = ("captioning", "made_up_contestants")
    monkeypatch.setattr(contestants, "TABLE", rows)
    monkeypatch.setattr(runner, "measure_ceilings", lambda *_: {"matmul_float32": 4e9, "bandwidth": 2e9})
    return tmp_path / "results"


def run_benchmarks(*arguments: str) -> int:
    return run.main(["--suite", "made_up", "--quick", "--threads", "1", *arguments])


def rows_of(folder: Path) -> dict[str, dict]:
    record = json.loads((folder / "made_up.json").read_text())
    return {row["cell"]["name"]: row for row in record["results"]}


def test_run_measures_every_contestant_and_survives_those_that_fail(made_up, capsys):
    assert run_benchmarks("--output", str(made_up)) == 0
    first, second, third = rows_of(made_up).values()
    ours, peer, raises, dies, missing, elsewhere = first["measurements"]
    assert ours["seconds"] == [0.5, 0.5] and peer["seconds"] == [1.5, 1.5]
    assert first["summary"]["ratios"] == {"peer": {"median": 3.0, "low": 3.0, "high": 3.0, "count": 2}}
    assert first["summary"]["throughput"]["ours"] == 8.0
    assert first["summary"]["goal"]["ours"] == "met" and second["summary"]["goal"]["ours"] == "missed"
    assert first["bound"] == [{"flops": 1e3, "bytes": 1e3}] and 0 < first["summary"]["share_of_bound"]["ours"] < 1
    assert peer["difference"] == 0.5 / 4.0 and not peer["exact"]
    assert peer["peak"] == 5_000_000 and ours["figures"] == {"error": 0.25, "kernel": "fused"}
    assert raises["error"] == "failed: RuntimeError: no such kernel"
    assert dies["error"].startswith("failed: the process died (exit code 7)") and "about to fail" in dies["error"]
    assert missing["error"] == "not run: no such library"
    assert elsewhere["error"].startswith('not run: no Python of the environment "captioning"')
    works, works_too = third["measurements"]
    assert all(seconds >= 0.003 for seconds in works["seconds"])
    assert works_too["exact"] and works_too["difference"] == 0.0
    assert works["peak"] - works["baseline"] >= 35_000_000
    assert "3.00x" in capsys.readouterr().out


def test_run_writes_a_page_and_a_picture(made_up):
    pytest.importorskip("matplotlib")
    run_benchmarks("--output", str(made_up), "--only", "first")
    page = (made_up / "made_up.md").read_text()
    for text in (
        "# Made up",
        "--suite made_up",
        "memory bandwidth",
        "500 ms (500-500)",
        "3.00x (3.00-3.00)",
        "1.2e-01",
    ):
        assert text in page
    assert "2x peer: met" in page and "first, missing: not run: no such library" in page and "- 1 cells." in page
    assert "(made_up.png)" in page
    assert (made_up / "made_up.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in made_up.iterdir()) == ["made_up.json", "made_up.md", "made_up.png"]


def test_part_of_a_run_is_added_to_results_of_the_same_machine_and_versions(made_up):
    folder, file = str(made_up), made_up / "made_up.json"
    run_benchmarks("--output", folder, "--only", "THIRD")
    run_benchmarks("--output", folder, "--only", "second", "--rounds", "3")
    rows = rows_of(made_up)
    assert list(rows) == ["second", "third"]
    assert len(rows["second"]["measurements"][0]["seconds"]) == 3
    file.write_text(file.read_text().replace('"python": "', '"python": "0.'))
    run_benchmarks("--output", folder, "--only", "second")
    assert list(rows_of(made_up)) == ["second"]


def test_samples_of_several_processes_are_joined(made_up):
    run_benchmarks("--output", str(made_up), "--only", "first|second", "--processes", "3")
    rows = rows_of(made_up)
    ours, _, pid = rows["second"]["measurements"]
    assert ours["seconds"] == [0.25] * 6 and ours["rounds"] == list(range(6))
    assert len(set(pid["seconds"])) == 3 and pid["seconds"][::2] == pid["seconds"][1::2]
    assert rows["second"]["summary"]["ratios"]["peer"]["count"] == 6
    assert rows["first"]["measurements"][3]["error"].startswith("failed: the process died (exit code 7)")
    assert "--processes 3" in (made_up / "made_up.md").read_text()


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_numbers_of_things_are_from_1(number, capsys):
    with pytest.raises(SystemExit):
        run.parse_arguments(["--processes", number])
    assert f"{number!r} is no number from 1" in capsys.readouterr().err


def test_json_is_all_that_is_printed(made_up, capsys):
    assert run_benchmarks("--only", "second", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["made_up"]["results"][0]["summary"]["ratios"]["peer"]["median"] == 3.0
    assert not made_up.exists()


def test_cells_that_no_suite_has_are_an_error(made_up, capsys):
    assert run_benchmarks("--only", "fourth") == 2
    assert "first, second, third" in capsys.readouterr().err


def test_a_missing_gpu_is_an_error(made_up, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run_benchmarks("--device", "cuda") == 2
    assert "no GPU" in capsys.readouterr().err


def test_worker_that_does_not_answer_is_ended(tmp_path):
    with Worker("newest", tmp_path, "worker", 1) as worker:
        with pytest.raises(WorkerError, match='no answer to "describe" within 0 s'):
            worker.ask("describe", limit=0.001, device="cpu")
        assert not worker.alive
        with pytest.raises(WorkerError, match="died"):
            worker.ask("describe", device="cpu")


def test_terminated_run_leaves_nothing_behind(tmp_path):
    process = subprocess.Popen(
        [sys.executable, run.__file__, "--quick", "--suite", "encoder"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list(tmp_path.glob("benchmark_*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 143
    assert list(tmp_path.iterdir()) == []
