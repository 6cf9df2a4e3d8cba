"""Progress and time of a run."""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm import tqdm

from .images import Unreadable
from .outputs import Rows


SECONDS_BETWEEN_LINES = 60


@dataclass
class Report:
    """Counts, times and errors of a run.

    Args:
        rows: samples that were worked on, those with an error included.
        rows_done_before: samples in outputs that were there.
        shards: shards that were written.
        shards_done_before: shards whose outputs were there.
        shards_failed: shards that could not be read, of which nothing was written.
        errors: kind -> samples with an error of it, those in outputs that were there included.
        examples: kind -> key and reason of one of them.
        seconds: from the start of the first process that reads to the last shard that is written.
        time: part of the work -> seconds: `decoding` is waiting for images, `model` waiting for the model.
        model_seconds: of the model at work, of all batches.
        cpu_seconds: `model`, with all else of its process, and `workers`, which read images -> seconds of processors.
        cores: threads that this process may use.
        lanes: batches that are worked on at once.
    """

    rows: int = 0
    rows_done_before: int = 0
    shards: int = 0
    shards_done_before: int = 0
    shards_failed: int = 0
    errors: Counter = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    time: dict[str, float] = field(default_factory=dict)
    model_seconds: float = 0.0
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    cores: int = 0
    lanes: int = 0

    def add_rows(self, rows: Rows):
        """Count a shard that was written."""
        self.shards += 1
        self.rows += len(rows.samples)
        self.add_errors(rows.shard.name, rows.errors)

    def add_errors(self, shard: str, errors: Iterable[tuple[str, Unreadable]]):
        for key, error in errors:
            self.errors[error.kind] += 1
            self.examples.setdefault(error.kind, f"{shard}: {key}: {error.reason}")

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count the seconds spent in here."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.time[part] = self.time.get(part, 0.0) + time.perf_counter() - start

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take the time of all that is done in here, by processes that end in here too."""
        start, cpu_before = time.perf_counter(), _cpu_seconds()
        yield
        self.seconds = time.perf_counter() - start
        self.cpu_seconds = {name: seconds - cpu_before[name] for name, seconds in _cpu_seconds().items()}

    def __add__(self, other: "Report") -> "Report":
        """Sum up what two processes did side by side."""
        return Report(
            self.rows + other.rows,
            self.rows_done_before + other.rows_done_before,
            self.shards + other.shards,
            self.shards_done_before + other.shards_done_before,
            self.shards_failed + other.shards_failed,
            self.errors + other.errors,
            {**other.examples, **self.examples},
            max(self.seconds, other.seconds),
            _sum(self.time, other.time),
            self.model_seconds + other.model_seconds,
            _sum(self.cpu_seconds, other.cpu_seconds),
            self.cores + other.cores,
            self.lanes + other.lanes,
        )

    def summary(self) -> dict[str, Any]:
        """Return the figures: shares of `time` and `cpu_seconds`, and how much of its time the model was at work.

        `model_busy` and `cores_busy` are shares of `seconds` times lanes or cores.
        """
        figures = asdict(self)
        seconds, model_seconds = self.seconds, figures.pop("model_seconds")
        cpu_seconds, lanes, cores = figures.pop("cpu_seconds"), figures.pop("lanes"), self.cores
        return {
            **figures,
            "errors": dict(self.errors),
            "seconds": round(seconds, 3),
            "images_per_second": round(self.rows / seconds, 2) if seconds else 0.0,
            "time": _shares(self.time),
            "cpu_time": _shares(cpu_seconds),
            "model_busy": _share(model_seconds, seconds * lanes),
            "cores_busy": _share(sum(cpu_seconds.values()), seconds * cores),
        }


def _cpu_seconds() -> dict[str, float]:
    times = os.times()
    return {"model": times.user + times.system, "workers": times.children_user + times.children_system}


def _sum(left: dict[str, float], right: dict[str, float]) -> dict[str, float]:
    return {name: left.get(name, 0.0) + right.get(name, 0.0) for name in {**left, **right}}


def _share(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0


def _shares(seconds: dict[str, float]) -> dict[str, float]:
    return (
        {part: _share(value, sum(seconds.values())) for part, value in seconds.items()}
        if any(seconds.values())
        else {}
    )


class Progress:
    """A bar with images a second and the time left on a terminal, and a line a minute elsewhere.

    Args:
        shards: shards to do; how many images are in one is known once one is done.
    """

    def __init__(self, shards: int):
        self.shards, self.done = shards, 0
        self.images, self.images_of_done = 0, 0
        self.start = self.last = time.monotonic()
        # Where standard error is no terminal, tqdm shows nothing.
        self.bar = tqdm(unit="image", disable=None, leave=False)

    def image(self):
        self.images += 1
        self.bar.update()
        self._tell()

    def shard(self, images: int = 0):
        """Count a shard, and those of its images that were not counted one by one."""
        self.images += images
        self.bar.update(images)
        self.done, self.images_of_done = self.done + 1, self.images
        self.bar.total = round(self.images_of_done / self.done * self.shards)
        self.bar.set_postfix_str(f"{self.done}/{self.shards} shards", refresh=False)
        self._tell()

    def _tell(self):
        if self.bar.disable and time.monotonic() - self.last >= SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        seconds = self.last - self.start
        rate = self.images / seconds
        line = f"{self.done} of {self.shards} shards, {self.images} images, {rate:.1f} images/s"
        if self.images_of_done:
            left = max(self.images_of_done / self.done * self.shards - self.images, 0) / rate
            line += f", {tqdm.format_interval(left)} left"
        return line

    def close(self):
        self.bar.close()
