"""The photograph and the labels of a cell, the same for every contestant."""

import numpy as np
from PIL import Image

from contestants.processing_inputs import common_words, photograph


SIZE = (640, 480)
# The default of the pipeline.
TEMPLATE = "This is a photo of {}."


def picture() -> Image.Image:
    """An RGB image of `SIZE`, width by height in pixels."""
    return photograph(*SIZE, seed=0)


def candidate_labels(settings: dict) -> list[str]:
    """Make the labels of a cell, of one to three common words, each of them once."""
    generator = np.random.default_rng(0)
    words = common_words()
    labels: dict[str, None] = {}
    while len(labels) < settings["labels"]:
        labels[" ".join(generator.choice(words, generator.integers(1, 4)))] = None
    return list(labels)
