"""Finding images, and batches of their pixels, read ahead by processes with a stand-in for the processor."""

import io
import multiprocessing
import os
import pickle
import signal
import sys
import time
import types
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from open_clip_transformers.cli import images as cli_images
from open_clip_transformers.cli.data import find_data
from open_clip_transformers.cli.messages import Failures, UsageError
from open_clip_transformers.datasets import images as images_module
from open_clip_transformers.datasets.images import PixelReader, read_image
from open_clip_transformers.datasets.shards import FileShard


in_processes = pytest.mark.skipif(images_module.START_METHOD != "fork", reason="starting processes takes seconds here")


@pytest.fixture(autouse=True)
def any_file_is_worth_a_process(monkeypatch):
    monkeypatch.setattr(images_module, "FILES_WORTH_A_PROCESS", 1)


class StandIn:
    """An image processor that neither rescales nor normalises."""

    def __init__(self, pixels):
        self.pixels = pixels

    def __call__(self, image, **settings):
        return {"pixel_values": self.pixels(image)}

    def finish(self, images):
        return images


@pytest.fixture
def processor(tmp_path):
    """Makes two pixels of an image: its number, and the process that read it. Leaves a file for each image."""

    def pixels(image):
        number = numpy.array(image)[0, 0]
        (tmp_path / f"{number}.read").touch()
        return torch.tensor([[[[number, os.getpid()]]]])

    return types.SimpleNamespace(image_processor=StandIn(pixels))


@pytest.fixture
def numbered(tmp_path):
    """Images 0 to 12; image n holds the number n."""
    for number in range(13):
        Image.new("L", (3, 5), number).save(tmp_path / f"{number:02d}.png")
    return sorted(map(str, tmp_path.glob("*.png")))


def read_batches(names, *arguments):
    """The batches of these files, with their names."""
    for samples, images in cli_images.read_batches([FileShard("images", "files", tuple(names))], *arguments):
        yield [sample.key for sample in samples], images["pixel_values"]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=in_processes), pytest.param(3, marks=in_processes)])
@pytest.mark.parametrize("batch_size", [1, 4, 13, 99])
def test_batches_keep_the_order(numbered, processor, batch_size, workers):
    batches = list(read_batches(numbered, processor, batch_size, workers, Failures()))
    assert [len(names) for names, _ in batches][:-1] == [batch_size] * (len(batches) - 1)
    assert [name for names, _ in batches for name in names] == numbered
    numbers, processes = torch.cat([pixels.flatten(1) for _, pixels in batches]).T.tolist()
    assert numbers == list(range(13))
    assert len(set(processes)) == max(workers, 1)
    assert (os.getpid() in processes) == (workers == 0)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=in_processes)])
def test_batches_are_filled_up_where_images_are_left_out(numbered, processor, broken, capsys, workers):
    names = [str(broken[0]), *numbered[:3], str(broken[1]), *numbered[3:], "missing.png"]
    failures = Failures()
    batches = list(read_batches(names, processor, 4, workers, failures))
    assert [len(names) for names, _ in batches] == [4, 4, 4, 1]
    assert [name for names, _ in batches for name in names] == numbered
    assert failures.count == 3
    reported = [line.split(": ")[0] for line in capsys.readouterr().err.splitlines()]
    assert reported == [*map(str, broken), "missing.png"]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=in_processes)])
def test_batches_report_errors_without_a_message_by_their_name(numbered, capsys, workers):
    def pixels(image):
        raise MemoryError

    processor = types.SimpleNamespace(image_processor=StandIn(pixels))
    assert list(read_batches(numbered[:2], processor, 4, workers, Failures())) == []
    assert capsys.readouterr().err.splitlines() == [f"{name}: MemoryError" for name in numbered[:2]]


@in_processes
def test_batches_are_read_a_little_ahead(numbered, processor, tmp_path):
    batches = iter(read_batches(numbered, processor, 2, 2, Failures()))
    next(batches)
    deadline = time.monotonic() + 20
    while len(list(tmp_path.glob("*.read"))) < 2 + 2 * 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(list(tmp_path.glob("*.read"))) == 2 + 2 * 2


@in_processes
def test_batches_end_their_processes_when_they_are_left(numbered, processor):
    batches = iter(read_batches(numbered, processor, 2, 3, Failures()))
    next(batches)
    assert len(multiprocessing.active_children()) == 3
    batches.close()
    assert not multiprocessing.active_children()


@in_processes
def test_batches_leave_interrupts_to_the_main_process(numbered, processor):
    handler = signal.getsignal(signal.SIGINT)
    batches = iter(read_batches(numbered, processor, 2, 2, Failures()))
    next(batches)
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGINT)
    assert len(list(batches)) == 6
    assert signal.getsignal(signal.SIGINT) is handler


def test_batches_of_few_images_start_no_process(numbered, processor, monkeypatch):
    monkeypatch.setattr(images_module, "FILES_WORTH_A_PROCESS", 14)
    batches = iter(read_batches(numbered, processor, 2, 8, Failures()))
    next(batches)
    assert not multiprocessing.active_children()


@in_processes
def test_batches_of_few_urls_start_processes(numbered, processor, monkeypatch, server):
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    names = [f"{server}/{os.path.basename(name)}" for name in numbered[:4]]
    ((batch, pixels),) = read_batches(names, processor, 16, 8, Failures())
    numbers, processes = pixels.flatten(1).T.tolist()
    assert (batch, numbers) == (names, [0, 1, 2, 3])
    assert len(set(processes) - {os.getpid()}) == 2


@in_processes
def test_batches_take_more_workers_than_cores_without_a_warning(numbered, processor, recwarn):
    assert len(list(read_batches(numbered, processor, 4, (os.cpu_count() or 1) + 1, Failures()))) == 4
    assert not recwarn


@in_processes
def test_processes_that_read_end_with_a_killed_parent(tmp_path):
    """Even those that wait to hand over an image larger than a pipe holds."""
    Image.new("RGB", (600, 600)).save(tmp_path / "large.png")
    reader = PixelReader(StandIn(lambda image: torch.zeros(1, 3, 600, 600)))
    if (pid := os.fork()) == 0:
        loaded = images_module.load_images([str(tmp_path / "large.png")] * 50, reader, ahead=20, workers=2)
        next(loaded)
        (tmp_path / "workers").write_text(" ".join(str(each.pid) for each in multiprocessing.active_children()))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    workers = [int(worker) for worker in (tmp_path / "workers").read_text().split()]
    assert len(workers) == 2

    def is_running(worker):
        try:
            return "Z" not in Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False

    deadline = time.monotonic() + 20
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, workers))


def test_reader_can_be_sent_to_a_process(numbered, clip):
    # As where processes do not fork.
    reader = PixelReader(AutoImageProcessor.from_pretrained(clip))
    sent = pickle.loads(pickle.dumps(reader))
    pixels = sent[numbered[3]]["pixel_values"]
    assert numpy.array_equal(pixels, reader[numbered[3]]["pixel_values"])
    assert pixels.dtype == numpy.uint8 and pixels.shape[0] == 3


def test_reader_makes_the_pixels_of_the_image_processor(numbered, clip):
    reader = PixelReader(AutoImageProcessor.from_pretrained(clip))
    made = reader.to_batch([reader[name] for name in numbered[:4]])["pixel_values"]
    images = [Image.open(name) for name in numbered[:4]]
    assert torch.equal(made, reader.image_processor(images, return_tensors="pt").pixel_values)


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "file"])
def test_batches_show_their_progress_on_a_terminal_only(numbered, processor, monkeypatch, terminal):
    stderr = io.StringIO()
    stderr.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stderr)
    list(read_batches(numbered, processor, 4, 0, Failures()))
    assert ("0/13" in stderr.getvalue()) == terminal


def find(*arguments):
    failures = Failures()
    shards = find_data([str(argument) for argument in arguments], failures)
    return [name for shard in shards for name in shard.names], failures.count


def test_find_images_keeps_the_order_of_the_arguments(images):
    first, second, *_ = images
    assert find(second, first, second) == ([str(second), str(first), str(second)], 0)


def test_find_images_searches_folders_with_their_subfolders(images):
    folder = images[0].parent
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("hidden")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "thumbnail.png").write_text("hidden")
    (folder / "empty.png").mkdir()
    assert find(folder) == ([str(image) for image in images], 0)


@pytest.mark.parametrize(
    ("pattern", "indices"),
    [("*.jpg", [1]), ("**/*", [0, 1, 2, 3, 4]), ("[ab].*", [0, 1]), ("**", [0, 1, 2, 3, 4])],
    ids=["suffix", "subfolders", "characters", "everything"],
)
def test_find_images_expands_patterns(images, pattern, indices):
    folder = images[0].parent
    (folder / "notes.txt").write_text("not an image")
    assert find(folder / pattern) == ([str(images[index]) for index in indices], 0)


def test_find_images_takes_a_file_whose_name_reads_like_a_pattern(images):
    image = images[0].rename(images[0].with_name("photo[1].png"))
    assert find(image) == ([str(image)], 0)


def test_find_images_takes_a_named_file_whatever_its_suffix(tmp_path):
    (tmp_path / "photo.dat").write_bytes(b"")
    assert find(tmp_path / "photo.dat") == ([str(tmp_path / "photo.dat")], 0)


def test_find_images_expands_the_home_folder(images, monkeypatch):
    monkeypatch.setenv("HOME", str(images[0].parent))
    assert find("~/a.png") == ([str(images[0])], 0)


def test_find_images_reads_names_from_stdin(images, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{images[1]}\n{images[0]}\nhttp://localhost/x.png\n"))
    assert find("-") == ([str(images[1]), str(images[0]), "http://localhost/x.png"], 0)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.png", "no such file or folder"),
        ("*.gif", "nothing matches this pattern"),
        ("images/*.txt", "1 matches, none of them an image file"),
        ("empty", "no images in this folder"),
    ],
    ids=["path", "pattern", "pattern_of_other_files", "empty_folder"],
)
def test_find_images_reports_what_stands_for_nothing(images, tmp_path, capsys, name, reason):
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    (tmp_path / "empty").mkdir()
    assert find(tmp_path / name, images[0]) == ([str(images[0])], 1)
    assert capsys.readouterr().err == f"{tmp_path / name}: {reason}\n"


def test_find_images_without_any_image_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no image to work on"):
        find(tmp_path / "missing.png")


def test_read_image_does_not_turn_photos_as_open_clip_does_not(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    Image.new("RGB", (31, 17)).save(tmp_path / "photo.jpg", exif=exif)
    assert read_image(str(tmp_path / "photo.jpg")).size == (31, 17)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_read_image_keeps_the_mode(tmp_path, mode):
    """Processors convert to RGB after they have resized, as open_clip does."""
    Image.new(mode, (9, 7)).save(tmp_path / "image.png")
    assert read_image(str(tmp_path / "image.png")).mode == mode


def test_read_image_reads_urls(images, server):
    url = f"{server}/images/c with space.webp"
    assert numpy.array_equal(numpy.asarray(read_image(url)), numpy.asarray(Image.open(images[2])))


def test_read_image_reports_what_the_server_says(server):
    with pytest.raises(OSError, match="404"):
        read_image(f"{server}/missing.png")
