"""Images read by `torch.utils.data.DataLoader`, in processes of its own, and handed over in order."""

import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
from torch.utils.data import DataLoader, Dataset
from transformers.image_processing_utils import BaseImageProcessor

from ._cli_inputs import is_url, read_image


# How processes start, and how many files are read in the time that starting and ending one takes. A fork, which is
# safe on Linux for what is done here, shares what is loaded; elsewhere each process imports torch and transformers.
START_METHOD, FILES_WORTH_A_PROCESS = ("fork", 16) if sys.platform == "linux" else ("spawn", 256)
FILES_WORTH_A_URL = 8


class ImageDataset(Dataset):
    """Pixels of images, or why there are none: an image that cannot be read must not end the loader.

    Args:
        names: paths and URLs of the images.
        image_processor: makes pixels of an image.
    """

    def __init__(self, names: list[str], image_processor: BaseImageProcessor):
        self.names = names
        self.image_processor = image_processor

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> numpy.ndarray | str:
        """Pixels (channels, height, width), or an error message."""
        try:
            pixel_values = self.image_processor(read_image(self.names[index]), return_tensors="pt").pixel_values
        except Exception as error:  # Pillow and the network raise nearly everything
            return str(error) or type(error).__name__
        # An array goes through a pipe. A tensor would take shared memory, of which containers have little, and a file
        # descriptor each; and it is not faster.
        return pixel_values[0].numpy()


def load_images(dataset: ImageDataset, ahead: int, workers: int) -> Iterator[numpy.ndarray | str]:
    """An iterator over `dataset` in its order.

    Args:
        ahead: about how many images are read before they are asked for.
        workers: processes that read, fewer where there are few images. Where there are none, images are read here,
            when they are asked for.
    """
    files = sum(FILES_WORTH_A_URL if is_url(name) else 1 for name in dataset.names)
    workers = min(workers, files // FILES_WORTH_A_PROCESS)
    if workers == 0:
        return map(dataset.__getitem__, range(len(dataset)))
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


def _as_it_is(item: numpy.ndarray | str) -> numpy.ndarray | str:
    return item


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started in here leave Ctrl-C, which all processes of a terminal get, to this one."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
