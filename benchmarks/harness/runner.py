"""Runs the cells of a suite: workers, samples, what contestants report, and the ceilings before and after."""

import datetime
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import contestants

from .ceilings import bound_seconds
from .cells import Cell, Measurement, NotRun, Options, Result
from .rounds import take_samples
from .samples import difference
from .workers import Worker, WorkerError


class Workers:
    """The processes of a group of cells, by contestant, made when they are needed; a context manager."""

    def __init__(self, folder: Path, threads: int):
        self.folder = folder
        self.threads = threads
        self._workers: dict[str, Worker] = {}

    def get(self, contestant: str, environment: str) -> Worker:
        """The living worker of a contestant."""
        worker = self._workers.get(contestant)
        if worker is None or not worker.alive:
            worker = Worker(environment, self.folder, f"{contestant}_{environment}", self.threads)
            self._workers[contestant] = worker
        return worker

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception):
        for worker in self._workers.values():
            worker.close()


def log(text: str):
    """A line of progress, which is no part of what is printed as the result."""
    print(text, file=sys.stderr, flush=True)


def describe(environment: str, options: Options, folder: Path) -> dict:
    """`{"versions", "gpu"}` of an environment; raises NotRun or WorkerError."""
    with Worker(environment, folder, "describe", options.threads) as worker:
        return worker.ask("describe", device=options.device)


def measure_ceilings(options: Options, folder: Path) -> dict[str, float]:
    """The machine's rates, in a process like those of the contestants; empty where they cannot be measured."""
    try:
        with Worker("newest", folder, "ceilings", options.threads) as worker:
            return worker.ask("ceilings", device=options.device, quick=options.quick)["ceilings"]
    except WorkerError as error:
        log(f"The ceilings could not be measured: {error}")
        return {}


def run_cells(
    cells: Iterable[Cell], options: Options, folder: Path, on_result: Callable[[Result], None]
) -> dict[str, dict[str, float]]:
    """Measures cells in their order.

    Args:
        folder: an empty one, for what contestants share.
        on_result: called with each result as soon as it is there, its bound by the ceilings before, and again when
            other processes have added to it.

    Returns: the ceilings "before" and "after".
    """
    ceilings = {"before": measure_ceilings(options, folder)}
    for _, group in itertools.groupby(cells, key=lambda cell: (cell.group is None, cell.group or cell.name)):
        for result in run_group(list(group), options, folder):
            result.bound_seconds = bound_seconds(result.bound, ceilings["before"])
            on_result(result)
    ceilings["after"] = measure_ceilings(options, folder)
    return ceilings


def run_group(cells: list[Cell], options: Options, folder: Path) -> Iterator[Result]:
    """The results of cells that share processes, as often as there are processes of a contestant."""
    results: dict[str, Result] = {}
    share = replace(options, budget=options.budget / options.processes)
    for process in range(options.processes):
        with Workers(folder, options.threads) as workers:
            for cell in cells:
                log(f"{cell.suite}: {cell.name}")
                result = run_cell(cell, share, workers)
                if cell.name in results:
                    results[cell.name].add(result, first_round=process * options.rounds)
                yield results.setdefault(cell.name, result)


def run_cell(cell: Cell, options: Options, workers: Workers) -> Result:
    """Builds the contestants of a cell one after the other, then measures them side by side."""
    measurements = {name: _build(cell, name, options, workers) for name in cell.contestants}
    running = {name: worker for name, (_, worker) in measurements.items() if worker is not None}
    samples = take_samples({name: worker.run for name, worker in running.items()}, options)
    result = Result(cell, [own for own, _ in measurements.values()], date=datetime.date.today().isoformat())
    outputs = {}
    for name, worker in running.items():
        own, taken = measurements[name][0], samples[name]
        own.seconds, own.rounds, own.repeats = taken.seconds, taken.rounds, taken.repeats
        try:
            if taken.error:
                raise taken.error
            report = worker.ask("finish")
        except WorkerError as error:
            own.error = describe_error(error)
            continue
        own.baseline, own.peak, own.figures = report["baseline"], report["peak"], report["figures"] or {}
        outputs[name] = report["outputs"]
        if own is result.ours:
            bound = report["bound"] if cell.bound is None else cell.bound
            result.bound = [bound] if isinstance(bound, dict) else bound or []
    _compare(result, outputs)
    return result


def _build(cell: Cell, name: str, options: Options, workers: Workers) -> tuple[Measurement, Worker | None]:
    """An empty measurement with the worker that holds the contestant, or with an error and none."""
    environment, module = contestants.find(cell.suite, name)
    own = Measurement(name, environment)
    settings = {**cell.settings, "device": options.device}
    try:
        worker = workers.get(name, environment)
        worker.ask("build", module=module, contestant=name, settings=settings, folder=str(workers.folder))
    except (WorkerError, NotRun) as error:
        own.error = describe_error(error)
        return own, None
    return own, worker


def _compare(result: Result, outputs: dict[str, list | None]):
    """Sets how far the outputs of the peers are from ours, where both have any."""
    ours = outputs.get(result.ours.contestant)
    for peer in result.measurements[1:]:
        theirs = outputs.get(peer.contestant)
        if ours is not None and theirs is not None:
            peer.difference, peer.exact = difference(ours, theirs)


def describe_error(error: WorkerError | NotRun) -> str:
    """The text of a row without a measurement."""
    not_run = isinstance(error, NotRun) or error.not_run
    return f"{'not run' if not_run else 'failed'}: {error}"
