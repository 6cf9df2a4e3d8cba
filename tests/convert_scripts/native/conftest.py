"""An image that both directions prepare."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def image():
    noise = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((64, 48), Image.Resampling.BICUBIC)
