"""The photograph and the labels that every contestant of a cell gets."""

import numpy as np
from PIL import Image

from contestants.processing_inputs import common_words, photograph


SIZE = (640, 480)
# What the pipeline makes of a label by default.
TEMPLATE = "This is a photo of {}."


def picture() -> Image.Image:
    """An RGB image of `SIZE`, width by height in pixels."""
    return photograph(*SIZE, seed=0)


def candidate_labels(settings: dict) -> list[str]:
    """As many labels as the cell has, of one to three common words, each of them once."""
    generator = np.random.default_rng(0)
    words = common_words()
    labels: dict[str, None] = {}
    while len(labels) < settings["labels"]:
        labels[" ".join(generator.choice(words, generator.integers(1, 4)))] = None
    return list(labels)
