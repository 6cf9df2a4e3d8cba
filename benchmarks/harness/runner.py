"""Runs suites: workers for each cell, samples, what contestants report, and the ceilings before and after."""

import datetime
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import contestants

from . import ceilings, machine
from .cells import Cell, Measurement, NotRun, Options, Result
from .environments import ENVIRONMENTS, ROOT
from .rounds import take_samples
from .samples import difference
from .workers import Worker, WorkerError


def log(text: str):
    """A line of progress, which is never part of the output."""
    print(text, file=sys.stderr, flush=True)


class Workers:
    """The processes of a group of cells, by contestant; made when they are first needed."""

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

    def close(self):
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()


def describe(environment: str, threads: int) -> dict:
    """`{"versions", "gpu"}` of an environment; raises NotRun or WorkerError."""
    with tempfile.TemporaryDirectory() as folder, Worker(environment, Path(folder), "describe", threads) as worker:
        return worker.ask("describe")


def measure_ceilings(options: Options, folder: Path) -> dict[str, float]:
    """The machine's rates, in a process like those of the contestants; empty where they cannot be measured."""
    try:
        with Worker("newest", folder, "ceilings", options.threads) as worker:
            return worker.ask("ceilings", device=options.device, quick=options.quick)["ceilings"]
    except WorkerError as error:
        log(f"The ceilings could not be measured: {error}")
        return {}


def run_cell(cell: Cell, options: Options, workers: Workers) -> Result:
    """Builds the contestants of a cell one after the other, then measures them side by side."""
    measurements, built, outputs = {}, {}, {}
    for name in cell.contestants:
        environment, module = contestants.find(cell.suite, name)
        own = measurements[name] = Measurement(name, environment)
        settings = {**cell.settings, "device": options.device}
        try:
            worker = workers.get(name, environment)
            worker.ask("build", module=module, contestant=name, settings=settings, folder=str(workers.folder))
        except (WorkerError, NotRun) as error:
            own.error = describe_error(error)
        else:
            built[name] = worker
    samples = take_samples({name: worker.run for name, worker in built.items()}, options)
    result = Result(cell, list(measurements.values()), date=datetime.date.today().isoformat())
    for name, taken in samples.items():
        own = measurements[name]
        own.seconds, own.rounds, own.repeats = taken.seconds, taken.rounds, taken.repeats
        try:
            if taken.error:
                raise taken.error
            report = built[name].ask("finish")
        except WorkerError as error:
            own.error = describe_error(error)
            continue
        own.baseline, own.peak, own.figures = report["baseline"], report["peak"], report["figures"] or {}
        outputs[name] = report["outputs"]
        if name == cell.contestants[0]:
            result.bound = as_list(cell.bound if cell.bound is not None else report["bound"])
    ours = outputs.get(cell.contestants[0])
    for name, theirs in outputs.items():
        if name != cell.contestants[0] and ours is not None and theirs is not None:
            measurements[name].difference, measurements[name].exact = difference(ours, theirs)
    return result
