"""Find images in files, folders, patterns and URLs, and read them in batches ahead of the model.

torch is imported where images are loaded: finding them comes first, and is quick.
"""

import math
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, tee
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..datasets.images import PixelReader, Unreadable, load_images, worthwhile_workers
from ..datasets.shards import FileShard, Sample, Shard
from .messages import Failures


if TYPE_CHECKING:
    import torch
    from transformers import ProcessorMixin


def read_arguments(arguments: Iterable[str]) -> Iterator[str]:
    """Replace `-` by the lines on stdin."""
    for argument in arguments:
        yield from sys.stdin.read().splitlines() if argument == "-" else [argument]


def num_images(shards: list[Shard]) -> float:
    """Count images, those that cannot be read included; infinity where only reading them tells."""
    return sum(len(shard.names) if isinstance(shard, FileShard) else math.inf for shard in shards)


def useful_workers(shards: list[Shard], workers: int) -> int:
    """How many of `workers` processes are worth starting to read these shards."""
    if num_images(shards) == math.inf:
        return workers
    names = [name for shard in shards if isinstance(shard, FileShard) for name in shard.names]
    return worthwhile_workers(names, workers)


def read_batches(
    shards: list[Shard], processor: "ProcessorMixin", batch_size: int, workers: int, failures: Failures
) -> "Iterator[tuple[list[Sample], dict[str, torch.Tensor]]]":
    """Iterate over `(samples, images)`, where `images`, at most batch_size, are as the model takes them by name.

    The order is that of the samples. Images that cannot be read are reported and left out. A progress bar is shown on
    a terminal.

    Args:
        shards: what to read.
        processor: makes pixels of an image.
        batch_size: images in a batch; the last one may be smaller.
        workers: processes that read images, at most two batches ahead; 0 to read them in this one.
        failures: gets the images that cannot be read.
    """
    total, workers = num_images(shards), useful_workers(shards, workers)
    samples, ahead = tee(chain.from_iterable(shards))
    # The image processor alone travels to the workers. They start before tqdm does its thread.
    reader = PixelReader(processor.image_processor)
    loaded = load_images(
        (None if sample.error else sample.image for sample in ahead), reader, ahead=2 * batch_size, workers=workers
    )
    batch, pixels = [], []
    # Where standard error is no terminal, tqdm shows nothing.
    with tqdm(total=total if total < math.inf else None, unit="image", disable=None, leave=False) as progress:
        for sample, item in zip(samples, loaded):
            if error := sample.error or (item if isinstance(item, Unreadable) else None):
                failures.add(sample.key, error.reason)
                progress.update()
                continue
            assert not isinstance(item, Unreadable) and item is not None
            batch.append(sample)
            pixels.append(item)
            if len(batch) == batch_size:
                yield batch, reader.to_batch(pixels)
                progress.update(len(batch))
                batch, pixels = [], []
        if batch:
            yield batch, reader.to_batch(pixels)
            progress.update(len(batch))
