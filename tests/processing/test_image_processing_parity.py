"""Pixels against open_clip's evaluation transform."""

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from transformers.image_utils import PILImageResampling

from open_clip_transformers.processing.image_processing_open_clip import OpenClipImageProcessor
from open_clip_transformers.processing.image_processing_pil_open_clip import OpenClipImageProcessorPil


pytestmark = pytest.mark.floor

MODES = ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "I;16", "I", "F"]
# (width, height): larger and smaller than the targets, both ways round, extreme, one pixel wide, as large as a target.
SOURCE_SIZES = [(37, 53), (20, 31), (31, 20), (97, 64), (64, 98), (1, 40), (40, 1), (211, 7), (7, 211), (33, 33)]
TARGETS = {"square": (33, 33), "tall": (41, 29), "wide": (29, 42)}
FILTERS = {"bicubic": PILImageResampling.BICUBIC, "bilinear": PILImageResampling.BILINEAR}

every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
every_filter = pytest.mark.parametrize("interpolation", FILTERS)
every_resize_mode = pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])


def random_image(mode: str, width: int, height: int) -> Image.Image:
    rng = np.random.default_rng([width, height])
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 2**16, (height, width), dtype=np.uint16))
    if mode == "I":
        return Image.fromarray(rng.integers(0, 300, (height, width), dtype=np.int32))
    if mode == "F":
        return Image.fromarray(rng.uniform(-20, 280, (height, width)).astype(np.float32))
    image = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8))
    if mode == "CMYK":
        return Image.frombytes("CMYK", image.size, image.tobytes())
    if mode == "P":
        return image.convert("RGB").quantize(37)
    return image.convert(mode)


def settings(target, resize_mode, interpolation, **kwargs) -> dict:
    # open_clip's `shortest` resizes to targets that are not square with its default filter, whatever it is told.
    if resize_mode == "shortest" and target[0] != target[1]:
        interpolation = "bicubic"
    size = {"height": target[0], "width": target[1]}
    return {"size": size, "resize_mode": resize_mode, "resample": FILTERS[interpolation], **kwargs}


def to_pixels(values: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation: values in units of 1/255."""
    mean = torch.tensor(OpenClipImageProcessor.image_mean).view(3, 1, 1)
    std = torch.tensor(OpenClipImageProcessor.image_std).view(3, 1, 1)
    return (values * std + mean) * 255


@every_filter
@every_resize_mode
@every_target
def test_image_processors_equal_open_clip_for_pil_images(target, resize_mode, interpolation):
    fill_color = 97 if resize_mode == "longest" else 0
    kwargs = settings(target, resize_mode, interpolation, fill_color=fill_color)
    pil, torchvision = OpenClipImageProcessorPil(**kwargs), OpenClipImageProcessor(**kwargs)
    reference = image_transform(
        target, is_train=False, resize_mode=resize_mode, interpolation=interpolation, fill_color=fill_color
    )
    images = [random_image(mode, *size) for mode in MODES for size in SOURCE_SIZES]
    expected = torch.stack([reference(image) for image in images])
    for processor in (pil, torchvision):
        pixel_values = processor(images, return_tensors="pt").pixel_values
        assert pixel_values.dtype == torch.float32
        different = [
            f"{image.mode} {image.size}"
            for image, values, wanted in zip(images, pixel_values, expected)
            if not torch.equal(values, wanted)
        ]
        assert different == [], processor.backend


def test_image_processor_published_settings_equal_open_clip():
    # The preprocess_cfg of a SigLIP model: squash, bicubic, mean and std 0.5.
    half = (0.5, 0.5, 0.5)
    reference = image_transform(64, is_train=False, mean=half, std=half, resize_mode="squash", interpolation="bicubic")
    processor = OpenClipImageProcessorPil(size=64, image_mean=half, image_std=half, resize_mode="squash")
    image = random_image("RGB", 91, 60)
    assert torch.equal(processor(image, return_tensors="pt").pixel_values[0], reference(image))


def test_image_processor_rounds_the_crop_as_open_clip():
    reference = image_transform(33, is_train=False)
    processor = OpenClipImageProcessorPil(size=33)
    for width in range(34, 60):  # odd and even rests, whose half rounds up and down
        image = random_image("RGB", width, 33)
        assert torch.equal(processor(image, return_tensors="pt").pixel_values[0], reference(image)), width


@pytest.mark.parametrize("size", [(1, 300), (300, 1)], ids=["narrow", "flat"])
def test_image_processor_keeps_one_pixel_of_an_edge(size):
    # open_clip cannot resize these; a narrow strip in the middle of the padding is what remains.
    image = Image.new("RGB", size, (255, 255, 255))
    with pytest.raises(ValueError):
        image_transform(33, is_train=False, resize_mode="longest")(image)
    for processor_class in (OpenClipImageProcessorPil, OpenClipImageProcessor):
        processor = processor_class(size=33, resize_mode="longest", do_normalize=False)
        pixels = processor(image, return_tensors="pt").pixel_values[0]
        assert pixels.shape == (3, 33, 33)
        assert pixels.sum() == pytest.approx(3 * 33)


@every_filter
@every_resize_mode
@every_target
def test_torchvision_tensors_are_within_the_stated_bound(target, resize_mode, interpolation):
    processor = OpenClipImageProcessor(**settings(target, resize_mode, interpolation))
    reference = image_transform(target, is_train=False, resize_mode=resize_mode, interpolation=interpolation)
    bilinear = processor.resample == PILImageResampling.BILINEAR
    for width, height in [(37, 53), (97, 64), (20, 31), (120, 33)]:
        noise = random_image("RGB", width, height)
        smooth = noise.resize((5, 4)).resize((width, height), PILImageResampling.BICUBIC)
        for image, worst in ((noise, 20), (smooth, 9)):
            tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            pixels = to_pixels(processor(tensor, return_tensors="pt").pixel_values[0])
            difference = pixels - to_pixels(reference(image))
            assert difference.abs().max() <= (1 if bilinear else worst) + 1e-3
            assert difference.abs().mean() <= 0.5


@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_torchvision_float_tensors_equal_open_clip(resize_mode):
    # open_clip's transform takes tensors too, those in [0, 1].
    image = torch.rand(3, 47, 71)
    reference = image_transform((33, 33), is_train=False, resize_mode=resize_mode)
    processor = OpenClipImageProcessor(size=33, resize_mode=resize_mode, do_rescale=False)
    pixel_values = processor(image, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(pixel_values, reference(image), rtol=0, atol=2e-6)
