"""Settings and geometry of both NaFlex image processors (open_clip: `naflex_eval_transform_v2` in `transform.py`;
timm: `naflex_transforms.py`)."""

import math
from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import ChannelDimension
from transformers.processing_utils import ImagesKwargs
from transformers.utils import TensorType

from ..configuration.configuration_common import COUNT, PIXELS, height_and_width
from .image_batches import to_pixel_values
from .image_settings_open_clip import ImageSettings, WithoutEffect


_TO_BUDGET = "images are resized to max_num_patches of patch_size, whatever their shape."
_WITHOUT_EFFECT: WithoutEffect = {
    **dict.fromkeys(("size", "crop_size", "pad_size"), (lambda value, size: False, _TO_BUDGET)),
    "do_center_crop": (lambda value, size: not value, "nothing is cropped."),
    "do_pad": (lambda value, size: bool(value), "patches are always padded to max_num_patches."),
    "data_format": (lambda value, size: value == ChannelDimension.FIRST, "pixel_values have no axis of channels."),
}


class NaFlexImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    r"""
    patch_size (`int` or `list[int]`, *optional*):
        Height and width of a patch in pixels, one number for a square.
    max_num_patches (`int`, *optional*):
        Most patches that an image is resized to; each is padded to as many.
    """

    patch_size: int | list[int] | tuple[int, ...] | None
    max_num_patches: int | None


class NaFlexImageSettings(ImageSettings):
    """Settings of an image processor that gives patches, a mixin for a back end of transformers.

    Images are prepared as open_clip does: they are not turned as their EXIF data may say, are converted to RGB, and
    resized, smaller or larger, to as many whole patches as `max_num_patches` allow with their aspect ratio. Takes the
    settings of [`ImageSettings`] and these.

    Args:
        patch_size: height and width of a patch in pixels, one number for a square; timm: the same name.
        max_num_patches: most patches of an image; each is padded to as many. open_clip: `image_seq_len`.
        do_resize: resize. Without it, images have whole patches, `max_num_patches` at most, already.
    """

    back_ends = {"torchvision": "NaFlexImageProcessor", "pil": "NaFlexImageProcessorPil"}
    without_effect = _WITHOUT_EFFECT
    model_input_names = ["pixel_values", "pixel_attention_mask", "spatial_shapes"]

    valid_kwargs = NaFlexImageProcessorKwargs
    patch_size: int | list[int] | tuple[int, int] = 16
    max_num_patches = 1024

    def _for_base_class(self, settings: dict[str, Any]) -> dict[str, Any]:
        # It would ask for a size to resize to.
        return {**settings, "do_resize": None}

    def _check_settings(self, settings: dict[str, Any]):
        patch_size, count = settings["patch_size"], settings["max_num_patches"]
        sides = patch_size if isinstance(patch_size, list | tuple) else [patch_size] * 2
        if len(sides) != 2 or not all(type(side) is int and side in PIXELS for side in sides):
            raise ValueError(
                f"{type(self).__name__}: got patch_size={patch_size}; expected one number or two in {PIXELS}."
            )
        if type(count) is not int or count not in COUNT:
            raise ValueError(f"{type(self).__name__}: got max_num_patches={count}; expected a number in {COUNT}.")
        super()._check_settings(settings)

    def target_size(self, height: int, width: int, do_resize: bool, patch_size, max_num_patches: int, **kwargs):
        """Height and width to which an image is resized.

        Raises:
            ValueError: it is not to be resized and has no whole patches, or too many.
        """
        sides = height_and_width(patch_size)
        if do_resize:
            return size_of_patches(height, width, sides, max_num_patches)
        num_patches = (height // sides[0]) * (width // sides[1])
        if height % sides[0] or width % sides[1] or not 0 < num_patches <= max_num_patches:
            raise ValueError(
                f"{type(self).__name__}: an image of {width} x {height} pixels has no whole patches of "
                f"{sides[1]} x {sides[0]}, {max_num_patches} at most: resize it, or leave out do_resize=False."
            )
        return height, width

    def finish(self, images: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        patches, mask = images["pixel_values"], images["pixel_attention_mask"]
        rows, columns = height_and_width(self.patch_size)
        channels = patches.shape[-1] // (rows * columns)
        return {**images, "pixel_values": normalized_patches(patches, mask, channels, *self._finishing)}

    def _preprocess(
        self,
        images: list[torch.Tensor],
        patch_size,
        max_num_patches: int,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean,
        image_std,
        return_tensors: str | TensorType | None = None,
        **kwargs,
    ) -> BatchFeature:
        sides = height_and_width(patch_size)
        grids = [(image.shape[1] // sides[0], image.shape[2] // sides[1]) for image in images]
        length = sides[0] * sides[1] * images[0].shape[0]
        dtype = reduce(torch.promote_types, (image.dtype for image in images))
        patches = images[0].new_zeros(len(images), max_num_patches, length, dtype=dtype)
        for row, image, (rows, columns) in zip(patches, images, grids):
            # (channels, rows, height, columns, width) -> (rows, columns, height, width, channels)
            cut = image.unflatten(2, (columns, sides[1])).unflatten(1, (rows, sides[0])).permute(1, 3, 2, 4, 0)
            row[: rows * columns].view(cut.shape).copy_(cut)
        shapes = torch.tensor(grids, device=patches.device)
        mask = (torch.arange(max_num_patches, device=patches.device) < shapes.prod(-1, keepdim=True)).int()
        patches = normalized_patches(
            patches, mask, images[0].shape[0], do_rescale, rescale_factor, do_normalize, image_mean, image_std
        )
        data = {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}
        if return_tensors is None:
            data = {name: list(tensor.numpy() if self.backend == "pil" else tensor) for name, tensor in data.items()}
        return BatchFeature(data=data, tensor_type=return_tensors)


def normalized_patches(patches: torch.Tensor, mask: torch.Tensor, channels: int, *settings) -> torch.Tensor:
    """Patches rescaled and normalised as images are, and zeros where `mask` has padding.

    Args:
        patches: (images, patches, pixels * channels).
        mask: (images, patches).
        settings: what `to_pixel_values` takes behind the images.
    """
    # (channels, everything, pixels) for the one function that knows the arithmetic.
    images = patches.flatten(0, 1).unflatten(1, (-1, channels)).permute(2, 0, 1)
    values = to_pixel_values([images], *settings)[0].permute(1, 2, 0).reshape(patches.shape)
    return values.masked_fill_(mask.unsqueeze(-1) == 0, 0)


def size_of_patches(height: int, width: int, patch_size: tuple[int, int], max_num_patches: int) -> tuple[int, int]:
    """Height and width of an image resized to at most so many whole patches (timm: `get_image_size_for_seq`).

    The scale is found as timm finds it, to the last bit: at a step between two sizes rounding decides.

    Raises:
        ValueError: the image has no pixels, or too many or too few for the scales from 1e-5 to 100.
    """
    if not height or not width:
        raise ValueError(f"An image of {width} x {height} pixels has none to resize.")

    def scaled(scale: float) -> tuple[int, int]:
        rows, columns = (max(1, math.ceil(size * scale / side)) for size, side in zip((height, width), patch_size))
        return rows * patch_size[0], columns * patch_size[1]

    precision = 1e-5
    low, high = precision / 10, 100.0
    while high - low >= precision:
        middle = (low + high) / 2
        rows, columns = (size // side for size, side in zip(scaled(middle), patch_size))
        if rows * columns <= max_num_patches:
            low = middle
        else:
            high = middle
    rows, columns = (size // side for size, side in zip(scaled(low), patch_size))
    if low <= precision or rows * columns > max_num_patches:
        raise ValueError(
            f"An image of {width} x {height} pixels cannot be resized to {max_num_patches} patches of "
            f"{patch_size[1]} x {patch_size[0]}: crop it, or raise max_num_patches."
        )
    return scaled(low)


__all__ = ["NaFlexImageProcessorKwargs", "NaFlexImageSettings", "size_of_patches"]
