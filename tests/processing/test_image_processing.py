"""Inputs, outputs and settings of both image processors."""

import base64
import subprocess
import sys
import textwrap
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.utils import logging

from open_clip_transformers.processing import image_batches, image_processing_open_clip, image_settings_open_clip
from open_clip_transformers.processing.image_processing_open_clip import OpenClipImageProcessor
from open_clip_transformers.processing.image_processing_pil_open_clip import OpenClipImageProcessorPil
from open_clip_transformers.processing.image_settings_open_clip import open_image


pytestmark = pytest.mark.floor

PROCESSORS = {"torchvision": OpenClipImageProcessor, "pil": OpenClipImageProcessorPil}
every_processor = pytest.mark.parametrize("processor_class", PROCESSORS.values(), ids=PROCESSORS)
SIZE = {"height": 21, "width": 33}


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (47, 71, 3), dtype=np.uint8)


def pixel_values(processor, images, **kwargs) -> torch.Tensor:
    return processor(images, return_tensors="pt", **kwargs).pixel_values


@every_processor
def test_image_processor_takes_every_form_of_an_image(processor_class, array, tmp_path):
    processor = processor_class(size=SIZE, resize_mode="squash", resample=2)
    image = Image.fromarray(array)
    image.save(tmp_path / "image.png")
    expected = pixel_values(processor, image)
    assert expected.shape == (1, 3, 21, 33)
    assert expected.is_contiguous()
    forms = {
        "path": tmp_path / "image.png",
        "string": str(tmp_path / "image.png"),
        "list": [image],
        "nested": [[image]],
        "array": array,
        "array_batch": array[None],
        "array_first": array.transpose(2, 0, 1),
        "tensor": torch.from_numpy(array).permute(2, 0, 1),
        "tensor_batch": torch.from_numpy(array).permute(2, 0, 1)[None],
        "tensor_last": torch.from_numpy(array),
        "float": array.astype(np.float32),
        "double": array.astype(np.float64),
        "int": torch.from_numpy(array).int(),
    }
    # A bilinear resize of torchvision's or of whole numbers in single precision differs by 1/255 at most.
    for name, form in forms.items():
        difference = (pixel_values(processor, form) - expected).abs().max()
        assert difference <= (1 / 255 / 0.26 + 1e-6), name


@every_processor
def test_image_processor_batches_equal_single_images(processor_class, array):
    processor = processor_class(size=SIZE)
    images = [Image.fromarray(array), array[:30], torch.from_numpy(array[:, :40].copy()), Image.fromarray(array[:9])]
    batch = pixel_values(processor, images)
    assert batch.shape == (4, 3, 21, 33)
    assert torch.equal(batch, torch.cat([pixel_values(processor, image) for image in images]))
    assert torch.equal(batch, pixel_values(processor, [images[:1], images[1:]]))
    grouped = pixel_values(
        processor, images, **({"disable_grouping": False} if processor.backend == "torchvision" else {})
    )
    assert torch.equal(batch, grouped)


@every_processor
def test_image_processor_threads_change_nothing(processor_class, array, tmp_path, monkeypatch):
    processor = processor_class(size=SIZE)
    paths = [tmp_path / f"{index}.jpg" for index in range(4)]
    for index, path in enumerate(paths):
        Image.fromarray(np.roll(array, index)).save(path)

    def images(shared: bool) -> list:
        """Images that are read when they are used; `shared` ones from files that others come from, too."""
        first, file = Image.open(paths[0]), paths[1].open("rb")
        others = [first, Image.open(file)] if shared else []
        return [first, Image.open(file), array, *others, paths[2], str(paths[3])]

    for shared in (False, True):
        with monkeypatch.context() as context:
            expected = pixel_values(processor, images(shared))
            context.setattr(torch, "get_num_threads", lambda: 3)
            for _ in range(5):
                assert torch.equal(pixel_values(processor, images(shared)), expected)
    (tmp_path / "torn.jpg").write_bytes(paths[0].read_bytes()[:500])
    with pytest.raises(OSError):
        processor([*paths, tmp_path / "torn.jpg"])


@every_processor
def test_image_processor_leaves_its_inputs_alone(processor_class, array):
    processor = processor_class(do_resize=False, do_center_crop=False)
    for image in (torch.from_numpy(array.transpose(2, 0, 1).astype(np.float32)), torch.from_numpy(array.copy())):
        before = image.clone()
        pixel_values(processor, image)
        assert torch.equal(image, before)


@every_processor
@pytest.mark.parametrize("planar", [True, False], ids=["planar", "interleaved"])
def test_image_processor_memory_layout_changes_nothing(processor_class, array, planar):
    processor = processor_class(size=SIZE)
    image = torch.from_numpy(array).permute(2, 0, 1)
    image = image.contiguous() if planar else image
    batch = pixel_values(processor, image[None])
    assert batch.is_contiguous()
    assert torch.equal(batch, pixel_values(processor, image.flip(-1).flip(-1)))


@every_processor
def test_image_processor_checks_settings_that_were_changed(processor_class, array):
    processor = processor_class(size=SIZE)
    processor.resize_mode = "stretch"
    with pytest.raises(ValueError, match="stretch"):
        processor(array)


@every_processor
def test_image_processor_grey_and_alpha_arrays(processor_class, array):
    processor = processor_class(size=SIZE, resample=2)
    grey = pixel_values(processor, array[..., :1])
    expected = pixel_values(processor, Image.fromarray(array[..., 0]))
    assert grey.shape == (1, 3, 21, 33)
    assert (grey - expected).abs().max() <= 1 / 255 / 0.26 + 1e-6
    opaque = np.concatenate([array, np.full_like(array[..., :1], 255)], axis=-1)
    difference = pixel_values(processor, opaque) - pixel_values(processor, array)
    assert difference.abs().max() <= 1 / 255 / 0.26 + 1e-6
    assert pixel_values(processor, opaque.astype(np.float32)).shape == (1, 3, 21, 33)
    assert pixel_values(processor, array[..., :1].astype(np.float32)).shape == (1, 3, 21, 33)


@every_processor
def test_image_processor_output_types(processor_class, array):
    processor = processor_class(size=SIZE)
    image = Image.fromarray(array)
    tensors = pixel_values(processor, [image, image])
    arrays = processor([image, image], return_tensors="np").pixel_values
    items = processor([image, image]).pixel_values
    assert isinstance(arrays, np.ndarray) and arrays.dtype == np.float32
    assert np.array_equal(arrays, tensors.numpy())
    assert isinstance(items, list) and len(items) == 2
    assert np.array_equal(np.asarray(items[1]), arrays[1])


@every_processor
def test_image_processor_switches(processor_class, array):
    image = Image.fromarray(array)
    processor = processor_class(size=SIZE)
    everything = pixel_values(processor, image)
    unnormalised = pixel_values(processor, image, do_normalize=False)
    raw = pixel_values(processor, image, do_normalize=False, do_rescale=False)
    assert unnormalised.min() >= 0 and 0.5 < unnormalised.max() <= 1
    assert raw.dtype == torch.uint8 and raw.max() > 128
    torch.testing.assert_close(raw / 255, unnormalised, rtol=0, atol=1e-6)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    torch.testing.assert_close((unnormalised - mean) / std, everything, rtol=0, atol=1e-5)
    assert pixel_values(processor, image, do_resize=False).shape == (1, 3, 21, 33)
    assert pixel_values(processor, image, do_resize=False, do_center_crop=False).shape == (1, 3, 47, 71)
    assert pixel_values(processor, image, do_center_crop=False).shape == (1, 3, 22, 33)
    # Where the image is smaller than the crop, it is padded with black.
    padded = pixel_values(processor, Image.new("RGB", (9, 8), "white"), do_resize=False, do_normalize=False)
    assert padded.sum() == pytest.approx(3 * 9 * 8)
    assert padded[0, 0, 6:14, 12:21].min() == 1
    grey = pixel_values(processor, image.convert("L"), do_convert_rgb=False, do_normalize=False)
    assert grey.shape == (1, 1, 21, 33)


@every_processor
def test_image_processor_without_resize_keeps_every_size(processor_class, array):
    processor = processor_class(do_resize=False, do_center_crop=False)
    values = processor([Image.fromarray(array), Image.fromarray(array[:5])]).pixel_values
    assert [tuple(value.shape) for value in values] == [(3, 47, 71), (3, 5, 71)]


@every_processor
def test_image_processor_fills_with_a_colour_a_channel(processor_class):
    processor = processor_class(size=6, resize_mode="longest", fill_color=(255, 0, 51), do_normalize=False)
    for image in (Image.new("RGB", (6, 2), "white"), np.full((2, 6, 3), 255, dtype=np.uint8)):
        values = pixel_values(processor, image)[0]
        assert values[:, 0, 0].tolist() == pytest.approx([1, 0, 0.2])
        assert values[:, 2:4].min() == 1


@every_processor
def test_image_processor_ignores_exif_orientation(processor_class, array, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    image = Image.fromarray(array)
    image.save(tmp_path / "turned.png", exif=exif)
    assert Image.open(tmp_path / "turned.png").getexif()[0x0112] == 6
    processor = processor_class(size=SIZE)
    assert torch.equal(pixel_values(processor, tmp_path / "turned.png"), pixel_values(processor, image))
    assert torch.equal(pixel_values(processor, Image.open(tmp_path / "turned.png")), pixel_values(processor, image))


@every_processor
def test_image_processor_takes_base64_as_it_takes_the_file(processor_class, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = np.random.default_rng(1).integers(0, 256, (40, 25, 4), dtype=np.uint8)
    Image.fromarray(alpha).save(tmp_path / "alpha.png", exif=exif)
    text = base64.b64encode((tmp_path / "alpha.png").read_bytes()).decode()
    expected = pixel_values(processor_class(size=SIZE), Image.open(tmp_path / "alpha.png"))
    for source in (text, "data:image/png;base64," + text, tmp_path / "alpha.png"):
        assert torch.equal(pixel_values(processor_class(size=SIZE), source), expected)


def test_open_image_of_a_url_that_cannot_be_read():
    with pytest.raises(OSError, match=r"Cannot open the image 'http://127.0.0.1:9/cat.png'"):
        open_image("http://127.0.0.1:9/cat.png", timeout=1)


def test_open_image_leaves_the_mode(tmp_path):
    Image.new("P", (5, 4)).save(tmp_path / "palette.png")
    assert open_image(tmp_path / "palette.png").mode == "P"
    with pytest.raises(ValueError, match="Incorrect image source"):
        open_image(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(OSError, match="cannot identify"):
        open_image(tmp_path / "text.png")


@every_processor
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize_mode": "stretch"}, "resize_mode='stretch'.*'shortest', 'longest', 'squash'"),
        ({"size": {"shortest_edge": 224}}, "expected {'height'"),
        ({"resample": 0}, "resample=0"),
        ({"crop_size": 20}, "crop_size=.*no effect: images are cropped to size"),
        ({"do_pad": True}, "do_pad=True.*no effect: resize_mode='longest'"),
        ({"pad_size": 20}, "pad_size=.*no effect: resize_mode='longest'"),
        ({"data_format": "channels_last"}, "data_format=channels_last.*no effect: pixel_values"),
    ],
    ids=["resize_mode", "size", "resample", "crop_size", "do_pad", "pad_size", "data_format"],
)
def test_image_processor_wrong_settings_are_refused(processor_class, array, settings, message):
    with pytest.raises(ValueError, match=message):
        processor_class(**settings)
    with pytest.raises(ValueError, match=message):
        processor_class()(Image.fromarray(array), **settings)


@every_processor
@pytest.mark.parametrize("name", ["do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"])
def test_image_processor_switches_of_a_file_are_true_or_false(processor_class, name):
    for value in ("false", 0, [], float("nan")):
        with pytest.raises(ValueError, match=f"{processor_class.__name__}: {name} must be true or false, got "):
            processor_class(**{name: value})


def test_pil_back_end_refuses_other_devices(array):
    with pytest.raises(ValueError, match="device=meta, but Pillow works on the CPU"):
        OpenClipImageProcessorPil()(Image.fromarray(array), device="meta")
    assert OpenClipImageProcessorPil()(Image.fromarray(array), device="cpu", return_tensors="pt")


@every_processor
def test_image_processor_takes_settings_of_others_that_change_nothing(processor_class, array, tmp_path, caplog):
    image, settings = Image.fromarray(array), {"crop_size": 33, "do_pad": False, "data_format": "channels_first"}
    expected = pixel_values(processor_class(size=33), image)
    logging.enable_propagation()
    assert torch.equal(pixel_values(processor_class(size=33), image, **settings), expected)
    processor_class(size=33, **settings).save_pretrained(tmp_path)
    assert torch.equal(pixel_values(processor_class.from_pretrained(tmp_path), image), expected)
    assert caplog.text == ""
    processor_class(size=33, resise_mode="squash")
    logging.disable_propagation()
    assert f"{processor_class.__name__} has no settings ['resise_mode']: they do nothing." in caplog.text


@every_processor
@pytest.mark.parametrize(
    "images", [[], None, 3, [3], "no such file"], ids=["empty", "none", "number", "numbers", "path"]
)
def test_image_processor_wrong_images_are_refused(processor_class, images):
    with pytest.raises((ValueError, TypeError), match=r"empty list|only a single or a list|Incorrect image source"):
        processor_class()(images)


@every_processor
def test_image_processor_says_which_image_is_none(processor_class, array):
    with pytest.raises(ValueError, match=r"image 1 .* is None"):
        processor_class()([array, None])


@every_processor
def test_image_processor_saved_settings(processor_class, array, tmp_path):
    settings = {
        "size": SIZE,
        "resample": 2,
        "resize_mode": "longest",
        "fill_color": 7,
        "image_mean": [0.5, 0.25, 0.125],
        "image_std": [0.2, 0.3, 0.4],
    }
    processor = processor_class(**settings)
    processor.save_pretrained(tmp_path)
    saved = processor.to_dict()
    assert saved["image_processor_type"] == "OpenClipImageProcessor"
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in saved.items()}.items() >= {
        **settings
    }.items()
    image = Image.fromarray(array)
    for other_class in PROCESSORS.values():
        other = other_class.from_pretrained(tmp_path)
        torch.testing.assert_close(pixel_values(other, image), pixel_values(processor, image), rtol=0, atol=2e-6)


@pytest.mark.parametrize("backend", PROCESSORS)
def test_auto_image_processor_loads_a_saved_folder(array, tmp_path, backend):
    import open_clip_transformers  # noqa: F401

    OpenClipImageProcessor(size=SIZE).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "open_clip_vit"}')
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    assert type(processor) is PROCESSORS[backend]
    assert processor.size == SIZE
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is OpenClipImageProcessor


WITHOUT_TORCHVISION = """
    import sys
    sys.modules["torchvision"] = None
    from PIL import Image
    from transformers.utils import is_torchvision_available
    assert not is_torchvision_available()
    from open_clip_transformers.processing.image_processing_open_clip import OpenClipImageProcessor
    from open_clip_transformers.processing.image_processing_pil_open_clip import OpenClipImageProcessorPil
    from open_clip_transformers.processing.processing_coca import CoCaProcessor
    from open_clip_transformers.processing.tokenization_open_clip import OpenClipTokenizer
    processor = CoCaProcessor(OpenClipImageProcessorPil(size=33), OpenClipTokenizer())
    outputs = processor(images=Image.new("RGBA", (40, 50)), text="a cat", return_tensors="pt")
    assert outputs.pixel_values.shape == (1, 3, 33, 33) and outputs.input_ids.shape == (1, 3)
    try:
        OpenClipImageProcessor()
    except ImportError as error:
        assert "Torchvision" in str(error), error
    else:
        raise AssertionError("torchvision is needed")
"""


def test_pil_back_end_needs_no_torchvision():
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WITHOUT_TORCHVISION)], cwd=root, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


NARROW = [(3000, 2), (2, 3000), (500, 7), (9, 640)]


def narrow_image(mode: str, height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(height)
    if mode in ("F", "I;16"):
        dtype, low, high = {"F": (np.float32, -50, 300), "I;16": (np.uint16, 0, 2**16)}[mode]
        return Image.fromarray(rng.integers(low, high, (height, width)).astype(dtype))
    image = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8))
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "F", "I;16", "LAB"])
@pytest.mark.parametrize("resample", [2, 3], ids=["bilinear", "bicubic"])
def test_part_of_a_narrow_image_equals_that_of_all_of_it(monkeypatch, mode, resample):
    processor = OpenClipImageProcessorPil(size={"height": 33, "width": 21}, resample=resample)
    images = [narrow_image("RGB" if mode == "LAB" else mode, *shape) for shape in NARROW]
    if mode == "LAB":
        images = [Image.frombytes("LAB", image.size, image.tobytes()) for image in images]
    expected = [processor.process_image(image, do_convert_rgb=False, **geometry(processor)) for image in images]
    monkeypatch.setattr(image_settings_open_clip, "WHOLE_PIXELS", 100)
    for image, pixels in zip(images, expected):
        part = processor.process_image(image, do_convert_rgb=False, **geometry(processor))
        assert torch.equal(part, pixels), image.size


def geometry(processor) -> dict:
    names = ("do_resize", "size", "resample", "resize_mode", "fill_color", "do_center_crop")
    return {name: getattr(processor, name) for name in names}


@every_processor
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=["uint8", "float32"])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_part_of_a_narrow_tensor_equals_that_of_all_of_it(monkeypatch, processor_class, dtype, resize_mode):
    processor = processor_class(size={"height": 33, "width": 21}, resize_mode=resize_mode)
    images = [(torch.rand(3, *shape) * 255).to(dtype) for shape in NARROW]
    expected = pixel_values(processor, images)
    for module in (image_settings_open_clip, image_processing_open_clip):
        monkeypatch.setattr(module, "WHOLE_PIXELS", 5000)
    assert torch.equal(pixel_values(processor, images), expected)


@every_processor
@pytest.mark.parametrize("size", [(1, 20000), (20000, 1)], ids=["tall", "wide"])
@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_narrow_images_take_little_memory(processor_class, size, mode):
    image = Image.linear_gradient("L").resize(size).convert(mode)
    tracemalloc.start()  # of numpy's arrays; Pillow would be asked for gigabytes, in seconds
    start = time.perf_counter()
    pixels = pixel_values(processor_class(), image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**27 and time.perf_counter() - start < 5
    assert pixels.shape == (1, 3, 224, 224)


@every_processor
def test_images_that_are_too_narrow_are_refused(processor_class):
    image = Image.new("L", (1, 80000))
    for source in (image, torch.zeros(1, 80000, 1)):
        with pytest.raises(ValueError, match=r"An image of 1 x 80000 pixels is too narrow.*224 x 17920000.*'squash'"):
            processor_class()(source, input_data_format="channels_first")
    with pytest.raises(ValueError, match="An image of 1 x 20000 pixels is too narrow"):
        processor_class(do_center_crop=False)(Image.new("L", (1, 20000)))
    assert pixel_values(processor_class(resize_mode="longest"), image).shape == (1, 3, 224, 224)
    assert pixel_values(processor_class(do_resize=False), image).shape == (1, 3, 224, 224)


@every_processor
def test_image_processor_tells_of_pixels_that_are_scaled_already(processor_class, array, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(image_batches.logger, "warning_once", told.append)
    processor = processor_class(size=SIZE)
    for images in (array, array.astype(np.float32), np.zeros_like(array, dtype=np.float32)):
        pixel_values(processor, images)
    pixel_values(processor, array / 255, do_rescale=False)
    assert not told
    pixel_values(processor, array / 255)
    pixel_values(processor, array > 99)
    assert len(told) == 2 and "pass do_rescale=False" in told[0]


@every_processor
def test_image_processor_takes_every_floating_tensor(processor_class, array):
    processor, tensor = processor_class(size=SIZE), torch.from_numpy(array).permute(2, 0, 1).float()
    expected = pixel_values(processor, tensor)
    # Which holds 0..255; torchvision resizes in the precision of what it gets.
    assert torch.allclose(pixel_values(processor, tensor.bfloat16()), expected, atol=0.03)
    with_gradient = tensor.clone().requires_grad_()
    outputs = pixel_values(processor, [with_gradient])
    assert torch.equal(outputs, expected)
    if processor_class is OpenClipImageProcessor:  # Pillow's arithmetic has no gradients
        outputs.sum().backward()
        assert with_gradient.grad.any()
