"""Progress and time of a run."""

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
        seconds: from the first to the last image.
        time: part of the work -> seconds: `decoding` is waiting for images, `model` its forward.
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
            {part: self.time.get(part, 0.0) + other.time.get(part, 0.0) for part in {**self.time, **other.time}},
        )

    def summary(self) -> dict[str, Any]:
        """Return the figures, with the shares of `time` instead of its seconds."""
        total = sum(self.time.values())
        return {
            **asdict(self),
            "errors": dict(self.errors),
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.rows / self.seconds, 2) if self.seconds else 0.0,
            "time": {part: round(seconds / total, 4) for part, seconds in self.time.items()} if total else {},
        }


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
        if self.bar.disable and time.monotonic() - self.last >= SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def shard(self, images: int = 0):
        """Count a shard, and those of its images that were not counted one by one."""
        self.images += images
        self.bar.update(images)
        self.done, self.images_of_done = self.done + 1, self.images
        self.bar.total = round(self.images_of_done / self.done * self.shards)
        self.bar.set_postfix_str(f"{self.done}/{self.shards} shards", refresh=False)

    def _line(self) -> str:
        seconds = self.last - self.start
        rate = self.images / seconds
        line = f"{self.done} of {self.shards} shards, {self.images} images, {rate:.1f} images/s"
        if self.done:
            left = max(self.images_of_done / self.done * self.shards - self.images, 0) / rate
            line += f", {tqdm.format_interval(left)} left"
        return line

    def close(self):
        self.bar.close()
