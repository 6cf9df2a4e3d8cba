"""Measure cells: start workers, warm contestants up, let them take turns, and compare what they put out."""

import contextlib
import datetime
import itertools
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import contestants

from .cells import Cell, Measurement, NotRun, Options, Result, difference


BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
# Name -> Python of the environment, from the root of the repository. "captioning" holds the last transformers on which
# open_clip 3.3.0 writes captions.
ENVIRONMENTS = {"newest": sys.executable, "captioning": ".venv-captioning/bin/python"}
# Of an answer: building may compile, and a run of the slowest contestant takes minutes.
LIMIT_SECONDS = 1800.0
# A sample repeats a shorter run until it lasts this long.
SAMPLE_SECONDS, QUICK_SAMPLE_SECONDS = 0.1, 0.002
# A first run this long is warm-up enough, and one this long is the only sample unless the budget has room for two.
SLOW_SECONDS, LONG_SECONDS = 10.0, 120.0
WARM_UPS, STEADY, FEWEST_ROUNDS = 3, 0.1, 2
# Threads of the process before wait for more work for some milliseconds, and would take the processor meanwhile.
PAUSE_SECONDS = 0.02


class WorkerError(Exception):
    """A contestant failed: it raised an error, died or did not answer."""


def log(text: str):
    """Print a line of progress, which is no part of the result."""
    print(text, file=sys.stderr, flush=True)


def python_of(environment: str) -> str:
    """The Python of an environment, or of the variable BENCH_<NAME>_PYTHON; raises NotRun where there is none."""
    variable = f"BENCH_{environment.upper()}_PYTHON"
    python = ROOT / (os.environ.get(variable) or ENVIRONMENTS[environment])
    if not python.exists():
        raise NotRun(f'no Python of the environment "{environment}" at {python}: run `make bench`, or set {variable}')
    return str(python)


def variables(threads: int) -> dict[str, str]:
    """Environment variables of a worker: the same for all, offline, with so many threads."""
    set_here = {
        "OMP_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(BENCHMARKS), str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    return {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"} | set_here


class Worker:
    """A process of an environment that answers commands (worker.py); a context manager, which ends it."""

    def __init__(self, environment: str, folder: Path, threads: int):
        python = python_of(environment)
        self._connection, theirs = Pipe()
        self._log = tempfile.TemporaryFile("w+", dir=folder)  # noqa: SIM115  as long as the process
        self._process = subprocess.Popen(
            [python, "-m", "harness.worker", str(theirs.fileno())],
            cwd=folder,
            env=variables(threads),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    def ask(self, command: str, limit: float = LIMIT_SECONDS, **arguments) -> object:
        """The answer to a command of `Session`; raises WorkerError for a failure, a death or no answer, or NotRun."""
        try:
            self._connection.send((command, arguments))
            if not self._connection.poll(limit):
                self.__exit__()
                raise WorkerError(f'no answer to "{command}" within {limit:.0f} s')
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            code = self._process.wait()
            self._log.seek(0)
            last = self._log.read().splitlines()[-12:]
            ending = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise WorkerError("\n".join([f"the process died ({ending})", *last])) from error
        if kind != "answer":
            raise (NotRun if kind == "not run" else WorkerError)(value)
        return value

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception):
        self._process.kill()
        self._process.wait()


def measure(cells: list[Cell], options: Options, folder: Path) -> Iterator[Result]:
    """Measure cells in their order; a result comes again each time another process has added to it.

    folder: an empty one, for what contestants share.
    """
    share = replace(options, budget=options.budget / options.processes)
    for group in [list(same) for _, same in itertools.groupby(cells, key=lambda cell: cell.group or cell.name)]:
        results: dict[str, Result] = {}
        for process in range(options.processes):
            with contextlib.ExitStack() as stack:
                workers: dict[str, Worker] = {}
                for cell in group:
                    log(f"{cell.suite}: {cell.name}")
                    found = measure_cell(cell, share, folder, workers, stack)
                    result = results.setdefault(cell.name, found)
                    for own, later in zip(result.measurements, found.measurements) if process else ():
                        own.seconds += later.seconds
                        own.rounds += [process * options.rounds + turn for turn in later.rounds]
                        own.error = own.error or later.error
                        own.difference = max((own.difference, later.difference), key=lambda value: value or 0.0)
                    yield result


def measure_cell(
    cell: Cell, options: Options, folder: Path, workers: dict[str, Worker], stack: contextlib.ExitStack
) -> Result:
    """Build the contestants of a cell one after the other, then measure them side by side."""
    result = Result(cell, [], date=datetime.date.today().isoformat())
    running, outputs = [], {}
    for name in cell.contestants:
        environment, module = contestants.find(cell.suite, name)
        own = Measurement(name, environment)
        result.measurements.append(own)
        with error_noted(own):
            if name not in workers or not workers[name].alive:
                workers[name] = stack.enter_context(Worker(environment, folder, options.threads))
            settings = {**cell.settings, "device": options.device}
            workers[name].ask("build", module=module, contestant=name, settings=settings, folder=folder)
            running.append((own, lambda repeats, worker=workers[name]: worker.ask("run", repeats=repeats)))
    take_samples(running, options)
    for own, _ in running:
        if own.error:
            continue
        with error_noted(own):
            report = workers[own.contestant].ask("finish")
            own.baseline, own.peak, own.figures = report["baseline"], report["peak"], report["figures"] or {}
            if report["peak_bytes"] is not None:
                own.baseline, own.peak = 0, report["peak_bytes"]
            outputs[own.contestant] = report["outputs"]
            if own is result.measurements[0] and report["bound"]:
                result.bound = report["bound"] if isinstance(report["bound"], list) else [report["bound"]]
    ours = outputs.get(cell.contestants[0])
    for other in result.measurements[1:]:
        theirs = outputs.get(other.contestant)
        if ours is not None and theirs is not None:
            other.difference, other.exact = difference(ours, theirs)
    return result


@contextlib.contextmanager
def error_noted(own: Measurement) -> Iterator[None]:
    """Let a contestant that fails be the only one that is not measured."""
    try:
        yield
    except (WorkerError, NotRun) as error:
        own.error = f"{'not run' if isinstance(error, NotRun) else 'failed'}: {error}"


Run = Callable[[int], float]


def take_samples(running: list[tuple[Measurement, Run]], options: Options):
    """Warm up every contestant, then let them take turns in rounds, in an order that each round rotates.

    running: with `run(repeats) -> seconds` of all repeats; what it raises is noted, and its contestant is out.
    """
    plans = [plan_rounds(own, run, options.budget / len(running), options) for own, run in running]
    for turn in range(options.rounds):
        for place in range(len(running)):
            index = (turn + place) % len(running)
            own, run = running[index]
            if turn in plans[index] and not own.error:
                time.sleep(PAUSE_SECONDS)
                with error_noted(own):
                    own.seconds.append(run(own.repeats) / own.repeats)
                    own.rounds.append(turn)


def plan_rounds(own: Measurement, run: Run, share: float, options: Options) -> set[int]:
    """Warm up, set the repeats of a sample, and return the rounds that `share` seconds are enough for, spread out."""
    with error_noted(own):
        seconds = warm_up(run)
        shortest = QUICK_SAMPLE_SECONDS if options.quick else SAMPLE_SECONDS
        if seconds < shortest:
            # One short run by itself says little.
            repeats = math.ceil(shortest / max(seconds, 1e-9))
            seconds = run(repeats) / repeats
            own.repeats = max(1, math.ceil(shortest / max(seconds, 1e-9)))
        if seconds >= LONG_SECONDS and FEWEST_ROUNDS * seconds > share:
            own.seconds, own.rounds = [seconds], [0]
            return set()
        count = min(options.rounds, max(FEWEST_ROUNDS, int(share / max(seconds * own.repeats, 1e-9))))
        return {turn * options.rounds // count for turn in range(count)}
    return set()


def warm_up(run: Run) -> float:
    """Run until two runs that follow each other take about the same; return seconds of the last."""
    seconds = run(1)
    for _ in range(WARM_UPS - 1):
        if seconds >= SLOW_SECONDS:
            break
        before, seconds = seconds, run(1)
        if abs(seconds - before) < STEADY * before:
            break
    return seconds
