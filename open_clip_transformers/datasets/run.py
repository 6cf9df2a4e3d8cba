"""Run a model over shards, in one process or in the ranks of torchrun and `accelerate launch`."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import chain, tee
from typing import TYPE_CHECKING, Protocol

from ..configuration.errors import MissingPackageError
from .images import PixelReader, Pixels, Unreadable, load_images
from .outputs import Output, Rows
from .progress import Progress, Report
from .shards import Sample, Shard


if TYPE_CHECKING:
    import torch

    from ..processing.image_settings_open_clip import ImageSettings

BATCHES_AHEAD = 2
SHARDS_AHEAD = 2  # that are read before the results of an earlier one are written
PATIENCE = timedelta(days=30)  # of the rank that is done first

Place = tuple[int, Shard]


class Task(Protocol):
    """A model and what is made with it of images.

    Args:
        image_processor: makes pixels of an image.
        types: column -> type of what is made, as in [`Rows`].
        concurrent: whether it is fastest on several batches at once, each in a thread of its own.
    """

    image_processor: "ImageSettings"
    concurrent: bool

    @property
    def types(self) -> "Mapping[str, str | tuple[str, int]]":
        """See the arguments."""

    def __call__(
        self, images: "dict[str, torch.Tensor]", samples: list[Sample], shard: Shard
    ) -> "dict[str, torch.Tensor | list]":
        """Work on images, as the model takes them by name; returns column -> (images, dim) or a list.

        What it returns may depend on nothing else, not on the batches before.
        """


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

    Batches are made within a shard, of the images of it that can be read, so that they are the same in every run. A
    concurrent task works on as many batches at once as this process has threads, each on one thread: none waits for
    another in every layer, and vectors do not depend on the number of cores.

    Args:
        task: what to do.
        places: shards with their places in the data.
        output: gets what comes of them.
        batch_size: images that the model works on at once.
        workers: processes that read images ahead of the model.
        threads: of a model on a CPU whose task is not concurrent.
        warn: gets a line about each shard that cannot be read.
    """
    import torch

    cores = torch.get_num_threads()
    report = Report(cores=cores, lanes=cores if task.concurrent else 1)
    stream, ahead = tee(_samples(places))
    sources = (sample.image if isinstance(sample, Sample) and sample.error is None else None for _, sample in ahead)
    reader, images_ahead = PixelReader(task.image_processor), BATCHES_AHEAD * batch_size * report.lanes
    with report.running(), _threads(1), ExitStack() as stack:
        # The processes that read start before tqdm and the model do their threads, and end before the time is taken.
        loaded = stack.enter_context(closing(load_images(sources, reader, images_ahead, workers)))
        model = stack.enter_context(closing(_Model(task, reader, 1 if task.concurrent else threads, report)))
        progress = stack.enter_context(closing(Progress(len(places))))
        finished = _Finished(output, report, progress)
        work = None
        for (index, shard), sample in stream:
            with report.timed("decoding"):
                pixels = next(loaded)
            work = work or _ShardWork(shard, model, batch_size)
            if isinstance(sample, Sample):
                work.add(sample, pixels)
                progress.image()
                finished.write(SHARDS_AHEAD)
                continue
            if sample is None:
                finished.add(index, work)
            else:
                report.shards_failed += 1
                warn(f"{shard.source}: the shard cannot be read, and nothing of it is written: {sample}")
                progress.shard()
            work = None
        finished.write(at_most_waiting=0)
        output.sweep()
    return report


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Let torch use that many threads in here."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


class _Model:
    """A task at work on batches in threads, with a bound on how many wait for it."""

    def __init__(self, task: Task, reader: PixelReader, threads: int, report: Report):
        import torch

        self.task, self.reader, self.report = task, reader, report
        self.pool = ThreadPoolExecutor(report.lanes, "model", torch.set_num_threads, (threads,))
        self.waiting: deque[Future] = deque()

    def __call__(self, pixels: list[Pixels], samples: list[Sample], shard: Shard) -> Future:
        """Begin with a batch; what comes of it is (columns, seconds)."""
        with self.report.timed("model"):
            while len(self.waiting) > self.report.lanes:
                self.waiting.popleft().result()
        self.waiting.append(self.pool.submit(self._work, pixels, samples, shard))
        return self.waiting[-1]

    def _work(self, pixels: list[Pixels], samples: list[Sample], shard: Shard) -> tuple[dict, float]:
        import torch

        start = time.perf_counter()
        columns = self.task(self.reader.to_batch(pixels), samples, shard)
        columns = {
            name: values.cpu() if isinstance(values, torch.Tensor) else values for name, values in columns.items()
        }
        return columns, time.perf_counter() - start

    def close(self):
        self.pool.shutdown(cancel_futures=True)


class _ShardWork:
    """The samples of a shard, and the batches of them that are being worked on."""

    def __init__(self, shard: Shard, model: _Model, batch_size: int):
        self.shard, self.model, self.batch_size = shard, model, batch_size
        self.samples: list[Sample] = []
        self.pixels: list[Pixels] = []
        self.batch: list[Sample] = []
        self.batches: list[Future] = []

    def add(self, sample: Sample, pixels: "Pixels | Unreadable | None"):
        if isinstance(pixels, Unreadable):
            sample = replace(sample, error=pixels)
        sample = replace(sample, image=None)  # its bytes are not needed any more
        self.samples.append(sample)
        if sample.error is None:
            assert not isinstance(pixels, Unreadable) and pixels is not None
            self.batch.append(sample)
            self.pixels.append(pixels)
            if len(self.batch) == self.batch_size:
                self.flush()

    def flush(self):
        """Begin with the last batch, if it is not empty."""
        if self.batch:
            self.batches.append(self.model(self.pixels, self.batch, self.shard))
            self.batch, self.pixels = [], []

    def done(self) -> bool:
        return all(batch.done() for batch in self.batches)

    def rows(self) -> Rows:
        """Wait for all batches; return what came of them."""
        import torch

        report, parts = self.model.report, {}
        for batch in self.batches:
            with report.timed("model"):
                columns, seconds = batch.result()
            report.model_seconds += seconds
            for name, values in columns.items():
                parts.setdefault(name, []).append(values)
        rows = Rows(self.shard, self.model.task.types, self.samples)
        for name, values in parts.items():
            is_tensor = isinstance(values[0], torch.Tensor)
            rows.values[name] = torch.cat(values).numpy() if is_tensor else list(chain(*values))
        return rows


class _Finished:
    """Shards that are read to their ends, and are written, in their order, once the model is done with them."""

    def __init__(self, output: Output, report: Report, progress: Progress):
        self.output, self.report, self.progress = output, report, progress
        self.waiting: deque[tuple[int, _ShardWork]] = deque()

    def add(self, index: int, work: _ShardWork):
        work.flush()
        self.waiting.append((index, work))
        self.write(SHARDS_AHEAD)

    def write(self, at_most_waiting: int):
        """Write shards until that many wait for the model."""
        while len(self.waiting) > at_most_waiting or (self.waiting and self.waiting[0][1].done()):
            index, work = self.waiting.popleft()
            rows = work.rows()
            with self.report.timed("writing"):
                self.output.write(rows, index)
            self.report.add_rows(rows)
            self.progress.shard()


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
