"""From the names of images to batches of pixels: read ahead in threads while the model works on the batch before."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from tqdm import tqdm
from transformers import ProcessorMixin

from ._cli_inputs import read_image
from ._cli_messages import Failures


WORKERS = min(8, os.cpu_count() or 1)


class ImageBatches:
    """Iterates over `(names, pixel_values)`, where `pixel_values` is (at most batch_size, channels, height, width).

    The order is that of the names. Images that cannot be read are reported and left out. A progress bar is shown on a
    terminal.

    Args:
        names: paths and URLs of the images.
        processor: makes pixels of an image.
        batch_size: images in a batch; the last one may be smaller.
        failures: gets the images that cannot be read.
    """

    def __init__(self, names: list[str], processor: ProcessorMixin, batch_size: int, failures: Failures):
        self.names = names
        self.processor = processor
        self.batch_size = batch_size
        self.failures = failures

    def __iter__(self) -> Iterator[tuple[list[str], torch.Tensor]]:
        names, pixels = [], []
        # Where standard error is no terminal, tqdm shows nothing.
        with tqdm(total=len(self.names), unit="image", disable=None, leave=False) as progress:
            for name, future in self._read_ahead():
                try:
                    pixels.append(future.result())
                    names.append(name)
                except Exception as error:  # Pillow and the network raise nearly everything
                    self.failures.add(name, error)
                    progress.update()
                if len(names) == self.batch_size:
                    yield names, torch.stack(pixels)
                    progress.update(len(names))
                    names, pixels = [], []
            if names:
                yield names, torch.stack(pixels)
                progress.update(len(names))

    def _read_ahead(self) -> Iterator[tuple[str, Future]]:
        """Each name with its pixels to be, of which at most two batches are kept ready."""
        waiting: deque[tuple[str, Future]] = deque()
        pool = ThreadPoolExecutor(WORKERS)
        try:
            for name in self.names:
                waiting.append((name, pool.submit(self._read, name)))
                if len(waiting) > 2 * self.batch_size:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:  # also where the work stops early
            pool.shutdown(cancel_futures=True)

    def _read(self, name: str) -> torch.Tensor:
        return self.processor.image_processor(read_image(name), return_tensors="pt").pixel_values[0]
