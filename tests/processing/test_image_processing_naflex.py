"""NaFlex image processors: patches equal to timm's bit for bit, both back ends, what they refuse."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.naflex_transforms import get_image_size_for_seq
from transformers import AutoImageProcessor

from open_clip_transformers.processing.image_processing_naflex import NaFlexImageProcessor
from open_clip_transformers.processing.image_processing_pil_naflex import NaFlexImageProcessorPil
from open_clip_transformers.processing.image_settings_naflex import size_of_patches


BOTH = pytest.mark.parametrize("processor_class", [NaFlexImageProcessor, NaFlexImageProcessorPil], ids=["tv", "pil"])
SIZES = [(100, 50), (33, 300), (64, 48), (5, 3), (1, 40)]
SETTINGS = {"patch_size": 8, "max_num_patches": 30, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}


def images(mode: str = "RGB") -> list[Image.Image]:
    generator = np.random.default_rng(0)
    made = [generator.integers(0, 256, (height, width, 4), dtype=np.uint8) for width, height in SIZES]
    return [Image.fromarray(pixels).convert(mode) for pixels in made]


def test_sizes_are_those_of_timm():
    generator = np.random.default_rng(1)
    for _ in range(500):
        height, width = (int(generator.choice([1, 3, generator.integers(1, 3000)])) for _ in range(2))
        patch_size, length = [(16, 16), (14, 14), (8, 24)][generator.integers(3)], int(generator.integers(1, 1100))
        try:
            expected = get_image_size_for_seq((height, width), patch_size, length)[1]
        except ValueError:
            with pytest.raises(ValueError, match="cannot be resized"):
                size_of_patches(height, width, patch_size, length)
            continue
        assert size_of_patches(height, width, patch_size, length) == expected


@pytest.mark.floor
@BOTH
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK"])
def test_patches_equal_those_of_timm_bit_for_bit(processor_class, interpolation, mode):
    transform = create_transform(
        naflex=True,
        patchify=True,
        max_seq_len=30,
        patch_size=8,
        mean=SETTINGS["image_mean"],
        std=SETTINGS["image_std"],
        interpolation=interpolation,
    )
    resample = {"bicubic": 3, "bilinear": 2}[interpolation]
    inputs = processor_class(**SETTINGS, resample=resample)(images(mode), return_tensors="pt")
    assert inputs.pixel_values.shape == (5, 30, 192)
    for index, image in enumerate(images(mode)):
        expected = transform(image.convert("RGB"))
        length = len(expected["patches"])
        assert torch.equal(inputs.pixel_values[index, :length], expected["patches"])
        assert not inputs.pixel_values[index, length:].any()
        assert inputs.pixel_attention_mask[index].tolist() == [1] * length + [0] * (30 - length)
        assert inputs.spatial_shapes[index].tolist() == (expected["patch_coord"].amax(0) + 1).tolist()


@BOTH
def test_arrays_and_tensors_come_near(processor_class):
    processor = processor_class(**SETTINGS)
    pictures = images()[:3]
    expected = processor(pictures, return_tensors="pt").pixel_values
    for inputs in ([np.array(image) for image in pictures], [torch.from_numpy(np.array(image)) for image in pictures]):
        assert (processor(inputs, return_tensors="pt").pixel_values - expected).abs().max() < 0.2


@BOTH
def test_settings_are_saved(processor_class, tmp_path):
    processor = processor_class(**SETTINGS)
    processor.save_pretrained(tmp_path)
    backend = "pil" if processor_class is NaFlexImageProcessorPil else "torchvision"
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    assert type(loaded) is processor_class
    assert loaded.to_dict() == processor.to_dict()


REFUSALS = {
    "size": ({"size": {"height": 8, "width": 8}}, "would have no effect"),
    "crop": ({"do_center_crop": True}, "would have no effect"),
    "budget": ({"max_num_patches": 0}, "got max_num_patches=0"),
    "patch": ({"patch_size": [8]}, r"got patch_size=\[8\]"),
    "filter": ({"resample": 0}, "open_clip resizes with"),
    "not-resized": ({"do_resize": False}, "has no whole patches of 8 x 8"),
}


@BOTH
@pytest.mark.parametrize(("settings", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_settings_that_mean_nothing_are_refused(processor_class, settings, message):
    with pytest.raises(ValueError, match=message):
        processor_class(**SETTINGS)(images()[0], **settings)


@BOTH
def test_switches_of_a_file_are_true_or_false(processor_class):
    with pytest.raises(ValueError, match=f"{processor_class.__name__}: do_rescale must be true or false, got 'false'"):
        processor_class(do_rescale="false")


@BOTH
def test_images_with_whole_patches_need_not_be_resized(processor_class):
    inputs = processor_class(**SETTINGS, do_resize=False)(Image.new("RGB", (32, 16)), return_tensors="pt")
    assert inputs.spatial_shapes.tolist() == [[2, 4]]
