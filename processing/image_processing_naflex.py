"""NaFlex image processor on torchvision, on any device (open_clip: `naflex_eval_transform_v2` in `transform.py`)."""

import torch
from PIL import Image
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import SizeDict
from transformers.processing_utils import Unpack
from transformers.utils import requires_backends

from .image_processing_pil_naflex import NaFlexImageProcessorPil
from .image_settings_naflex import NaFlexImageProcessorKwargs, NaFlexImageSettings
from .image_settings_open_clip import channels_first


class NaFlexImageProcessor(NaFlexImageSettings, TorchvisionBackend):
    """Image processor on torchvision, for tensors on any device.

    Its settings are those of [`NaFlexImageSettings`], its inputs and outputs those of [`NaFlexImageProcessorPil`]. PIL
    images are resized by Pillow, and equal open_clip's bit for bit; arrays and tensors by torchvision, with other
    rounding, as [`OpenClipImageProcessor`] does.
    """

    def __init__(self, **kwargs: Unpack[NaFlexImageProcessorKwargs]):
        requires_backends(self, "torchvision")
        super().__init__(**kwargs)

    def process_image(self, image, do_convert_rgb=None, input_data_format=None, device=None, **kwargs) -> torch.Tensor:
        """The image as a tensor (channels, height, width), resized."""
        if isinstance(image, Image.Image):
            pixels = NaFlexImageProcessorPil.process_image(self, image, do_convert_rgb, **kwargs)
            return pixels if device is None else pixels.to(device)
        image = image if isinstance(image, torch.Tensor) else torch.from_numpy(image)
        image = channels_first(image, input_data_format)
        image = image[:3] if do_convert_rgb else image
        image = image if device is None else image.to(device)
        height, width = self.target_size(*image.shape[-2:], **kwargs)
        if (height, width) != tuple(image.shape[-2:]):
            image = self.resize(image, SizeDict(height=height, width=width), kwargs["resample"])
        return image.expand(3, -1, -1) if do_convert_rgb and len(image) == 1 else image

    resize_image = NaFlexImageProcessorPil.resize_image


__all__ = ["NaFlexImageProcessor"]
