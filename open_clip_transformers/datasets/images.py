"""Read images from files, URLs and bytes, and their pixels ahead of the model.

torch is imported where images are loaded: finding them comes first, and is quick.
"""

import os
import re
import signal
import sys
import threading
import time
import urllib.parse
import urllib.request
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.client import HTTPResponse, IncompleteRead
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, UnidentifiedImageError

from ..configuration.errors import MissingPackageError, UserError
from .extras import open_remote


if TYPE_CHECKING:
    import numpy
    import torch

    from ..processing.image_settings_open_clip import ImageSettings

# Of an image: `pixel_values` (channels, height, width), or those of a NaFlex tower and what belongs to them.
Pixels = dict[str, "numpy.ndarray"]

URL_TIMEOUT, URL_DEADLINE = 30, 300  # seconds without an answer, and of all of it
URL_MAX_BYTES = 1 << 30
URL_SAFE = "!#$%&'()*+,/:;=?@[]~"

# How processes start, and how many files are read in the time that starting and ending one takes. A fork, which is
# safe on Linux for what is done here, shares what is loaded; elsewhere each process imports torch and transformers.
START_METHOD, FILES_WORTH_A_PROCESS = ("fork", 16) if sys.platform == "linux" else ("spawn", 256)
FILES_WORTH_A_URL = 8


class Unreadable(NamedTuple):
    """Why there are no pixels of an image: a kind, such as the name of an exception, and a reason."""

    kind: str
    reason: str

    def __str__(self) -> str:
        return self.reason if self.reason.startswith(f"{self.kind}: ") else f"{self.kind}: {self.reason}"

    @classmethod
    def from_error(cls, error: Exception) -> "Unreadable":
        """Describe `error` in the same words in every run: without addresses of objects in memory."""
        if isinstance(error, UnidentifiedImageError):
            return cls("UnidentifiedImageError", "not an image of a format that Pillow reads")
        kind = type(error.__cause__ if type(error) is OSError and error.__cause__ else error).__name__
        return cls(kind, re.sub(r" at 0x[0-9a-f]+", "", str(error)) or kind)


def is_url(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))


def is_remote(name: str) -> bool:
    """Whether a name is an address such as `s3://bucket/key`, of any file system of fsspec, http(s) included."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name) is not None


def read_image(source: str | bytes) -> Image.Image:
    """Read an image as open_clip does: in its own colour mode, and not turned as EXIF data may say.

    Args:
        source: a path, a URL, an address of fsspec such as `s3://bucket/key`, or the bytes of an image file.

    Raises:
        OSError: it cannot be read, is not an image, or a damaged one, or one of more pixels than Pillow allows.
        MissingPackageError: a package that reads such addresses is not installed.
    """
    try:
        with _open(source) as image:
            image.load()
            return image
    except (OSError, MissingPackageError):
        raise
    except Exception as error:  # Pillow and the network raise nearly everything
        raise OSError(f"{type(error).__name__}: {error}") from error


def _open(source: str | bytes) -> Image.Image:
    if isinstance(source, bytes):
        return Image.open(BytesIO(source))
    if is_url(source):
        return _open_url(source)
    if is_remote(source):
        with open_remote(source) as file:
            return Image.open(BytesIO(file.read()))
    return Image.open(source)


def _open_url(url: str) -> Image.Image:
    # A URL may be given as people write it, with spaces and letters of any script. Some servers turn urllib's own name
    # away.
    headers = {"User-Agent": "open-clip-transformers"}
    request = urllib.request.Request(urllib.parse.quote(url, safe=URL_SAFE), headers=headers)
    with urllib.request.urlopen(request, timeout=URL_TIMEOUT) as response:
        return Image.open(_download(response))


def _download(response: HTTPResponse) -> BytesIO:
    """Read an answer whole, as far as it comes in time and fits in memory."""
    content, start = BytesIO(), time.monotonic()
    while part := response.read1(1 << 20):  # what is there, be it little
        content.write(part)
        if time.monotonic() - start > URL_DEADLINE:
            raise TimeoutError(f"the answer is not complete after {URL_DEADLINE} s")
        if content.tell() > URL_MAX_BYTES:
            raise OSError(f"the answer has more than {URL_MAX_BYTES} bytes")
    if response.length:
        raise IncompleteRead(b"", response.length)
    content.seek(0)
    return content


class PixelReader:
    """Pixels of images, or why there are none: an image that cannot be read must not end the loader.

    Images are resized and cropped one by one, in the processes that read, and normalised as batches: until then their
    pixels are bytes, which travel in a quarter of the time.

    Args:
        image_processor: makes pixels of an image, on either back end.
    """

    def __init__(self, image_processor: "ImageSettings"):
        self.image_processor = image_processor

    def __getitem__(self, source: str | bytes | None) -> "Pixels | Unreadable | MissingPackageError | None":
        """Pixels of an image that [`read_image`] takes, or `None` of `None`."""
        if source is None:
            return None
        try:
            image = self.image_processor(read_image(source), do_rescale=False, do_normalize=False, return_tensors="pt")
        except MissingPackageError as error:  # which is no fault of this image: `load_images` raises it
            return error
        except Exception as error:  # Pillow and the network raise nearly everything
            return Unreadable.from_error(error)
        # An array goes through a pipe. A tensor would take shared memory, of which containers have little, and a file
        # descriptor each; and it is not faster.
        return {name: tensor[0].numpy() for name, tensor in image.items()}

    def to_batch(self, images: "Sequence[Pixels]") -> "dict[str, torch.Tensor]":
        """Stack images that were read into the batch that the image processor makes of them, by name."""
        import torch

        stacked = {name: torch.stack([torch.from_numpy(image[name]) for image in images]) for name in images[0]}
        return self.image_processor.finish(stacked)


def worthwhile_workers(names: list[str], workers: int) -> int:
    """How many of `workers` processes are worth starting to read these paths and URLs."""
    files = sum(FILES_WORTH_A_URL if is_url(name) else 1 for name in names)
    return min(workers, files // FILES_WORTH_A_PROCESS)


def load_images(
    sources: "Iterable[str | bytes | None]", reader: PixelReader, ahead: int, workers: int
) -> "Generator[Pixels | Unreadable | None]":
    """Iterate over the pixels of `sources`, in their order; closing it ends the processes that read.

    Args:
        sources: what `reader` takes; read lazily, in this process.
        reader: reads and prepares an image.
        ahead: about how many images are read before they are asked for.
        workers: processes that read. Without any, images are read here, when they are asked for.

    Raises:
        MissingPackageError: a package that reads such addresses is not installed.
        UserError: a process that reads was ended from outside.
    """
    if workers == 0:
        return _raising(reader[source] for source in sources)

    from torch.utils.data import DataLoader

    with _interrupts_ignored(), warnings.catch_warnings():
        # More workers than cores are right for images that come over the network.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        # What the sampler yields is what the processes get: here the images themselves, not their indices.
        loader = DataLoader(
            reader,
            sampler=sources,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=-(-ahead // workers),
            multiprocessing_context=START_METHOD,
            worker_init_fn=partial(_end_with, os.getpid()),
        )
        # It starts the processes now, and they end where nothing refers to its iterator any more.
        return _raising(iter(loader))


def _raising(
    items: "Iterator[Pixels | Unreadable | MissingPackageError | None]",
) -> "Generator[Pixels | Unreadable | None]":
    try:
        for item in items:
            if isinstance(item, MissingPackageError):
                raise item
            yield item
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"A process that reads images was ended from outside, as systems do where memory is short: {reason} "
            "Start again, with fewer --workers."
        ) from error


def _as_it_is(item: object) -> object:
    return item


def _end_with(parent: int, worker: int):
    """Let this process not outlive its parent: where that is killed, it would wait forever to hand over an image."""

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Make processes started in here leave Ctrl-C, which all processes of a terminal get, to this one."""
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
