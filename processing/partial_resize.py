"""A part of what Pillow's `Image.resize` would give, pixel for pixel, without the rest.

Of an image a pixel wide and many thousands high, whose shorter edge is resized to a model's, nearly everything is
cropped away again.
"""

import numpy as np
from PIL import Image


# Weights of 8-bit images are whole numbers of this many bits (Pillow: `PRECISION_BITS` in `Resample.c`).
_PRECISION_BITS = 22
_NEAREST_MODES = ("1", "P")
# Pillow resizes these with alpha multiplied into the colours.
_PREMULTIPLIED = {"RGBA": "RGBa", "LA": "La"}


def resize_part(
    image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int], resample: int
) -> Image.Image:
    """`image.resize(size, resample).crop(box)`, of an image that does not become smaller.

    Images that become smaller come close to it: there Pillow may begin with the other axis.

    Args:
        image: of any mode but LAB.
        size: width and height of the whole.
        box: left, top, right and bottom of the part, inside of it.
        resample: `Image.Resampling.BICUBIC` or `BILINEAR`; of images of mode 1 and P the nearest pixels are taken.
    """
    if image.mode in _PREMULTIPLIED:
        return resize_part(image.convert(_PREMULTIPLIED[image.mode]), size, box, resample).convert(image.mode)
    is_nearest = image.mode in _NEAREST_MODES
    left, columns, column_weights = _plan(image.width, size[0], box[0], box[2], resample, is_nearest)
    top, rows, row_weights = _plan(image.height, size[1], box[1], box[3], resample, is_nearest)
    right, bottom = left + int(columns.max()) + 1, top + int(rows.max()) + 1
    pixels = np.asarray(image.crop((left, top, right, bottom)))
    if is_nearest:
        pixels = pixels[rows[:, 0]][:, columns[:, 0]]
    else:
        pixels = _weighted_sum(_weighted_sum(pixels, 1, columns, column_weights), 0, rows, row_weights)
    if image.mode == "1":
        return Image.fromarray(pixels)
    part = Image.frombytes(image.mode, (pixels.shape[1], pixels.shape[0]), pixels.tobytes())
    if palette := image.getpalette():
        part.putpalette(palette)
    return part


def _plan(
    size: int, length: int, start: int, stop: int, resample: int, is_nearest: bool
) -> tuple[int, np.ndarray, np.ndarray]:
    """The first pixel, of `size`, that `start` to `stop` of `length` show, places counted from it, and their weights.

    Places and weights have the shape (stop - start, taps).
    """
    if is_nearest:
        step = size / length
        positions = np.full(stop, step)
        positions[0] = step * 0.5
        places = np.cumsum(positions)[start:, None].astype(np.int64)  # added up, as Pillow does
        weights = np.ones(places.shape)
    else:
        first, weights = _weights(size, length, start, stop, resample)
        places = np.minimum(first[:, None] + np.arange(weights.shape[1]), size - 1)  # beyond the last, weights are 0
    low = int(places.min())
    return low, places - low, weights


def _weighted_sum(pixels: np.ndarray, axis: int, places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`pixels` at `places` along `axis`, weighted and added up in Pillow's order and precision."""
    is_8_bit = pixels.dtype == np.uint8
    if is_8_bit:
        weights = np.trunc(weights * (1 << _PRECISION_BITS) + np.where(weights < 0, -0.5, 0.5)).astype(np.int64)
    shape = [1] * pixels.ndim
    shape[axis] = len(places)
    total = np.full((), 1 << (_PRECISION_BITS - 1) if is_8_bit else 0.0, dtype=weights.dtype)
    for place, weight in zip(places.T, weights.T):
        total = total + pixels.take(place, axis).astype(weights.dtype) * weight.reshape(shape)
    if is_8_bit:
        return (total >> _PRECISION_BITS).clip(0, 255).astype(np.uint8)
    if pixels.dtype.kind == "f":
        return total.astype(pixels.dtype)
    limits = np.iinfo(pixels.dtype)
    rounded = np.copysign(np.floor(np.abs(total) + 0.5), total)
    return rounded.clip(limits.min, limits.max).astype(pixels.dtype)


def _weights(size: int, length: int, start: int, stop: int, resample: int) -> tuple[np.ndarray, np.ndarray]:
    """First pixel and weights (stop - start, taps) of each place (Pillow: `precompute_coeffs`, in its arithmetic)."""
    kernel, reach = (_bicubic, 2.0) if resample == Image.Resampling.BICUBIC else (_bilinear, 1.0)
    scale = size / length
    stretch = max(scale, 1.0)
    centers = (np.arange(start, stop) + 0.5) * scale
    first = np.maximum((centers - reach * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((centers + reach * stretch + 0.5).astype(np.int64), size)
    places = first[:, None] + np.arange((last - first).max())
    weights = kernel((places - centers[:, None] + 0.5) * (1.0 / stretch))
    weights[places >= last[:, None]] = 0
    total = np.cumsum(weights, axis=1)[:, -1:]
    return first, weights / np.where(total == 0, 1, total)


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _bicubic(x: np.ndarray) -> np.ndarray:
    x, a = np.abs(x), -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


__all__ = ["resize_part"]
