"""Draw where a model looks: copies of a picture, each under a word, with a heat map over it and its scale below."""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from transformers.image_processing_base import ImageProcessingMixin

from ..processing.image_settings_open_clip import center_offset, center_padding, resized_size


PANEL = 256  # pixels of a panel's longer edge
GAP = 12  # pixels between panels, and around them
FONT_SIZE, LINE = 18, 24  # pixels, of titles and labels
SMALL_SIZE, BAR = 13, 10  # pixels, of a scale of colours
SCALE = 34  # pixels below a panel
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


def between_0_and_1(heat: np.ndarray, least: float) -> np.ndarray:
    """Scale `heat` to 0 for `least` and 1 for its largest value."""
    return (heat - least) / max(heat.max() - least, 1e-12)


class HeatMap(NamedTuple):
    """A heat map of a panel: its label, the heat (rows, columns) of the patches, and the value that gets no colour."""

    label: str
    heat: np.ndarray
    least: float


def draw_maps(
    picture: Image.Image,
    maps: list[HeatMap],
    box: tuple[float, float, float, float],
    title: str = "",
    font_file: str | None = None,
    unit: str = "",
) -> Image.Image:
    """Draw a sheet under a title: the picture, and once more for each map, with its label and its scale of colours.

    Args:
        picture: an image of any mode and size.
        maps: heat maps, one a panel.
        box: where the patches are, in pixels of the picture, as in [`spread`].
        title: text above all panels, in as many lines as it takes.
        font_file: a TrueType or OpenType font; by default Pillow's own, which has Latin letters.
        unit: of heat, written between the ends of the scales.

    Raises:
        OSError: the font cannot be read.
    """
    scale = PANEL / max(picture.size)
    width, height = (max(1, round(edge * scale)) for edge in picture.size)
    panel = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top, right, bottom = (edge * scale for edge in box)
    font, small = (
        ImageFont.truetype(font_file, size) if font_file else ImageFont.load_default(size)
        for size in (FONT_SIZE, SMALL_SIZE)
    )
    columns = min(COLUMNS, len(maps) + 1, max(3, math.ceil(math.sqrt(len(maps) + 1))))
    column = max(width, PANEL * 3 // 4)
    labels = [wrapped(entry.label, font, column) for entry in maps]
    header = wrapped(title, font, columns * (column + GAP) - GAP)
    header_height = LINE * len(header) + (GAP if header else 0)
    label_height = LINE * max(map(len, labels), default=0)
    step = column + GAP, label_height + height + SCALE + GAP
    rows = math.ceil((len(maps) + 1) / columns)
    sheet = Image.new("RGB", (GAP + columns * step[0], GAP + header_height + rows * step[1]), "white")
    pen = ImageDraw.Draw(sheet)
    _write_lines(pen, (GAP, GAP), header, font)
    sheet.paste(panel, (GAP, GAP + header_height + label_height))
    for index, (entry, lines) in enumerate(zip(maps, labels), start=1):
        x, y = GAP + index % columns * step[0], GAP + header_height + index // columns * step[1]
        _write_lines(pen, (x, y), lines, font)
        y += label_height
        sheet.paste(draw_heat(panel, between_0_and_1(entry.heat, entry.least), (left, top, right, bottom)), (x, y))
        _draw_scale(sheet, (x, y + height), column, (entry.least, entry.heat.max()), unit, small)
    return sheet


def _draw_scale(sheet: Image.Image, place: tuple[int, int], width: int, ends: tuple[float, float], unit: str, font):
    """Draw the colours of heat, as they are over white, with the values at their ends below."""
    x, y = place[0], place[1] + BAR // 2
    ramp = draw_heat(Image.new("RGB", (width, BAR), "white"), np.linspace(0, 1, width)[None], (0, 0, width, BAR))
    sheet.paste(ramp, (x, y))
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((x, y, x + width - 1, y + BAR - 1), outline="gray")
    for text, at, anchor in ((f"{ends[0]:.3g}", 0.0, "la"), (unit, 0.5, "ma"), (f"{ends[1]:.3g}", 1.0, "ra")):
        pen.text((x + at * width, y + BAR + 3), text, fill="black", font=font, anchor=anchor)


def _write_lines(pen: ImageDraw.ImageDraw, place: tuple[int, int], lines: list[str], font):
    for index, line in enumerate(lines):
        pen.text((place[0], place[1] + index * LINE), line, fill="black", font=font)


def wrapped(text: str, font, width: int) -> list[str]:
    """Break `text` into lines of at most `width` pixels: between words, and within those that are wider."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
