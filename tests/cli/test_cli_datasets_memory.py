"""The memory that a run over a data set takes, with a stand-in for the model."""

import io
import time
import tracemalloc
from dataclasses import dataclass

import pytest
import torch
from PIL import Image

from open_clip_transformers import OpenClipImageProcessorPil
from open_clip_transformers.datasets.outputs import FORMATS, Output
from open_clip_transformers.datasets.run import run
from open_clip_transformers.datasets.shards import Sample, Shard


@dataclass(frozen=True)
class GeneratedShard(Shard):
    """Fifty images of 20 kB, none of which is kept by the shard."""

    def __iter__(self):
        file = io.BytesIO()
        Image.new("L", (3, 5), 7).save(file, "png")
        for number in range(50):
            yield Sample(str(number), file.getvalue() + bytes(20_000))


@dataclass(frozen=True)
class WatchingShard(GeneratedShard):
    """Also notes, of each sample, whether the shard before is written."""

    output: Output
    seen: list

    def __iter__(self):
        for sample in super().__iter__():
            time.sleep(0.002)
            self.seen.append(self.output.has("00000", 0))
            yield sample


class Task:
    types = {"embedding": ("float32", 16)}
    image_processor = OpenClipImageProcessorPil(size={"height": 5, "width": 3})
    concurrent = True

    def __call__(self, pixel_values, samples, shard):
        return {"embedding": torch.ones(len(samples), 16)}


def peak_memory(folder, shards, layout):
    shards = [GeneratedShard(f"{number:05d}", "generated") for number in range(shards)]
    output = FORMATS[layout](str(folder), ("embedding",))
    places = output.unfinished(enumerate(shards))
    tracemalloc.start()
    try:
        report = run(Task(), places, output, batch_size=4, workers=0, threads=1, warn=print)
        return report.rows, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("layout", sorted(FORMATS))
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, layout):
    peak_memory(tmp_path / "imports", 1, layout)
    few, memory_of_few = peak_memory(tmp_path / "few", 6, layout)
    many, memory_of_many = peak_memory(tmp_path / "many", 20, layout)
    assert (few, many) == (300, 1000)
    # The larger one has 14 MB more of images, of which a shard has 1 MB. How many shards wait is a matter of time.
    assert memory_of_many < memory_of_few + 1_000_000


def test_shards_are_written_while_the_next_one_is_read(tmp_path):
    output, seen = FORMATS["parquet"](str(tmp_path), ("embedding",)), []
    shards = [GeneratedShard("00000", "generated"), WatchingShard("00001", "generated", output, seen)]
    run(Task(), list(enumerate(shards)), output, batch_size=4, workers=0, threads=1, warn=print)
    assert len(seen) == 50 and not seen[0] and seen[-1]
