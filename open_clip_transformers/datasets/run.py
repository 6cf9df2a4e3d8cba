"""Run a model over shards, in one process or in the ranks of torchrun and `accelerate launch`."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from itertools import chain, tee
from typing import TYPE_CHECKING, Protocol

from ..configuration.errors import MissingPackageError
from .images import PixelReader, Unreadable, load_images
from .outputs import Output, Rows
from .progress import Progress, Report
from .shards import Sample, Shard


if TYPE_CHECKING:
    import numpy
    import torch
    from transformers.image_processing_utils import BaseImageProcessor

BATCHES_AHEAD = 2
PATIENCE = timedelta(days=30)  # of the rank that is done first

Place = tuple[int, Shard]


class Task(Protocol):
    """A model and what is made with it of images.

    Args:
        image_processor: makes pixels of an image.
        types: column -> type of what is made, as in [`Rows`].
    """

    image_processor: "BaseImageProcessor"

    @property
    def types(self) -> "Mapping[str, str | tuple[str, int]]":
        """See the arguments."""

    def begin(self, shard: Shard):
        """Begin a shard, whose outputs may not depend on what was before it."""

    def __call__(self, pixel_values: "torch.Tensor", samples: list[Sample]) -> "dict[str, torch.Tensor | list]":
        """Work on pixels (images, channels, height, width); returns column -> (images, dim) or a list."""


def run(
    task: Task,
    places: Sequence[Place],
    output: Output,
    *,
    batch_size: int,
    workers: int,
    threads: int,
    warn: Callable[[str], None],
) -> Report:
    """Work on shards, one after the other, and write what comes of each.

    Batches are made within a shard, of the images of it that can be read, so that they are the same in every run.

    Args:
        task: what to do.
        places: shards with their places in the data.
        output: gets what comes of them.
        batch_size: images that the model works on at once.
        workers: processes that read images ahead of the model.
        threads: of the model on a CPU.
        warn: gets a line about each shard that cannot be read.
    """
    import torch

    torch.set_num_threads(threads)
    report = Report()
    stream, ahead = tee(_samples(places))
    sources = (sample.image if isinstance(sample, Sample) and sample.error is None else None for _, sample in ahead)
    # The processes that read start before tqdm does its thread.
    loaded = load_images(sources, PixelReader(task.image_processor), BATCHES_AHEAD * batch_size, workers)
    start, work = time.perf_counter(), _ShardWork(task, batch_size, report)
    with closing(Progress(len(places))) as progress:
        for (index, shard), sample in stream:
            with report.timed("decoding"):
                pixels = next(loaded)
            if isinstance(sample, Sample):
                work.add(shard, sample, pixels)
                progress.image()
                continue
            rows = work.finish(shard)
            if sample is None:
                with report.timed("writing"):
                    output.write(rows, index)
                report.add_rows(rows)
            else:
                report.shards_failed += 1
                warn(f"{shard.source}: the shard cannot be read, and nothing of it is written: {sample}")
            progress.shard()
    output.sweep()
    report.seconds = time.perf_counter() - start
    return report


def _samples(places: Sequence[Place]) -> Iterator[tuple[Place, "Sample | Exception | None"]]:
    """Read shards; after the samples of each comes `None`, or why it cannot be read to its end."""
    for place in places:
        keys: set[str] = set()
        try:
            for sample in place[1]:
                if sample.key in keys:
                    error = Unreadable("DuplicateKey", "an earlier sample of the shard has this key")
                    sample = replace(sample, image=None, error=error)
                keys.add(sample.key)
                yield place, sample
        except MissingPackageError:
            raise
        except Exception as error:  # file systems raise nearly everything
            yield place, error
        else:
            yield place, None


class _ShardWork:
    """The rows of one shard after the other."""

    def __init__(self, task: Task, batch_size: int, report: Report):
        self.task, self.batch_size, self.report = task, batch_size, report
        self.rows: Rows | None = None
        self.parts: dict[str, list] = {}
        self.pixels: list[numpy.ndarray] = []
        self.batch: list[Sample] = []

    def add(self, shard: Shard, sample: Sample, pixels: "numpy.ndarray | Unreadable | None"):
        rows = self._begin(shard)
        if isinstance(pixels, Unreadable):
            sample = replace(sample, error=pixels)
        sample = replace(sample, image=None)  # its bytes are not needed any more
        rows.samples.append(sample)
        if sample.error is None:
            assert not isinstance(pixels, Unreadable) and pixels is not None
            self.batch.append(sample)
            self.pixels.append(pixels)
            if len(self.batch) == self.batch_size:
                self._work()

    def finish(self, shard: Shard) -> Rows:
        """Return the rows of a shard, and be ready for the next one."""
        import torch

        rows = self._begin(shard)
        if self.batch:
            self._work()
        with self.report.timed("model"):  # which may have been at work in the background
            for name, parts in self.parts.items():
                is_tensor = isinstance(parts[0], torch.Tensor)
                rows.values[name] = torch.cat(parts).cpu().numpy() if is_tensor else list(chain(*parts))
        self.rows, self.parts = None, {}
        return rows

    def _begin(self, shard: Shard) -> Rows:
        if self.rows is None:
            self.rows = Rows(shard, self.task.types)
            self.task.begin(shard)
        return self.rows

    def _work(self):
        import torch

        with self.report.timed("model"):
            pixel_values = torch.stack([torch.from_numpy(pixels) for pixels in self.pixels])
            for name, values in self.task(pixel_values, self.batch).items():
                self.parts.setdefault(name, []).append(values)
        self.batch, self.pixels = [], []


class Ranks:
    """This process among those that torchrun or `accelerate launch` started; alone without them."""

    def __init__(self):
        self.rank, self.world_size = (int(os.environ.get(name, number)) for name, number in RANK_VARIABLES)

    def __enter__(self) -> "Ranks":
        if self.world_size > 1:
            import torch.distributed as dist

            dist.init_process_group("gloo", timeout=PATIENCE)
        return self

    def __exit__(self, kind, *unused):
        if self.world_size > 1 and kind is None:
            import torch.distributed as dist

            dist.destroy_process_group()

    def part(self, places: Sequence[Place]) -> list[Place]:
        """Return the shards of this rank: by their places, so that they do not depend on which are done."""
        return [place for place in places if place[0] % self.world_size == self.rank]

    def device(self, device: str) -> str:
        """Return this rank's device: where it is `"auto"`, the accelerator of its number on this machine."""
        import torch

        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if device != "auto" or accelerator is None or self.world_size == 1:
            return device
        return f"{accelerator.type}:{os.environ.get('LOCAL_RANK', 0)}"

    def total(self, report: Report) -> Report:
        """Sum up the reports of all ranks, once all are done: a rank that ends with an error ends the others."""
        if self.world_size == 1:
            return report
        import torch.distributed as dist

        reports: list[Report] = [Report()] * self.world_size
        dist.all_gather_object(reports, report)
        return sum(reports[1:], reports[0])


RANK_VARIABLES = (("RANK", 0), ("WORLD_SIZE", 1))
