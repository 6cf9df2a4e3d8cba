"""The harness: who is measured when, what follows from samples, and a whole run of contestants that only pretend."""

import json
import math
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import contestants
import pytest
import run
import suites
from harness import cells, machine, measure, plot, report
from harness.cells import Cell, Measurement, Options, Record, Result
from harness.measure import Worker, WorkerError, take_samples


# Contestants in processes of their own: what they claim to take is what they are measured at.
CONTESTANTS = """
import os, sys, time
from harness.cells import NotRun

class Claims:
    factor, apart = 1, 0.0

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

    def figures(self):
        return {"error": 0.25, "kernel": "a | b"}

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

CONTESTANTS = {"ours": Claims, "ours_slow": Peer, "peer": Peer, "raises": Raises, "dies": Dies, "missing": Missing}
CONTESTANTS |= {"elsewhere": Claims, "pid": Pid, "works": Works, "works_too": Works}
"""
SUITE = """
from harness.cells import Cell

TITLE = "Made up"
ABOUT = "Nothing is compared."

def cells(options):
    everyone = ("ours", "ours_slow", "peer", "raises", "dies", "missing", "elsewhere")
    return [
        Cell("made_up", "first", {"seconds": 0.5}, everyone, "images", 4, goal=2.0, reference="peer", group="g"),
        Cell("made_up", "second", {"seconds": 0.25}, ("ours", "peer", "pid"), goal=4.0, group="g"),
        Cell("made_up", "third", {}, ("works", "works_too")),
    ]

def notes(record):
    return [f"{len(record.results)} cells."]
"""


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """A suite "made_up" whose module and contestants are in a temporary folder; returns a folder for results."""
    (tmp_path / "contestants_made_up.py").write_text(CONTESTANTS)
    (tmp_path / "made_up.py").write_text(SUITE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("BENCH_CAPTIONING_PYTHON", str(tmp_path / "no_python"))
    monkeypatch.setattr(suites, "__path__", [*suites.__path__, str(tmp_path)])
    monkeypatch.setattr(suites, "SUITES", ("made_up",))
    monkeypatch.delitem(sys.modules, "suites.made_up", raising=False)
    environments = {"elsewhere": "captioning"}
    monkeypatch.setattr(
        contestants, "find", lambda suite, name: (environments.get(name, "newest"), "contestants_made_up")
    )
    monkeypatch.setattr(run, "ceilings", lambda *_: {"matmul_float32": 4e9, "bandwidth": 2e9})
    return tmp_path / "results"


def run_benchmarks(folder: Path, *arguments: str) -> int:
    return run.main(["--suite", "made_up", "--quick", "--threads", "1", "--output", str(folder), *arguments])


def record_of(folder: Path) -> Record:
    [path] = (folder / "made_up").glob("*.json")
    return Record.read(path)


def test_run_measures_every_contestant_and_reports_those_that_fail(made_up, capsys):
    assert run_benchmarks(made_up) == 0
    record = record_of(made_up)
    first, second, third = record.results
    ours, slow, peer, raises, dies, missing, elsewhere = first.measurements
    assert ours.seconds == [0.5, 0.5] and peer.seconds == slow.seconds == [1.5, 1.5]
    assert first.ratios() == {"peer": (3.0, 3.0, 3.0, 2), "ours_slow": (3.0, 3.0, 3.0, 2)}
    assert first.bound == [{"flops": 1e3, "bytes": 1e3}]
    assert peer.difference == 0.5 / 4.0 and not peer.exact
    assert peer.peak == 5_000_000 and ours.figures == {"error": 0.25, "kernel": "a | b"}
    assert raises.error == "failed: RuntimeError: no such kernel"
    assert dies.error.startswith("failed: the process died (exit code 7)") and "about to fail" in dies.error
    assert missing.error == "not run: no such library"
    assert elsewhere.error.startswith('not run: no Python of the environment "captioning"')
    assert not any(own.error for own in second.measurements)
    works, works_too = third.measurements
    assert all(seconds >= 0.003 for seconds in works.seconds)
    assert works_too.exact and works_too.difference == 0.0
    assert works.peak - works.baseline >= 35_000_000
    assert "3.00 x" in capsys.readouterr().out
    for text in (
        "# Made up",
        "500 ms (500-500), n=2 |",
        "1.50 s (1.50-1.50), n=2, **3.00 x** (3.00-3.00)",
        "8.00 images/s",
    ):
        assert text in (page := (made_up / "made_up.md").read_text())
    for text in (
        "2 x peer: met; ours_slow missed",
        "**not run**",
        "first, missing: not run: no such library",
        "- 3 cells.",
    ):
        assert text in page
    assert (
        "first, dies: failed: the process died (exit code 7) /" in page and "| first | peer | 0.25 | a \\| b |" in page
    )
    assert record.machine["processor"] in page and ", ".join(record.machine["instruction_set"]) in page


def test_pages_show_the_results_of_every_machine(made_up):
    pytest.importorskip("matplotlib")
    run_benchmarks(made_up, "--only", "THIRD")
    record = record_of(made_up)
    record.machine |= {"processor": "Another(R) Processor", "instruction_set": ["AVX2", "AMX"]}
    record.notes = ["Measured elsewhere."]
    record.write(made_up)
    run_benchmarks(made_up, "--only", "second", "--rounds", "3")
    names = sorted(path.name for path in (made_up / "made_up").glob("*.json"))
    assert len(names) == 2 and "another-processor-avx2-amx-1-threads.json" in names
    assert Record.read(made_up / "made_up" / "another-processor-avx2-amx-1-threads.json") == record
    page = (made_up / "made_up.md").read_text()
    assert page.count("\n## ") == 2 and "\n\nMeasured elsewhere.\n\n" in page and "instruction set: AVX2, AMX" in page
    assert page.count("\n| third |") == 2 and page.count("\n| second | 250 ms") == 1
    pictures = list((made_up / "made_up").glob("*.png"))
    assert len(pictures) == 2 and all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert all(f"(made_up/{path.name})" in page for path in pictures)
    (made_up / "made_up.md").unlink()
    assert run_benchmarks(made_up, "--pages") == 0
    assert (made_up / "made_up.md").read_text() == page


def test_part_of_a_run_is_added_to_results_of_the_same_machine_and_versions(made_up):
    run_benchmarks(made_up, "--only", "third")
    run_benchmarks(made_up, "--only", "second", "--rounds", "3")
    record = record_of(made_up)
    assert [result.cell.name for result in record.results] == ["second", "third"]
    assert len(record.results[0].of("ours").seconds) == 3
    record.environments["newest"]["torch"] = "0.1"
    record.write(made_up)
    run_benchmarks(made_up, "--only", "second")
    assert [result.cell.name for result in record_of(made_up).results] == ["second"]


def test_samples_of_several_processes_are_joined(made_up):
    run_benchmarks(made_up, "--only", "first|second", "--processes", "3")
    record = record_of(made_up)
    first, second = record.results
    assert second.of("ours").seconds == [0.25] * 6 and second.of("ours").rounds == list(range(6))
    pids = second.of("pid").seconds
    assert len(set(pids)) == 3 and pids[::2] == pids[1::2]
    assert second.ratios()["peer"].count == 6
    assert first.of("dies").error.startswith("failed: the process died (exit code 7)")
    assert "--processes 3" in record.command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "0"], "'0' is no number from 1"),
        (["--rounds", "two"], "'two' is no number from 1"),
        (["--only", "("], "'(' is no regular expression"),
        (["--suite", "unknown"], "invalid choice"),
    ],
    ids=["zero", "word", "expression", "suite"],
)
def test_arguments_that_are_wrong_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        run.parse_arguments(arguments)
    assert message in capsys.readouterr().err


def test_json_is_all_that_is_printed(made_up, capsys):
    assert run.main(["--suite", "made_up", "--quick", "--only", "second", "--json"]) == 0
    [result] = json.loads(capsys.readouterr().out)["made_up"]["results"]
    assert result["ratios"]["peer"] == {"median": 3.0, "low": 3.0, "high": 3.0, "count": 2}
    assert not made_up.exists()


def test_what_cannot_be_run_is_an_error(made_up, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run_benchmarks(made_up, "--only", "fourth") == 2
    assert "first, second, third" in capsys.readouterr().err
    assert run_benchmarks(made_up, "--device", "cuda") == 2
    assert "no GPU" in capsys.readouterr().err
    run_benchmarks(made_up, "--only", "third")
    [path] = (made_up / "made_up").glob("*.json")
    path.write_text('{"results": [{"cell": {}}]}')
    assert run_benchmarks(made_up, "--only", "third") == 2
    assert f"{path} is no record" in capsys.readouterr().err


def test_worker_that_does_not_answer_is_ended(tmp_path):
    with Worker("newest", tmp_path, 1) as worker:
        with pytest.raises(WorkerError, match='no answer to "describe" within 0 s'):
            worker.ask("describe", limit=0.001, device="cpu")
        with pytest.raises(WorkerError, match="died"):
            worker.ask("describe", device="cpu")


def test_terminated_run_leaves_nothing_behind(tmp_path):
    command = [sys.executable, run.__file__, "--quick", "--suite", "encoder"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("benchmark_*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 143
    assert list(tmp_path.iterdir()) == []


class Clock:
    """A contestant that takes the given seconds, then the last of them, or fails where they are None."""

    def __init__(self, name: str, *seconds: float | None, calls: list[str] | None = None):
        self.name, self.seconds, self.calls = name, list(seconds), [] if calls is None else calls

    def __call__(self, repeats: int) -> float:
        self.calls.append(self.name)
        seconds = self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]
        if seconds is None:
            raise WorkerError("broken")
        return seconds * repeats


def sample(*clocks: Clock, **options) -> dict[str, Measurement]:
    """The measurements of clocks that ran side by side."""
    running = [(Measurement(clock.name, "newest"), clock) for clock in clocks]
    take_samples(running, Options(**options))
    return {own.contestant: own for own, _ in running}


def test_contestants_take_turns_in_an_order_that_rotates():
    calls: list[str] = []
    taken = sample(*(Clock(name, 1.0, calls=calls) for name in "abc"), rounds=3)
    assert "".join(calls) == "aabbcc" + "abc" + "bca" + "cab"
    assert all(own.seconds == [1.0] * 3 and own.rounds == [0, 1, 2] for own in taken.values())


def test_contestant_that_fails_is_out_and_the_others_go_on():
    taken = sample(Clock("early", None), Clock("late", 1.0, 1.0, 1.0, None), Clock("ours", 1.0), rounds=4)
    assert taken["early"].error == "failed: broken" and not taken["early"].seconds
    assert taken["late"].error and taken["late"].rounds == [0]
    assert taken["ours"].error is None and len(taken["ours"].seconds) == 4


@pytest.mark.parametrize(
    ("seconds", "budget", "rounds"),
    [(15.0, 100.0, 5), (24.0, 100.0, 4), (90.0, 100.0, 2), (150.0, 250.0, 1), (150.0, 300.0, 2), (150.0, 450.0, 3)],
    ids=["within", "one_less", "slowest", "long", "long_with_room", "long_with_more"],
)
def test_slow_contestants_take_part_in_fewer_rounds(seconds, budget, rounds):
    own = sample(Clock("ours", seconds), rounds=5, budget=budget)["ours"]
    assert own.seconds == [seconds] * rounds and own.rounds[0] == 0 and len(set(own.rounds)) == rounds


@pytest.mark.parametrize(
    ("seconds", "runs"),
    [((3.0, 1.0, 1.05, 1.0), 3), ((1.0, 1.05, 9.0), 2), ((3.0, 2.0, 1.0, 1.0), 3), ((60.0, 1.0), 1)],
    ids=["steady_at_last", "steady_at_once", "never_steady", "slow"],
)
def test_warm_up_ends_when_runs_are_steady(seconds, runs):
    clock = Clock("ours", *seconds)
    assert measure.warm_up(clock) == seconds[runs - 1] and len(clock.calls) == runs


def test_short_runs_are_repeated_in_a_sample():
    assert sample(Clock("ours", 0.02, 0.02, 0.01))["ours"].repeats == 10
    assert sample(Clock("ours", 0.1))["ours"].repeats == 1


def result_of(ours: list[float], goal: float | None = None, reference: str | None = None, **others) -> Result:
    samples = {"ours": ours, **others}
    measured = [Measurement(name, "newest", taken, list(range(len(taken)))) for name, taken in samples.items()]
    return Result(Cell("made_up", "cell", {}, tuple(samples), goal=goal, reference=reference), measured)


def test_ratio_is_of_the_same_rounds():
    result = result_of([1.0, 2.0, 4.0], peer=[8.0, 8.0], apart=[6.0], missing=[])
    result.of("peer").rounds, result.of("apart").rounds = [0, 2], [5]
    assert result.ratios() == {"peer": (5.0, 2.0, 8.0, 2), "apart": (3.0, 3.0, 3.0, 1)}
    assert cells.spread([5.0, 1.0, 3.0, 2.0, 4.0]) == (3.0, 2.0, 4.0, 5)


@pytest.mark.parametrize(
    ("goal", "outcome"),
    [(None, {}), (1.9, {"ours": "met"}), (2.3, {"ours": "within noise"}), (2.6, {"ours": "missed"})],
    ids=["none", "met", "noise", "missed"],
)
def test_goal_is_judged_by_the_ratio_and_its_spread(goal, outcome):
    assert cells.verdicts(result_of([1.0] * 3, goal, peer=[1.8, 2.0, 2.5]), {}) == outcome


def test_goal_is_against_the_fastest_peer_for_ours_and_its_variants():
    result = result_of([1.0], 2.0, peer=[3.0], ours_optimized=[0.5], faster=[1.5])
    assert cells.goal_peer(result) == "faster"
    assert cells.verdicts(result, {}) == {"ours": "missed", "ours_optimized": "met"}
    assert cells.verdicts(result_of([1.0], 2.0, "other", peer=[3.0]), {}) == {"ours": "not measured"}


@pytest.mark.parametrize(
    ("most", "outcome"), [(2.0, "met"), (1.7, "within noise"), (1.4, "missed")], ids=["met", "noise", "missed"]
)
def test_variant_with_limits_is_judged_by_these_alone(most, outcome):
    result = result_of([1.0] * 3, 2.0, peer=[3.0], ours_small=[1.5, 2.0, 2.5], ours_gone=[])
    limits = {"ours_small": {"time": most, "memory": 0.5}, "ours_gone": {"time": 1.0}}
    for name, memory in (("ours", "90 MB"), ("ours_small", "40 MB")):
        result.of(name).figures["memory"] = memory
    assert cells.verdicts(result, limits) == {"ours": "met"}
    assert list(cells.limit_verdicts(result, limits)) == [
        ("ours_small", "time", most, outcome),
        ("ours_small", "memory", 0.5, "met"),
        ("ours_gone", "time", 1.0, "not measured"),
    ]
    result.of("ours").figures.clear()
    assert list(cells.limit_verdicts(result, limits))[1] == ("ours_small", "memory", 0.5, "not measured")
    goal = report._goal(result, limits)
    assert goal.startswith(f"2 x fastest (peer): met; ours_small at most {most:g} x the time of ours: {outcome}; ")


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([[1.0, 2.0], [3.0]], [[1.0, 2.5], [5.0]], (2.0 / 5.0, False)),
        ([1.0], [1.0, 2.0], (math.inf, False)),
        ([math.nan], [1.0], (math.inf, False)),
        ([[3, 4], [5, 6]], [[3, 4], [5, 7]], (0.25, True)),
        (["a cat"], ["a cat", "a dog"], (0.5, True)),
        ([], [], (0.0, True)),
    ],
    ids=["values", "shapes", "not_finite", "tokens", "strings", "nothing"],
)
def test_difference_of_outputs(ours, theirs, expected):
    assert cells.difference(ours, theirs) == expected


def test_bound_is_the_slower_of_operations_and_bytes_of_each_step():
    rates = {"matmul_float32": 100.0, "matmul_bfloat16": 400.0, "bandwidth": 10.0}
    steps = [{"flops": 300, "bytes": 20}, {"flops": 400, "bytes": 50, "dtype": "bfloat16"}, {"bytes": 10}]
    result = result_of([1.0])
    for result.bound, seconds in ((steps, 9.0), ([{"flops": 1, "dtype": "int8"}], None), ([], None)):
        assert cells.bound_seconds(result, {"before": rates, "after": {"bandwidth": 5.0}}) == seconds
    assert machine.ceilings("cpu", quick=True).keys() == rates.keys()


def test_page_says_where_rows_are_of_several_commits_and_the_machine_was_not_quiet(monkeypatch):
    monkeypatch.setattr(suites, "load", lambda name: suites)
    rows = [result_of([seconds], peer=[2.0]) for seconds in (1.0, 7.8e-6)]
    rows[0].commit, rows[1].commit = "1111111111", "2222222222"
    ceilings = {"before": {"bandwidth": 4e9}, "after": {"bandwidth": 3e9}}
    record = Record("made_up", "run", {"processor": "p"}, {}, ceilings, [], rows)
    heading, first, second = report.table(record)
    assert heading == ["Cell", "ours", "peer", "Throughput", "Commit"]
    assert first[-1] == "1111111111" and second[1] == "7.80 µs (7.80-7.80), n=1"
    assert "differ by 25%: the machine was not quiet" in report.notes(record)[0]


@pytest.mark.parametrize("name", suites.SUITES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
def test_cells_of_a_suite_hold_together(name, device, quick):
    suite = suites.load(name)
    rows = suite.cells(Options(device=device, quick=quick))
    assert suite.TITLE and suite.ABOUT.strip()
    assert bool(rows) == (
        device == "cpu" or name not in {"conversion", "datasets", "linear", "quantization", "startup"}
    )
    assert len({cell.name for cell in rows}) == len(rows)
    groups = [cell.group or cell.name for cell in rows]
    assert sum(group != before for before, group in pairwise(["", *groups])) == len(set(groups))
    for cell in rows:
        assert cell.suite == name and cell.count > 0 and cell.contestants[0] == "ours"
        assert cell.reference is None or cell.reference in cell.contestants[1:]
        assert json.loads(json.dumps(cell.settings)) == cell.settings
        assert set(cell.contestants) <= {*plot.VARIANTS, *plot.PEERS}
        for contestant in cell.contestants:
            environment, module = contestants.find(name, contestant)
            assert environment in measure.ENVIRONMENTS
            assert (measure.BENCHMARKS / Path(*module.split("."))).with_suffix(".py").is_file()


def test_stored_pages_are_those_of_the_stored_records(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(plot, "draw", lambda *_: b"")
    measured = [name for name in suites.SUITES if (measure.BENCHMARKS / "results" / name).is_dir()]
    assert len(measured) >= 9
    for name in measured:
        for path in (measure.BENCHMARKS / "results" / name).glob("*.json"):
            Record.read(path).write(tmp_path)
            assert (tmp_path / name / path.name).read_bytes() == path.read_bytes()
        report.write_page(name, tmp_path)
        page = f"{name}.md"
        assert (tmp_path / page).read_text() == (measure.BENCHMARKS / "results" / page).read_text(), "run --pages"


def test_pictures_tell_contestants_apart():
    colors = pytest.importorskip("matplotlib.colors")

    def contrast(color) -> float:  # to white, as WCAG defines it, which asks graphics for 3
        linear = [part / 12.92 if part <= 0.04 else ((part + 0.055) / 1.055) ** 2.4 for part in color]
        return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)

    drawn = {name: plot.style(name) for name in [*plot.VARIANTS, *plot.PEERS, "another"]}
    rgb = {name: colors.to_rgb(color) for name, (color, _) in drawn.items()}
    assert len(set(rgb.values())) == len(drawn)
    assert all(contrast(color) >= 3 for color in rgb.values())
    shapes = {name: drawn[name][1] for name in plot.VARIANTS}
    assert len(set(shapes.values())) == len(shapes) and "o" not in shapes.values()
    bluest = {name for name, (red, green, blue) in rgb.items() if blue > 1.3 * max(red, green) or name == "ours"}
    assert bluest <= set(plot.VARIANTS)


def test_parent_imports_nothing_heavy():
    heavy = {"torch", "transformers", "open_clip", "timm", "PIL", "numpy", "matplotlib"}
    check = "import sys, run, suites; [suites.load(name) for name in suites.SUITES]; "
    check += f"assert not set(sys.modules) & {heavy}"
    subprocess.run([sys.executable, "-c", check], cwd=measure.BENCHMARKS, check=True)
