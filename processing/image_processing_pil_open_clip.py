"""Image processor on Pillow, bit-equal to open_clip (open_clip: `image_transform` in `transform.py`)."""

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import Unpack
from transformers.utils import TensorType

from .image_batches import to_pixel_values
from .image_settings_open_clip import (
    OpenClipImageProcessorKwargs,
    OpenClipImageSettings,
    center_offset,
    center_padding,
    channels_first,
    needs_part,
    resized_size,
)
from .partial_resize import resize_part


class PillowImages:
    """Images of any kind through Pillow, a mixin for an image processor that says how one is resized."""

    def resize_image(self, image: Image.Image, **kwargs) -> Image.Image:
        """`image` as the settings among `kwargs` say, before it becomes a tensor."""
        raise NotImplementedError

    def process_image(self, image, do_convert_rgb=None, input_data_format=None, **kwargs) -> torch.Tensor:
        """The image as a tensor (channels, height, width), resized and converted to RGB."""
        if isinstance(image, Image.Image):
            return pil_to_tensor(self.resize_image(image, do_convert_rgb=do_convert_rgb, **kwargs), do_convert_rgb)
        if isinstance(image, torch.Tensor):  # of which numpy has no bfloat16
            image = (image.float() if image.dtype == torch.bfloat16 else image).numpy(force=True)
        array = channels_first(image, input_data_format)
        if array.dtype == np.uint8:
            # A mode "L" image has no axis of channels.
            pixels = array[0] if len(array) == 1 else np.ascontiguousarray(np.moveaxis(array, 0, -1))
            return self.process_image(Image.fromarray(pixels), do_convert_rgb, **kwargs)
        planes = [Image.fromarray(plane) for plane in np.ascontiguousarray(array, dtype=np.float32)]
        tensor = torch.cat([pil_to_tensor(self.resize_image(plane, **kwargs)) for plane in planes])
        if not do_convert_rgb:
            return tensor
        return tensor.expand(3, -1, -1) if len(tensor) == 1 else tensor[:3]


class OpenClipImageProcessorPil(PillowImages, OpenClipImageSettings, PilBackend):
    """Image processor on Pillow: its `pixel_values` equal those of open_clip's evaluation transform bit for bit.

    Its settings are those of [`OpenClipImageSettings`]. It takes PIL images of every mode, paths and URLs, and arrays
    or tensors of one image or several, channels first or last. uint8 arrays are treated as PIL images, others channel
    by channel in single precision; of four channels the last is alpha. EXIF data are ignored, as open_clip does.

    Returns:
        `pixel_values`, float32 of shape (images, channels, height, width); a list of arrays without `return_tensors`.
    """

    def __init__(self, **kwargs: Unpack[OpenClipImageProcessorKwargs]):
        super().__init__(**kwargs)

    def resize_image(self, image: Image.Image, **kwargs) -> Image.Image:
        return resize_and_crop_pil(image, **kwargs)

    def _preprocess(
        self,
        images: list[torch.Tensor],
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean,
        image_std,
        return_tensors: str | TensorType | None = None,
        **kwargs,
    ) -> BatchFeature:
        pixel_values = to_pixel_values(images, do_rescale, rescale_factor, do_normalize, image_mean, image_std)
        if return_tensors is None or isinstance(pixel_values, list):
            pixel_values = [image.numpy() for image in pixel_values]
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)


def resize_and_crop_pil(
    image: Image.Image,
    do_resize: bool,
    size,
    resample: int,
    resize_mode: str,
    fill_color,
    do_center_crop: bool,
    **kwargs,
) -> Image.Image:
    """`image` brought to `size` in its own mode; the arguments are those of `OpenClipImageSettings`."""
    target = (size.height, size.width)
    if do_resize:
        resized = resized_size(image.height, image.width, target, resize_mode)
        # Pillow's arithmetic with LAB, which is rare, is another.
        if needs_part((image.height, image.width), resized, do_center_crop and image.mode != "LAB"):
            top, left = center_offset(*resized, target)
            return resize_part(image, resized[::-1], (left, top, left + target[1], top + target[0]), resample)
        image = resize_pil(image, target, resize_mode, resample)
    if do_center_crop:
        # open_clip fills with its colour where it pads on purpose, and with black in torchvision's CenterCrop.
        image = center_crop_pil(image, target, fill_color if resize_mode == "longest" else 0)
    return image


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


def pil_to_tensor(image: Image.Image, do_convert_rgb: bool | None = False) -> torch.Tensor:
    """The pixels of `image` as a tensor (channels, height, width)."""
    image = image.convert("RGB") if do_convert_rgb and image.mode != "RGB" else image
    if image.mode == "RGB":
        # Pillow takes channels apart in half the time that a copy of interleaved ones takes.
        content = bytearray().join(channel.tobytes() for channel in image.split())
        return torch.frombuffer(content, dtype=torch.uint8).view(3, image.height, image.width)
    array = np.array(image)
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)


__all__ = ["OpenClipImageProcessorPil", "PillowImages"]
