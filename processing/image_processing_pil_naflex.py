"""NaFlex image processor on Pillow, bit-equal to open_clip's (`naflex_eval_transform_v2` in `transform.py`)."""

from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.processing_utils import Unpack

from .image_processing_pil_open_clip import PillowImages
from .image_settings_naflex import NaFlexImageProcessorKwargs, NaFlexImageSettings


class NaFlexImageProcessorPil(PillowImages, NaFlexImageSettings, PilBackend):
    """Image processor on Pillow: its patches equal those of open_clip's evaluation transform bit for bit.

    Its settings are those of [`NaFlexImageSettings`], its inputs those of [`OpenClipImageProcessorPil`].

    Returns:
        `pixel_values`, float32 of shape (images, max_num_patches, height * width * channels of a patch), the patches
        of each image in rows and zeros behind them; `pixel_attention_mask`, int32 of shape (images, max_num_patches),
        0 on padding; `spatial_shapes`, int64 of shape (images, 2), rows and columns of patches. Lists of arrays
        without `return_tensors`.
    """

    def __init__(self, **kwargs: Unpack[NaFlexImageProcessorKwargs]):
        super().__init__(**kwargs)

    def resize_image(
        self, image: Image.Image, resample: int, do_convert_rgb: bool | None = False, **kwargs
    ) -> Image.Image:
        image = image.convert("RGB") if do_convert_rgb and image.mode != "RGB" else image
        height, width = self.target_size(image.height, image.width, **kwargs)
        return image if (width, height) == image.size else image.resize((width, height), resample)


__all__ = ["NaFlexImageProcessorPil"]
