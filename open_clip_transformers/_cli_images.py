"""From the names of images to batches of pixels, read ahead while the model works on the batch before."""

from collections.abc import Iterator

import torch
from tqdm import tqdm
from transformers import ProcessorMixin

from ._cli_messages import Failures
from ._image_loading import ImageDataset, load_images


class ImageBatches:
    """Iterates over `(names, pixel_values)`, where `pixel_values` is (at most batch_size, channels, height, width).

    The order is that of the names. Images that cannot be read are reported and left out. A progress bar is shown on a
    terminal.

    Args:
        names: paths and URLs of the images.
        processor: makes pixels of an image.
        batch_size: images in a batch; the last one may be smaller.
        workers: processes that read images, at most two batches ahead; 0 to read them in this one.
        failures: gets the images that cannot be read.
    """

    def __init__(self, names: list[str], processor: ProcessorMixin, batch_size: int, workers: int, failures: Failures):
        self.names = names
        self.processor = processor
        self.batch_size = batch_size
        self.workers = workers
        self.failures = failures

    def __iter__(self) -> Iterator[tuple[list[str], torch.Tensor]]:
        # The image processor alone travels to the workers. They start before tqdm does its thread.
        dataset = ImageDataset(self.names, self.processor.image_processor)
        loaded = load_images(dataset, ahead=2 * self.batch_size, workers=self.workers)
        names, pixels = [], []
        # Where standard error is no terminal, tqdm shows nothing.
        with tqdm(total=len(self.names), unit="image", disable=None, leave=False) as progress:
            for name, item in zip(self.names, loaded):
                if isinstance(item, str):
                    self.failures.add(name, item)
                    progress.update()
                    continue
                names.append(name)
                pixels.append(torch.from_numpy(item))
                if len(names) == self.batch_size:
                    yield names, torch.stack(pixels)
                    progress.update(len(names))
                    names, pixels = [], []
            if names:
                yield names, torch.stack(pixels)
                progress.update(len(names))
