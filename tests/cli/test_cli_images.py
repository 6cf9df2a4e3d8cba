"""Batches of pixels, read ahead in threads, with a stand-in for the processor."""

import io
import sys
import threading
import types

import numpy
import pytest
import torch
from PIL import Image

from open_clip_transformers._cli_images import ImageBatches
from open_clip_transformers._cli_messages import Failures


@pytest.fixture
def processor():
    """Makes one pixel of an image: its number. Remembers which thread it was called from."""
    threads = set()

    def image_processor(image, return_tensors):
        threads.add(threading.current_thread())
        pixel_values = torch.from_numpy(numpy.array(image))[None, None, :1, :1]
        return types.SimpleNamespace(pixel_values=pixel_values)

    return types.SimpleNamespace(image_processor=image_processor, threads=threads)


@pytest.fixture
def numbered(tmp_path):
    """Images 0 to 12; image n holds the number n."""
    for number in range(13):
        Image.new("L", (3, 5), number).save(tmp_path / f"{number:02d}.png")
    return sorted(map(str, tmp_path.glob("*.png")))


@pytest.mark.parametrize("batch_size", [1, 4, 13, 99])
def test_batches_keep_the_order(numbered, processor, batch_size):
    batches = list(ImageBatches(numbered, processor, batch_size, Failures()))
    assert [len(names) for names, _ in batches][:-1] == [batch_size] * (len(batches) - 1)
    assert [name for names, _ in batches for name in names] == numbered
    assert torch.cat([pixels for _, pixels in batches]).flatten().tolist() == list(range(13))
    assert threading.main_thread() not in processor.threads


def test_batches_are_filled_up_where_images_are_left_out(numbered, processor, broken, capsys):
    names = [str(broken[0]), *numbered[:3], str(broken[1]), *numbered[3:], "missing.png"]
    failures = Failures()
    batches = list(ImageBatches(names, processor, 4, failures))
    assert [len(names) for names, _ in batches] == [4, 4, 4, 1]
    assert [name for names, _ in batches for name in names] == numbered
    assert failures.count == 3
    reported = [line.split(": ")[0] for line in capsys.readouterr().err.splitlines()]
    assert reported == [*map(str, broken), "missing.png"]


def test_batches_are_read_a_little_ahead(numbered, processor, monkeypatch):
    read = []
    monkeypatch.setattr(
        "open_clip_transformers._cli_images.read_image", lambda name: read.append(name) or Image.open(name)
    )
    batches = iter(ImageBatches(numbered, processor, 2, Failures()))
    next(batches)
    assert len(read) <= 2 + 2 * 2
    batches.close()
    assert len(read) <= 2 + 2 * 2


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "file"])
def test_batches_show_their_progress_on_a_terminal_only(numbered, processor, monkeypatch, terminal):
    stderr = io.StringIO()
    stderr.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stderr)
    list(ImageBatches(numbered, processor, 4, Failures()))
    assert ("0/13" in stderr.getvalue()) == terminal
