"""Image processor on Pillow, bit-equal to open_clip (open_clip: `image_transform` in `transform.py`)."""

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import Unpack
from transformers.utils import TensorType

from .image_settings_open_clip import (
    OpenClipImageProcessorKwargs,
    OpenClipImageSettings,
    center_offset,
    center_padding,
    channels_first,
    resized_size,
)


class OpenClipImageProcessorPil(OpenClipImageSettings, PilBackend):
    """Image processor on Pillow: its `pixel_values` equal those of open_clip's evaluation transform bit for bit.

    Its settings are those of [`OpenClipImageSettings`]. It takes PIL images of every mode, paths and URLs, and arrays
    or tensors of one image or several, channels first or last. uint8 arrays are treated as PIL images, others channel
    by channel in single precision; of four channels the last is alpha. EXIF data are ignored, as open_clip does.

    Returns:
        `pixel_values`, float32 of shape (images, channels, height, width); a list of arrays without `return_tensors`.
    """

    def __init__(self, **kwargs: Unpack[OpenClipImageProcessorKwargs]):
        super().__init__(**kwargs)

    def process_image(self, image, input_data_format=None, **kwargs) -> Image.Image | list[Image.Image]:
        """The image as a PIL image, or as one of mode "F" for each channel. Nothing is converted to RGB yet."""
        if isinstance(image, Image.Image):
            return image
        array = channels_first(
            image.numpy(force=True) if isinstance(image, torch.Tensor) else image, input_data_format
        )
        if array.dtype != np.uint8:
            return [Image.fromarray(plane) for plane in np.ascontiguousarray(array, dtype=np.float32)]
        # A mode "L" image has no axis of channels.
        return Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(np.moveaxis(array, 0, -1)))

    def _preprocess(
        self,
        images: list[Image.Image | list[Image.Image]],
        do_resize: bool,
        size,
        resample,
        resize_mode: str,
        fill_color,
        do_center_crop: bool,
        do_convert_rgb: bool,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean,
        image_std,
        return_tensors: str | TensorType | None = None,
        **kwargs,
    ) -> BatchFeature:
        target = (size.height, size.width)
        arrays = []
        for image in images:
            planes = image if isinstance(image, list) else [image]
            if do_resize:
                planes = [resize_pil(plane, target, resize_mode, resample) for plane in planes]
            if do_center_crop:
                # open_clip fills with its colour where it pads on purpose, and with black in torchvision's CenterCrop.
                fill = fill_color if resize_mode == "longest" else 0
                planes = [center_crop_pil(plane, target, fill) for plane in planes]
            to_array = _planes_to_array if isinstance(image, list) else _pil_to_array
            arrays.append(to_array(planes, do_convert_rgb))
        pixel_values = _stack(arrays, to_float=do_rescale or do_normalize)
        for image in pixel_values:
            if do_rescale:
                # Not `*= rescale_factor`: 1 / (1 / 255) is 255 exactly, and dividing by it is what ToTensor does.
                image.div_(1 / rescale_factor)
            if do_normalize:
                image.sub_(_per_channel(image_mean)).div_(_per_channel(image_std))
        if return_tensors is None or isinstance(pixel_values, list):
            pixel_values = [image.numpy() for image in pixel_values]
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)


def resize_pil(image: Image.Image, target: tuple[int, int], resize_mode: str, resample: int) -> Image.Image:
    """`image` resized for `target` (height, width), in its own mode."""
    height, width = resized_size(image.height, image.width, target, resize_mode)
    return image if (width, height) == image.size else image.resize((width, height), resample)


def center_crop_pil(image: Image.Image, target: tuple[int, int], fill) -> Image.Image:
    """The centre of `image`, cropped and padded with `fill` to `target` (height, width), in its own mode."""
    padding = center_padding(image.height, image.width, target)
    if any(padding):
        palette = image.getpalette() if image.mode == "P" else None
        fill = (
            (fill,) * len(image.getbands()) if isinstance(fill, (int, float)) and len(image.getbands()) > 1 else fill
        )
        image = ImageOps.expand(image, border=padding, fill=fill)
        if palette is not None:
            image.putpalette(palette)
    if (image.height, image.width) == target:
        return image
    top, left = center_offset(image.height, image.width, target)
    return image.crop((left, top, left + target[1], top + target[0]))


def _pil_to_array(images: list[Image.Image], do_convert_rgb: bool) -> np.ndarray:
    (image,) = images
    array = np.array(image.convert("RGB") if do_convert_rgb else image)
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _planes_to_array(planes: list[Image.Image], do_convert_rgb: bool) -> np.ndarray:
    array = np.stack([np.asarray(plane) for plane in planes])
    if do_convert_rgb:
        array = np.repeat(array, 3, axis=0) if len(array) == 1 else array[:3]
    return array


def _stack(arrays: list[np.ndarray], to_float: bool) -> torch.Tensor | list[torch.Tensor]:
    """The images as one tensor, or as a list of tensors where their shapes differ; float32 if `to_float`."""
    dtype = torch.float32 if to_float else torch.from_numpy(arrays[0]).dtype
    if len({array.shape for array in arrays}) > 1:
        return [torch.from_numpy(array).to(dtype, memory_format=torch.contiguous_format) for array in arrays]
    batch = torch.empty((len(arrays), *arrays[0].shape), dtype=dtype)
    for image, array in zip(batch, arrays):
        image.copy_(torch.from_numpy(array))
    return batch


def _per_channel(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)


__all__ = ["OpenClipImageProcessorPil"]
