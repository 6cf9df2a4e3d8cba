"""Draw where a model looks: copies of a picture, each under a word and with a heat map over it."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from transformers.image_processing_base import ImageProcessingMixin

from ..processing.image_settings_open_clip import center_offset, center_padding, resized_size


PANEL = 256  # pixels of a panel's longer edge
GAP = 12  # pixels between panels, and around them
FONT_SIZE = 18
COLUMNS = 6
STRENGTH = 0.8  # how far the hottest place is coloured over
SHADE = 0.35  # brightness of what the model does not see
# From dark violet over red to yellow, equally far apart.
COLOURS = ((20, 11, 53), (101, 21, 110), (187, 55, 84), (243, 120, 25), (252, 255, 164))


def seen_box(
    image_processor: ImageProcessingMixin, size: tuple[int, int]
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """Find the part of a picture that the model's pixels show.

    Args:
        image_processor: an [`OpenClipImageProcessor`] or [`OpenClipImageProcessorPil`].
        size: width and height of the picture.

    Returns:
        Left, top, right and bottom in pixels of the picture, beyond its edges where it is padded; and the height and
        width of what the processor makes of it.
    """
    width, height = size
    target = image_processor.size["height"], image_processor.size["width"]
    shape = (height, width)
    if image_processor.do_resize:
        shape = resized_size(height, width, target, image_processor.resize_mode)
    scale = height / shape[0], width / shape[1]
    top = left = 0
    if image_processor.do_center_crop:
        pad_left, pad_top, pad_right, pad_bottom = center_padding(*shape, target)
        padded = shape[0] + pad_top + pad_bottom, shape[1] + pad_left + pad_right
        top, left = center_offset(*padded, target)
        top, left, shape = top - pad_top, left - pad_left, target
    box = left * scale[1], top * scale[0], (left + shape[1]) * scale[1], (top + shape[0]) * scale[0]
    return box, shape


def spread(
    heat: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Interpolate a map of the patches to a map of a picture's pixels.

    Args:
        heat: (rows, columns) of the patches.
        box: left, top, right and bottom of the patches in pixels of the picture, beyond its edges or within them.
        size: width and height of the picture.

    Returns:
        (height, width) of interpolated heat, zero outside the box, and of whether the pixel is in the box.
    """
    left, top, right, bottom = map(round, box)
    scaled = Image.fromarray(heat.astype(np.float32)).resize(
        (max(1, right - left), max(1, bottom - top)), Image.Resampling.BILINEAR
    )
    # Cropping beyond the edges fills with zeros.
    window = (-left, -top, size[0] - left, size[1] - top)
    inside = Image.new("L", scaled.size, 255).crop(window)
    return np.asarray(scaled.crop(window)), np.asarray(inside) > 0


def draw_heat(picture: Image.Image, heat: np.ndarray, box: tuple[float, float, float, float]) -> Image.Image:
    """Colour a picture where it is hot, and darken it where the model does not see it.

    Args:
        picture: an RGB image.
        heat: (rows, columns) of the patches, from 0 to 1.
        box: where the patches are, as in [`spread`].
    """
    values, inside = (array[..., None] for array in spread(heat, box, picture.size))
    steps = np.linspace(0, 1, len(COLOURS))
    colours = np.concatenate([np.interp(values, steps, channel) for channel in zip(*COLOURS)], axis=-1)
    opacity = STRENGTH * values
    pixels = np.asarray(picture, dtype=np.float32)
    pixels = np.where(inside, pixels * (1 - opacity) + colours * opacity, pixels * SHADE)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def draw_maps(
    picture: Image.Image,
    maps: list[tuple[str, np.ndarray]],
    box: tuple[float, float, float, float],
    title: str = "",
    font_file: str | None = None,
) -> Image.Image:
    """Draw a sheet of panels: the picture under `title`, and once more for each map, under its label.

    Args:
        picture: an image of any mode and size.
        maps: labels, and heat (rows, columns) of the patches from 0 to 1.
        box: where the patches are, in pixels of the picture, as in [`spread`].
        title: label of the picture without a map.
        font_file: a TrueType or OpenType font; by default Pillow's own, which has Latin letters.

    Raises:
        OSError: the font cannot be read.
    """
    scale = PANEL / max(picture.size)
    width, height = (max(1, round(edge * scale)) for edge in picture.size)
    panel = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top, right, bottom = (edge * scale for edge in box)
    heated = [(label, draw_heat(panel, heat, (left, top, right, bottom))) for label, heat in maps]
    panels = [(title, panel), *heated]
    font = ImageFont.truetype(font_file, FONT_SIZE) if font_file else ImageFont.load_default(FONT_SIZE)
    columns = min(COLUMNS, len(panels), max(3, math.ceil(math.sqrt(len(panels)))))
    label_height = round(1.6 * FONT_SIZE)
    step = max(width, PANEL // 2) + GAP, label_height + height + GAP
    rows = math.ceil(len(panels) / columns)
    sheet = Image.new("RGB", (GAP + columns * step[0], GAP + rows * step[1]), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (label, image) in enumerate(panels):
        left, top = GAP + index % columns * step[0], GAP + index // columns * step[1]
        pen.text((left, top), _shortened(label, font, step[0] - GAP), fill="black", font=font)
        sheet.paste(image, (left, top + label_height))
    return sheet


def _shortened(label: str, font, width: int) -> str:
    """Put `label` on one line, cut to `width` pixels."""
    label = " ".join(label.split())
    if font.getlength(label) <= width:
        return label
    while label and font.getlength(f"{label}...") > width:
        label = label[:-1]
    return f"{label}..."
