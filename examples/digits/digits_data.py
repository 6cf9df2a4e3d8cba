"""Pictures of handwritten digits with captions in words, composed from scikit-learn's bundled scans.

A picture is a dark board with one to three real 8x8 scans (`sklearn.datasets.load_digits`, 1797 of them) on it, in one
colour and in a row or a column. Place, size, slant, brightness, shading and noise vary. The caption follows from the
picture alone, so exact match is a fair measure:

    one digit      a single red four
    a row          green digits four two nine in a row
    a column       blue digits four above two above nine

Training and held-out pictures never share a scan.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {"red": (1.0, 0.3, 0.3), "green": (0.3, 1.0, 0.3), "blue": (0.4, 0.6, 1.0), "yellow": (1.0, 1.0, 0.3)}
CANVAS = 48  # pixels, height and width
CELL = 16  # pixels; digits stand in the cells of a 3 x 3 grid, anywhere inside their cell
CELLS = CANVAS // CELL
SPLIT_SEED = 0
HELD_OUT_SCANS = 360


class Scans(NamedTuple):
    """Scans of one split.

    pixels: (scans, 8, 8) uint8, 0 paper to 255 ink.
    labels: (scans,) the digit that was written.
    """

    pixels: np.ndarray
    labels: np.ndarray


class Picture(NamedTuple):
    """A composed picture: an RGB image of CANVAS x CANVAS pixels, its caption, and the digits in reading order."""

    image: Image.Image
    caption: str
    digits: tuple[int, ...]


def load_scans(split: str) -> Scans:
    """Load the scans of `split`, "train" (1437) or "held_out" (360), divided once by a seeded permutation."""
    if split not in ("train", "held_out"):
        raise ValueError(f'split is {split!r}, expected "train" or "held_out".')
    digits = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(digits.target))
    chosen = order[:HELD_OUT_SCANS] if split == "held_out" else order[HELD_OUT_SCANS:]
    return Scans((digits.images[chosen] * (255 / 16)).round().astype(np.uint8), digits.target[chosen])


def write_caption(digits: tuple[int, ...], colour: str, is_column: bool) -> str:
    """Write the caption of a picture; `is_column` is ignored for a single digit."""
    words = [DIGIT_WORDS[digit] for digit in digits]
    if len(words) == 1:
        return f"a single {colour} {words[0]}"
    if is_column:
        return f"{colour} digits {' above '.join(words)}"
    return f"{colour} digits {' '.join(words)} in a row"


def _draw_ink(rng: np.random.Generator, pixels: np.ndarray, is_column: bool) -> np.ndarray:
    """Lay scans, (digits, 8, 8), along a row or column; returns the ink, (CANVAS, CANVAS), 0 to 1."""
    ink = np.zeros((CANVAS, CANVAS), np.float32)
    first, line = rng.integers(0, CELLS - len(pixels) + 1), rng.integers(0, CELLS)
    size = int(rng.integers(CELL - 3, CELL))
    for index, scan in enumerate(pixels):
        digit = Image.fromarray(scan).resize((size, size), Image.Resampling.BICUBIC)
        digit = digit.rotate(rng.uniform(-10, 10), Image.Resampling.BILINEAR)  # degrees
        row, column = (first + index, line) if is_column else (line, first + index)
        top, left = (row, column) * np.array(CELL) + rng.integers(0, CELL - size + 1, 2)
        ink[top : top + size, left : left + size] = np.asarray(digit, np.float32) / 255
    return ink


def _paint(rng: np.random.Generator, ink: np.ndarray, colour: str) -> Image.Image:
    """Write the ink, (CANVAS, CANVAS), onto a dark board with a tint, a shading across it, and some noise."""
    board = rng.uniform(5, 50) + rng.uniform(-8, 8, 3)
    slope = np.linspace(-1, 1, CANVAS)
    shading = rng.uniform(-8, 8) * slope[:, None] + rng.uniform(-8, 8) * slope[None, :]
    board = board + shading[..., None]
    chalk = np.array(COLOURS[colour]) * rng.uniform(160, 255)
    pixels = board + ink[..., None] * (chalk - board)
    pixels += rng.normal(0, rng.uniform(0, 6), ink.shape)[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def compose_picture(rng: np.random.Generator, scans: Scans) -> Picture:
    """Compose one picture of random scans; the same generator state gives the same picture."""
    count = int(rng.integers(1, CELLS + 1))
    chosen = rng.integers(0, len(scans.labels), count)
    colour, is_column = list(COLOURS)[rng.integers(len(COLOURS))], bool(rng.integers(2))
    digits = tuple(int(label) for label in scans.labels[chosen])
    image = _paint(rng, _draw_ink(rng, scans.pixels[chosen], is_column), colour)
    return Picture(image, write_caption(digits, colour, is_column), digits)


def held_out_pictures(count: int, seed: int = 0) -> list[Picture]:
    """Compose `count` pictures of scans that training never sees."""
    rng, scans = np.random.default_rng(seed), load_scans("held_out")
    return [compose_picture(rng, scans) for _ in range(count)]
