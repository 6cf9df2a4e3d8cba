"""Images on their way to the batch that a model takes: prepared side by side, then rescaled and normalised."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from transformers.utils import logging


logger = logging.get_logger(__name__)


def map_images(function: Callable, images: Sequence) -> list:
    """`function` of each image, in as many threads as torch uses; for work of Pillow's, which lets others run."""
    # Threads must not read one file at the same time, as an image that comes twice would let them.
    files = {id(getattr(image, "fp", None) or image) for image in images}
    threads = min(torch.get_num_threads(), len(images)) if len(files) == len(images) else 1
    if threads == 1:
        return [function(image) for image in images]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, images))


def _is_scaled(image: torch.Tensor) -> bool:
    if not (image.is_floating_point() or image.dtype == torch.bool):
        return False
    # Resizing goes a little beyond the largest pixel.
    return bool(0 < image.max() <= 1.1)


def to_pixel_values(
    images: Sequence[torch.Tensor],
    do_rescale: bool,
    rescale_factor: float,
    do_normalize: bool,
    image_mean,
    image_std,
) -> torch.Tensor | list[torch.Tensor]:
    """Images (channels, height, width) as one new tensor, rescaled and normalised as open_clip's are, bit for bit.

    Args:
        images: of any dtype and memory layout; they are not changed.
        do_rescale, rescale_factor, do_normalize, image_mean, image_std: as in `OpenClipImageSettings`.

    Returns:
        Shape (images, channels, height, width), or a list of tensors where their shapes differ; float32 where it is
        rescaled or normalised, else of the images' dtype.
    """
    first = images[0]
    dtype = torch.float32 if do_rescale or do_normalize else first.dtype
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=first.device).view(-1, 1, 1) if do_normalize else None
        for values in (image_mean, image_std)
    )

    def finish(pixels: torch.Tensor):
        if do_rescale:
            # Not `*= rescale_factor`: 1 / (1 / 255) is 255 exactly, and dividing by it is what ToTensor does.
            pixels.div_(1 / rescale_factor)
        if do_normalize:
            pixels.sub_(mean).div_(std)

    if do_rescale and first.device.type == "cpu" and any(map(_is_scaled, images)):
        logger.warning_once(
            f"Got images with pixels in [0, 1], and do_rescale=True multiplies them by {rescale_factor:.4g}: pass "
            "do_rescale=False for them."
        )
    same_shape = len({image.shape for image in images}) == 1
    # Gradients do not go through the views that are filled below.
    if same_shape and (first.device.type != "cpu" or any(image.requires_grad for image in images)):
        batch = torch.stack(images).to(dtype)
        finish(batch)
        return batch
    if same_shape:
        batch = torch.empty((len(images), *first.shape), dtype=dtype)
    else:
        batch = [torch.empty(image.shape, dtype=dtype, device=image.device) for image in images]
    # Image by image: each stays in the processor's cache meanwhile.
    for pixels, image in zip(batch, images):
        finish(pixels.copy_(image))
    return batch


__all__ = ["map_images", "to_pixel_values"]
