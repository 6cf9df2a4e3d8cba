"""Image processor on torchvision, batched and on any device (open_clip: `image_transform` in `transform.py`)."""

import torch
from PIL import Image
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_transforms import group_images_by_shape, reorder_images
from transformers.image_utils import SizeDict
from transformers.processing_utils import Unpack
from transformers.utils import TensorType, is_torchvision_available, requires_backends

from .image_batches import to_pixel_values
from .image_processing_pil_open_clip import pil_to_tensor, resize_and_crop_pil
from .image_settings_open_clip import (
    WHOLE_PIXELS,
    OpenClipImageProcessorKwargs,
    OpenClipImageSettings,
    center_offset,
    center_padding,
    channels_first,
    needs_part,
    resized_size,
)


if is_torchvision_available():
    from torchvision.transforms.v2 import functional as tvF


class OpenClipImageProcessor(OpenClipImageSettings, TorchvisionBackend):
    """Image processor on torchvision, for batches and for tensors on any device.

    Its settings and inputs are those of [`OpenClipImageProcessorPil`]. PIL images are resized and cropped by Pillow,
    as conversion to RGB comes after that, and equal open_clip's bit for bit.

    Arrays and tensors are resized by torchvision, several times as fast, with other rounding. uint8 images on a CPU
    come, before normalisation, within 1/255 of open_clip's with a bilinear filter. With a bicubic one they come within
    0.5/255 on average, and single pixels within 9/255 in photographs and 20/255 in white noise: Pillow limits values
    to 0..255 between its two passes over an image, and chooses their order.

    Returns:
        `pixel_values`, float32 of shape (images, channels, height, width); a list of tensors without `return_tensors`.
    """

    def __init__(self, **kwargs: Unpack[OpenClipImageProcessorKwargs]):
        requires_backends(self, "torchvision")
        super().__init__(**kwargs)

    def process_image(self, image, do_convert_rgb=None, input_data_format=None, device=None, **kwargs) -> torch.Tensor:
        """The image as a channels-first tensor. PIL images come resized, and pass unchanged through `_preprocess`."""
        if isinstance(image, Image.Image):
            image = pil_to_tensor(resize_and_crop_pil(image, **kwargs), do_convert_rgb)
        else:
            image = image if isinstance(image, torch.Tensor) else torch.from_numpy(image)
            image = channels_first(image, input_data_format)
            image = image[:3] if do_convert_rgb else image
        image = image if device is None else image.to(device)
        # torch resizes uint8 on a CPU as it lies in memory, and decoded images, whose channels lie together, fastest.
        return image if image.dtype == torch.uint8 and image.device.type == "cpu" else image.contiguous()

    def resize(self, image: torch.Tensor, size, resample, resize_mode: str = "shortest", **kwargs) -> torch.Tensor:
        """Images (..., channels, height, width) resized for `size`, before crop or padding."""
        height, width = resized_size(image.shape[-2], image.shape[-1], (size.height, size.width), resize_mode)
        if image.shape[-2:] == (height, width):
            return image
        return super().resize(image, SizeDict(height=height, width=width), resample, **kwargs)

    def resize_part(self, image: torch.Tensor, resized: tuple[int, int], target: tuple[int, int], resample):
        """The centre, of size `target`, of what images (..., channels, height, width) are when they are `resized`."""
        # PyTorch resizes horizontally first, and lines one by one: here some at a time. The other way it is the same
        # of the image that lies on its side, but slower, and wrong of a single column.
        for length, start, kept in reversed(list(zip(resized, center_offset(*resized, target), target))):
            parts = []
            for lines in image.split(max(1, WHOLE_PIXELS // length), dim=-2):
                whole = super().resize(lines, SizeDict(height=lines.shape[-2], width=length), resample)
                parts.append(whole[..., start : start + kept].clone())
            image = torch.cat(parts, dim=-2).transpose(-1, -2)
        return image

    def center_crop(self, image: torch.Tensor, size, fill_color=0, **kwargs) -> torch.Tensor:
        """The centre of images (..., channels, height, width), cropped and padded with `fill_color` to `size`."""
        target = (size.height, size.width)
        height, width = image.shape[-2:]
        padding = center_padding(height, width, target)
        if any(padding):
            image = tvF.pad(image, list(padding), fill=fill_color)
            height, width = image.shape[-2:]
        top, left = center_offset(height, width, target)
        return image[..., top : top + target[0], left : left + target[1]]

    def _preprocess(
        self,
        images: list[torch.Tensor],
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
        disable_grouping: bool | None = None,
        return_tensors: str | TensorType | None = None,
        **kwargs,
    ) -> BatchFeature:
        grouped_images, index = group_images_by_shape(images, disable_grouping=disable_grouping)
        for shape, stacked_images in grouped_images.items():
            (height, width), target = stacked_images.shape[-2:], (size.height, size.width)
            resized = resized_size(height, width, target, resize_mode) if do_resize else (height, width)
            if needs_part((height, width), resized, do_center_crop):
                stacked_images = self.resize_part(stacked_images, resized, target, resample)
            elif do_resize:
                stacked_images = self.resize(stacked_images, size, resample, resize_mode)
            if do_center_crop:
                stacked_images = self.center_crop(stacked_images, size, fill_color if resize_mode == "longest" else 0)
            if do_convert_rgb and stacked_images.shape[-3] == 1:
                stacked_images = stacked_images.expand(*stacked_images.shape[:-3], 3, *stacked_images.shape[-2:])
            grouped_images[shape] = stacked_images
        images = reorder_images(grouped_images, index)
        pixel_values = to_pixel_values(images, do_rescale, rescale_factor, do_normalize, image_mean, image_std)
        pixel_values = list(pixel_values) if return_tensors is None else pixel_values
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)


__all__ = ["OpenClipImageProcessor"]
