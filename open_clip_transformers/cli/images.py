"""Find images in files, folders, patterns and URLs, and read them in batches ahead of the model.

torch is imported where images are loaded: finding them comes first, and is quick.
"""

import glob
import os
import signal
import sys
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image
from tqdm import tqdm

from .messages import Failures, UsageError


if TYPE_CHECKING:
    import numpy
    import torch
    from transformers import ProcessorMixin
    from transformers.image_processing_utils import BaseImageProcessor

# What folders and patterns are searched for. A file that is named itself may end in anything.
IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"),
    *(".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
URL_TIMEOUT = 30  # seconds without an answer
URL_SAFE = "!#$%&'()*+,/:;=?@[]~"

# How processes start, and how many files are read in the time that starting and ending one takes. A fork, which is
# safe on Linux for what is done here, shares what is loaded; elsewhere each process imports torch and transformers.
START_METHOD, FILES_WORTH_A_PROCESS = ("fork", 16) if sys.platform == "linux" else ("spawn", 256)
FILES_WORTH_A_URL = 8


def find_images(arguments: Iterable[str], failures: Failures) -> list[str]:
    """Find the paths and URLs of all images that `arguments` stand for, in their order.

    Args:
        arguments: each a file; a folder, searched with its subfolders in alphabetical order; a pattern such as
            `"scans/**/*.png"`; an http(s) URL; or `-` for lines of these on stdin.
        failures: gets the arguments that stand for nothing.

    Raises:
        UsageError: no image at all.
    """
    arguments = list(arguments)
    names = []
    for argument in arguments:
        lines = sys.stdin.read().splitlines() if argument == "-" else [argument]
        for line in lines:
            try:
                names += _find(line)
            except OSError as error:
                failures.add(line, error)
    if arguments and not names:
        raise UsageError("There is no image to work on: give files, folders, patterns or URLs of images.")
    return names


def _find(argument: str) -> list[str]:
    if is_url(argument):
        return [argument]
    path = os.path.expanduser(argument)
    if os.path.isdir(path):
        if found := list(_images_in(path)):
            return found
        raise OSError("no images in this folder")
    # A file may have a name that reads like a pattern.
    if os.path.isfile(path):
        return [path]
    if os.path.exists(path):
        raise OSError("neither a file nor a folder, but a pipe or a device")
    if not glob.has_magic(path):
        raise OSError("no such file or folder")
    matches = sorted(glob.glob(path, recursive=True))
    if found := [match for match in matches if _is_image_file(match)]:
        return found
    raise OSError(f"{len(matches)} matches, none of them an image file" if matches else "nothing matches this pattern")


def is_url(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))


def _is_image_file(path: str) -> bool:
    return path.lower().endswith(IMAGE_SUFFIXES) and os.path.isfile(path)


def _images_in(folder: str) -> Iterator[str]:
    """List image files in `folder` and below, without hidden ones."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (os.path.join(parent, name) for name in sorted(files) if not name.startswith("."))
        yield from filter(_is_image_file, paths)


def read_image(name: str) -> Image.Image:
    """Read the image at a path or URL as open_clip does: in its own colour mode, and not turned as EXIF data may say.

    Raises:
        OSError: it cannot be read, is not an image, or a damaged one, or one of more pixels than Pillow allows.
    """
    try:
        with _open_url(name) if is_url(name) else Image.open(name) as image:
            image.load()
            return image
    except OSError:
        raise
    except Exception as error:  # Pillow and the network raise nearly everything
        raise OSError(f"{type(error).__name__}: {error}") from error


def _open_url(url: str) -> Image.Image:
    # A URL may be given as people write it, with spaces and letters of any script. Some servers turn urllib's own name
    # away.
    headers = {"User-Agent": "open-clip-transformers"}
    request = urllib.request.Request(urllib.parse.quote(url, safe=URL_SAFE), headers=headers)
    with urllib.request.urlopen(request, timeout=URL_TIMEOUT) as response:
        return Image.open(BytesIO(response.read()))


class ImageDataset:
    """Pixels of images, or why there are none: an image that cannot be read must not end the loader.

    Args:
        names: paths and URLs of the images.
        image_processor: makes pixels of an image.
    """

    def __init__(self, names: list[str], image_processor: "BaseImageProcessor"):
        self.names = names
        self.image_processor = image_processor

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> "numpy.ndarray | str":
        """Pixels (channels, height, width), or an error message."""
        try:
            pixel_values = self.image_processor(read_image(self.names[index]), return_tensors="pt").pixel_values
        except Exception as error:  # Pillow and the network raise nearly everything
            return str(error) or type(error).__name__
        # An array goes through a pipe. A tensor would take shared memory, of which containers have little, and a file
        # descriptor each; and it is not faster.
        return pixel_values[0].numpy()


def load_images(dataset: ImageDataset, ahead: int, workers: int) -> "Iterator[numpy.ndarray | str]":
    """Iterate over `dataset` in its order.

    Args:
        ahead: about how many images are read before they are asked for.
        workers: processes that read, fewer where there are few images. Where there are none, images are read here,
            when they are asked for.
    """
    files = sum(FILES_WORTH_A_URL if is_url(name) else 1 for name in dataset.names)
    workers = min(workers, files // FILES_WORTH_A_PROCESS)
    if workers == 0:
        return map(dataset.__getitem__, range(len(dataset)))

    from torch.utils.data import DataLoader

    with _interrupts_ignored(), warnings.catch_warnings():
        # More workers than cores are right for images that come over the network.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        loader = DataLoader(
            dataset,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=-(-ahead // workers),
            multiprocessing_context=START_METHOD,
        )
        return iter(loader)


def _as_it_is(item: "numpy.ndarray | str") -> "numpy.ndarray | str":
    return item


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Make processes started in here leave Ctrl-C, which all processes of a terminal get, to this one."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def read_batches(
    names: list[str], processor: "ProcessorMixin", batch_size: int, workers: int, failures: Failures
) -> "Iterator[tuple[list[str], torch.Tensor]]":
    """Iterate over `(names, pixel_values)`, where `pixel_values` is (at most batch_size, channels, height, width).

    The order is that of the names. Images that cannot be read are reported and left out. A progress bar is shown on a
    terminal.

    Args:
        names: paths and URLs of the images.
        processor: makes pixels of an image.
        batch_size: images in a batch; the last one may be smaller.
        workers: processes that read images, at most two batches ahead; 0 to read them in this one.
        failures: gets the images that cannot be read.
    """
    import torch

    # The image processor alone travels to the workers. They start before tqdm does its thread.
    dataset = ImageDataset(names, processor.image_processor)
    loaded = load_images(dataset, ahead=2 * batch_size, workers=workers)
    batch, pixels = [], []
    # Where standard error is no terminal, tqdm shows nothing.
    with tqdm(total=len(names), unit="image", disable=None, leave=False) as progress:
        for name, item in zip(names, loaded):
            if isinstance(item, str):
                failures.add(name, item)
                progress.update()
                continue
            batch.append(name)
            pixels.append(torch.from_numpy(item))
            if len(batch) == batch_size:
                yield batch, torch.stack(pixels)
                progress.update(len(batch))
                batch, pixels = [], []
        if batch:
            yield batch, torch.stack(pixels)
            progress.update(len(batch))
