"""Damaged files of images and tokenizers, and settings that make no pixels: the errors that docstrings promise."""

import numpy as np
import pytest
from PIL import Image

from open_clip_transformers.processing import image_settings_open_clip
from open_clip_transformers.processing.image_processing_pil_open_clip import OpenClipImageProcessorPil
from open_clip_transformers.processing.image_settings_open_clip import open_image
from open_clip_transformers.processing.processing_coca import CoCaProcessor
from open_clip_transformers.processing.processing_open_clip import OpenClipProcessor
from open_clip_transformers.processing.tokenization_open_clip import OpenClipTokenizer


def test_image_of_too_many_pixels_is_an_oserror(tmp_path, monkeypatch):
    Image.new("L", (30, 40)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OSError, match=r"bomb\.png.*exceeds limit of 200 pixels"):
        open_image(tmp_path / "bomb.png")


def test_download_that_fails_is_an_oserror(monkeypatch):
    class ReadTimeout(Exception):
        """Of a library whose errors are not Python's."""

    def load_image(*args, **kwargs):
        raise ReadTimeout("timed out")

    monkeypatch.setattr(image_settings_open_clip, "load_image", load_image)
    with pytest.raises(OSError, match=r"https://a\.b/c\.png.*timed out"):
        open_image("https://a.b/c.png")


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[" * 100_000, b'{"model": {"type": "BPE"}}', b"\xff\x00", b'{"version": 7}'],
    ids=["empty", "no-model", "nested", "no-vocabulary", "bytes", "other-version"],
)
def test_damaged_tokenizer_is_a_value_error(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not the file of a tokenizer"):
        OpenClipTokenizer(tokenizer_file=tmp_path / "tokenizer.json")


def test_missing_tokenizer_is_an_oserror(tmp_path):
    with pytest.raises(OSError, match=r"tokenizer\.json"):
        OpenClipTokenizer(tokenizer_file=tmp_path / "tokenizer.json")


@pytest.mark.parametrize("size", [(0, 5), (5, 0)], ids=["no-width", "no-height"])
def test_image_without_pixels_is_a_value_error(size):
    for resize_mode in ("shortest", "longest", "squash"):
        with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels has none"):
            OpenClipImageProcessorPil(resize_mode=resize_mode)(Image.new("RGB", size))


SETTINGS = {
    "image_std": [0, [1, 1, 0], [1, 1, -1], [1, 1, float("nan")], [1, 1, float("inf")], [1, 1], "111", {"a": 1}],
    "image_mean": [[0, 0], [0, 0, float("nan")], ["0"] * 3],
    "rescale_factor": [0, float("nan"), float("inf"), "1"],
    "fill_color": [-1, 256, "black", [1, 2]],
    "size": [{"height": 0, "width": 7}, {"height": 10**9, "width": 7}, {"height": "7", "width": 7}],
    "resample": [{}, "bicubic", Image.Resampling.BOX],
    "resize_mode": [{}, "crop", 3],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_make_no_pixels_are_refused(name):
    for value in SETTINGS[name]:
        with pytest.raises(ValueError, match=name):
            OpenClipImageProcessorPil(**{name: value})


@pytest.mark.parametrize("length", [0, -1, [7], "7", True], ids=repr)
def test_tokenizer_with_no_length_is_refused(length):
    with pytest.raises(ValueError, match="model_max_length must be"):
        OpenClipTokenizer(model_max_length=length)


ARGUMENTS = {
    "size": ("x", ValueError),
    "do_resize": ("yes", ValueError),
    "image_std": ([1, 2], ValueError),
    "input_data_format": ("zz", ValueError),
    "max_length": (0, ValueError),
    "pad_to_multiple_of": (-1, ValueError),
    "padding": ("all", ValueError),
    "padding_side": ("middle", ValueError),
    "text_kwargs": (3, TypeError),
    "images_kwargs": ([], TypeError),
    "videos": ([1], ValueError),
    "audio": ([1], ValueError),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_of_a_wrong_kind_are_refused(name):
    value, kind = ARGUMENTS[name]
    processor = OpenClipProcessor(OpenClipImageProcessorPil(size=9), OpenClipTokenizer(model_max_length=7))
    with pytest.raises(kind, match=f"{name}|all is not a valid PaddingStrategy"):
        processor(images=np.zeros((9, 12, 3), np.uint8), text="a cat", **{name: value})


@pytest.mark.parametrize("name", ["return_length", "return_offsets_mapping", "text_pair", "stride"])
def test_arguments_that_prompts_cannot_use_are_refused(name):
    processor = CoCaProcessor(OpenClipImageProcessorPil(size=9), OpenClipTokenizer(model_max_length=7))
    image = Image.new("RGB", (9, 9))
    with pytest.raises(ValueError, match=f"got {name} for prompts"):
        processor(images=image, text="a cat", **{name: True})
    with pytest.raises(ValueError, match="max_length must be a whole number"):
        processor(images=image, text="a cat", max_length="7")
