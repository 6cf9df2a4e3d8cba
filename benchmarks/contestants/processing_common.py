"""Images to pixels and texts to ids; contestants differ in the processor that they load."""

import io
from collections.abc import Callable
from pathlib import Path

import torch
from open_clip.constants import OPENAI_DATASET_STD
from open_clip.transform import image_transform
from PIL import Image

from contestants.processing_inputs import captions, decoded, jpeg, photographs


IMAGE_SIZE = 224
LEVELS = 255
# Of the outputs that are compared: every so many values of pixels, so many rows of ids.
EVERY_VALUE, COMPARED_ROWS = 499, 256
CONTEXT_LENGTHS = {"clip": 77, "siglip": 64}


def open_clip_pixels(images: list[Image.Image]) -> torch.Tensor:
    """open_clip's evaluation transform, image by image, as one tensor."""
    return torch.stack([TRANSFORM(image) for image in images])


TRANSFORM = image_transform(IMAGE_SIZE, is_train=False)


class Images:
    """Images to pixels (images, 3, 224, 224) on the device of the cell."""

    def __init__(self, settings: dict, folder: Path):
        self.settings = settings
        self.sources = _sources(settings)
        self.process = self.load()

    def load(self) -> Callable[[list | torch.Tensor], torch.Tensor]:
        """Return the function from a list of PIL images or uint8 tensors, or one tensor of several, to pixels."""
        raise NotImplementedError

    def run(self) -> torch.Tensor:
        is_jpeg = self.settings["form"] == "jpeg"
        return self.process([Image.open(io.BytesIO(file)) for file in self.sources] if is_jpeg else self.sources)

    def outputs(self) -> list[float]:
        return self.result.flatten()[::EVERY_VALUE].tolist()

    def figures(self) -> dict:
        """The largest and mean difference to open_clip's pixels, in levels of 0..255."""
        images = photographs(self.settings)
        if self.settings["form"] == "jpeg":
            images = [Image.open(io.BytesIO(jpeg(image))) for image in images]
        deviation = torch.tensor(OPENAI_DATASET_STD).view(3, 1, 1)
        apart = (self.result.cpu() - open_clip_pixels(images)).abs() * deviation * LEVELS
        return {"largest error, of 255": apart.max().item(), "mean error, of 255": apart.mean().item()}


def _sources(settings: dict) -> list | torch.Tensor:
    images = photographs(settings)
    if settings["form"] == "pil":
        return images
    if settings["form"] == "jpeg":
        return [jpeg(image) for image in images]
    tensors = [decoded(image) for image in images]
    return torch.stack(tensors) if settings["form"] == "stacked" else tensors


class Texts:
    """Texts to ids (texts, context length), all at once or one by one."""

    def __init__(self, settings: dict, folder: Path):
        self.settings, self.folder = settings, folder
        self.context_length = CONTEXT_LENGTHS[settings["tokenizer"]]
        texts = captions(settings)
        self.batches = texts if settings["batch"] == 1 else [texts]
        self.tokenize = self.load()

    def load(self) -> Callable[[str | list[str]], torch.Tensor]:
        """Return the function from one text or several to ids."""
        raise NotImplementedError

    def run(self) -> torch.Tensor:
        return torch.cat([self.tokenize(batch) for batch in self.batches])

    def outputs(self) -> list[list[int]]:
        return self.result[:COMPARED_ROWS].tolist()


def by_task(images: type[Images], texts: type[Texts] | None = None) -> Callable[[dict, Path], Images | Texts]:
    """The contestant for the task of a cell."""
    return lambda settings, folder: (images if settings["task"] == "images" else texts)(settings, folder)
