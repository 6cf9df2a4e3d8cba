"""Batches of pairs, and the augmentation of training (open_clip: `data.py`, `image_transform` in `transform.py`)."""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import ProcessorMixin
from transformers.utils import requires_backends

from ..configuration.configuration_common import height_and_width
from ..processing.processing_coca import CoCaProcessor


class _Sometimes(nn.Module):
    """A transform with a probability that is drawn as open_clip draws it, from Python's random numbers."""

    def __init__(self, transform: nn.Module, prob: float):
        super().__init__()
        self.transform, self.prob = transform, prob

    def forward(self, image):
        return self.transform(image) if random.random() < self.prob else image


def _to_rgb(image):
    return image.convert("RGB")


def training_transform(
    image_processor,
    scale: tuple[float, float] = (0.9, 1.0),
    color_jitter: Sequence[float] | None = None,
    color_jitter_prob: float | None = None,
    gray_scale_prob: float | None = None,
) -> nn.Module:
    """open_clip's augmentation, of torchvision's transforms; the same draws give the same pixels.

    Args:
        image_processor: that of the model, which says size, mean and standard deviation.
        scale: smallest and largest share of an image's area that is cropped, to be resized to the model's size.
        color_jitter: strengths of brightness, contrast, saturation and hue.
        color_jitter_prob: probability of such a change of colours.
        gray_scale_prob: probability of an image without colours.

    Returns:
        a transform of a PIL image to float32 `pixel_values` (3, height, width), for [`ContrastiveCollator`].

    Raises:
        ImportError: torchvision is not installed.
        ValueError: a probability that is none, or strengths without a probability, or the other way round; an image
            processor of a NaFlex tower.
    """
    requires_backends(training_transform, ["torchvision", "vision"])
    from torchvision.transforms import v2

    for name, prob in (("color_jitter_prob", color_jitter_prob), ("gray_scale_prob", gray_scale_prob)):
        if prob is not None and not 0 <= prob <= 1:
            raise ValueError(f"{name} is a probability, got {prob}.")
    if bool(color_jitter_prob) != (color_jitter is not None) or (color_jitter is not None and len(color_jitter) != 4):
        raise ValueError(
            "color_jitter takes four strengths, of brightness, contrast, saturation and hue, and color_jitter_prob; "
            f"got {color_jitter} and {color_jitter_prob}."
        )
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale is the smallest and the largest share of an image's area, got {scale}.")
    size = getattr(image_processor, "size", None)
    if size is None:
        raise ValueError(
            f"{type(image_processor).__name__} has no size to crop to: it makes patches of images of any shape, which "
            "ContrastiveCollator does without a transform."
        )
    size = (size["height"], size["width"]) if "height" in size else height_and_width(size["shortest_edge"])
    transforms: list[nn.Module] = [
        v2.RandomResizedCrop(size, scale=scale, interpolation=v2.InterpolationMode.BICUBIC),
        v2.Lambda(_to_rgb),
    ]
    if color_jitter_prob:
        transforms.append(_Sometimes(v2.ColorJitter(*color_jitter), color_jitter_prob))
    if gray_scale_prob:
        transforms.append(_Sometimes(v2.Grayscale(num_output_channels=3), gray_scale_prob))
    transforms += [
        v2.PILToTensor(),
        v2.ToDtype(torch.float32),
        # Divided as open_clip does; `ToDtype(scale=True)` multiplies by 1/255, with other last bits.
        v2.Normalize([0.0] * 3, [255.0] * 3),
        v2.Normalize(image_processor.image_mean, image_processor.image_std),
    ]
    return v2.Compose(transforms)


class ContrastiveCollator:
    """Examples with an image and a text each -> the inputs of a dual model or CoCa, a collator for data loaders.

    Args:
        processor: that of the model.
        transform: PIL image -> `pixel_values` (3, height, width) of a [`training_transform`] or the like; by default
            images are processed as for inference.
        image_column: name of the images, PIL images or what else the processor takes.
        text_column: name of the texts, strings.
        return_labels: also make `labels` for CoCa's caption loss; by default with a [`CoCaProcessor`].
        return_loss: also make `return_loss=True`, by which a model computes its own loss: for transformers' `Trainer`.
            [`ContrastiveTrainer`] has no need of it.

    Raises:
        ValueError: `return_labels` with a processor that makes none.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        transform: Callable[[Any], torch.Tensor] | None = None,
        image_column: str = "image",
        text_column: str = "text",
        return_labels: bool | None = None,
        return_loss: bool = False,
    ):
        makes_captions = isinstance(processor, CoCaProcessor)
        if return_labels and not makes_captions:
            raise ValueError(f"return_labels=True needs the processor of a CoCa, got {type(processor).__name__}.")
        self.processor = processor
        self.transform = transform
        self.image_column = image_column
        self.text_column = text_column
        self.return_labels = makes_captions if return_labels is None else return_labels
        self.return_loss = return_loss
        # Beside images, CoCa's processor would take texts for prompts.
        self._text_kwargs = {"add_eos": True, "return_labels": self.return_labels} if makes_captions else {}

    def check_columns(self, names: Collection[str]):
        """Raise `ValueError` unless `names`, those of a data set's columns, hold the images' and the texts'."""
        for argument in ("image_column", "text_column"):
            column = getattr(self, argument)
            if column not in names:
                raise ValueError(
                    f"The data set has the columns {', '.join(map(repr, names))}, and the collator reads "
                    f"{column!r}: name the right one by {argument}."
                )

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Examples -> a batch.

        Returns:
            `pixel_values` float32 (pairs, 3, height, width), `input_ids` and `attention_mask` int64 (pairs, length),
            and `labels` and `return_loss` where they were asked for.

        Raises:
            ValueError: a column that an example lacks.
            TypeError: a text that is not one string.
        """
        for example in examples:
            self.check_columns(example.keys())
        images, texts = ([example[name] for example in examples] for name in (self.image_column, self.text_column))
        for text in texts:
            if isinstance(text, bytes):
                raise TypeError(
                    f"Column {self.text_column!r} has bytes, {text!r:.60}: decode them, those of webdataset by "
                    '.decode("pil").'
                )
            if not isinstance(text, str):
                raise TypeError(f"Each image has one text, a string; column {self.text_column!r} has {text!r:.100}.")
        if self.transform is None:
            batch = dict(self.processor(images=images, text=texts, return_tensors="pt", **self._text_kwargs))
        else:
            images = self.processor.image_processor.fetch_images(images)
            batch = {"pixel_values": torch.stack([self.transform(image) for image in images])}
            batch |= self.processor(text=texts, return_tensors="pt", **self._text_kwargs)
        if len(batch["pixel_values"]) != len(texts):
            raise ValueError(
                f"Each text has one image; column {self.image_column!r} has {len(batch['pixel_values'])} for "
                f"{len(texts)} texts."
            )
        return {**batch, "return_loss": True} if self.return_loss else batch
