"""Settings, geometry and checks of both image processors (open_clip: `image_transform` in `transform.py`)."""

import base64
import os
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from io import BytesIO
from reprlib import repr as brief
from typing import Any

import torch
from PIL import Image
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    PILImageResampling,
    infer_channel_dimension_format,
    load_image,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging

from ..configuration.configuration_common import (
    IS_BUNDLED,
    PIXELS,
    AutoClassMixin,
    Range,
    check_switches,
    with_value_errors,
)
from .image_batches import map_images, to_pixel_values


logger = logging.get_logger(__name__)

# Pixels lie in [0, 1], or in 0..255 where they are not rescaled.
_NUMBERS, _POSITIVE, _COLORS = Range(-1000, 1000), Range(1e-6, 1e6), Range(0, 255)

RESIZE_MODES = ("shortest", "longest", "squash")

# Resized images of more pixels are made in part where they are cropped; an edge is limited then, and else the pixels.
WHOLE_PIXELS, MAX_EDGE, MAX_PIXELS = 2**24, 2**24, 2**28

# Settings of other image processors that do nothing -> whether a value, beside `size`, asks for nothing; what to do.
WithoutEffect = Mapping[str, tuple[Callable[[Any, Any], bool], str]]
_WITHOUT_EFFECT: WithoutEffect = {
    "crop_size": (lambda value, size: value == size, "images are cropped to size, pass that."),
    "do_pad": (lambda value, size: not value, "resize_mode='longest' pads images to size."),
    "pad_size": (lambda value, size: value == size, "resize_mode='longest' pads images to size, pass that."),
    "data_format": (
        lambda value, size: value == ChannelDimension.FIRST,
        "pixel_values have their channels first; permute them.",
    ),
}

# What files of image processors hold beside settings.
_FILE_FIELDS = {"auto_map", "feature_extractor_type", "image_processor_type", "processor_class"}


class OpenClipImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    r"""
    resize_mode (`str`, *optional*):
        How an image is brought to `size`: `"shortest"` resizes the shorter edge and crops the centre, `"longest"`
        resizes the longer edge and pads around, `"squash"` ignores the aspect ratio.
    fill_color (`int`, *optional*):
        Colour of the padding of `"longest"`, in 0..255, one number for all channels or one a channel.
    """

    resize_mode: str | None
    fill_color: int | float | list[int] | tuple[int, ...] | None


class ImageSettings(AutoClassMixin):
    """Common part of the image processors: inputs, colours, and checks. A mixin for a back end of transformers.

    Args:
        resample: filter of the resize, `PILImageResampling.BICUBIC` (3) or `BILINEAR` (2); open_clip: `interpolation`.
        image_mean: mean of each channel, of pixels in [0, 1]; open_clip: `mean`.
        image_std: standard deviation of each channel, of pixels in [0, 1]; open_clip: `std`.
        rescale_factor: number that takes pixels to [0, 1].
        do_rescale: multiply pixels by `rescale_factor`. Switch it off for images that are in [0, 1] already.
        do_normalize: subtract `image_mean`, divide by `image_std`.
        do_convert_rgb: convert to RGB. An alpha channel is dropped.
    """

    # Back end -> name of its class, in the module of the one on torchvision.
    back_ends: Mapping[str, str]
    without_effect: WithoutEffect

    # Of the image processor that the mixin stands before.
    __call__: Callable
    backend: str
    process_image: Callable
    _valid_kwargs_names: list[str]
    _standardize_kwargs: Callable
    _preprocess_image_like_inputs: Callable

    do_resize = True
    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_convert_rgb = True

    def _set_attributes(self, **kwargs):
        super()._set_attributes(**kwargs)
        # Not at the first call only: a folder with wrong settings should not load.
        self._check_settings({name: getattr(self, name) for name in self._valid_kwargs_names})
        for name in ("image_mean", "image_std"):
            if getattr(self, name) is not None:
                channel_values(name, getattr(self, name))
        unknown = kwargs.keys() - set(self._valid_kwargs_names) - _FILE_FIELDS
        if unknown:
            logger.warning(f"{type(self).__name__} has no settings {sorted(unknown)}: they do nothing.")

    def _for_base_class(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings as the base class is to check them."""
        raise NotImplementedError

    def _validate_preprocess_kwargs(self, **kwargs):
        self._check_settings(kwargs)
        super()._validate_preprocess_kwargs(**self._for_base_class(kwargs))

    @with_value_errors
    def preprocess(self, images, *args, **kwargs):
        """Images as a `BatchFeature` with `pixel_values`; settings can be given as arguments."""
        if args or kwargs.keys() - {"return_tensors"}:
            return super().preprocess(images, *args, **kwargs)
        # What that would come to, without looking at the types of twenty arguments that were not given.
        settings = {name: getattr(self, name, None) for name in self._valid_kwargs_names}
        settings = self._standardize_kwargs(**settings | kwargs)
        self._validate_preprocess_kwargs(**settings)
        return self._preprocess_image_like_inputs(images, **settings)

    def _check_settings(self, settings: dict[str, Any]):
        resample, filters = settings["resample"], (PILImageResampling.BICUBIC, PILImageResampling.BILINEAR)
        is_pillow = isinstance(resample, int) or not isinstance(resample, Enum | None)
        if is_pillow and resample not in filters:
            raise ValueError(
                f"{type(self).__name__}: got resample={resample}; open_clip resizes with bicubic (3) or bilinear (2)."
            )
        switches = {name: value for name, value in settings.items() if name.startswith("do_") and value is not None}
        check_switches(type(self).__name__, switches)
        layout = settings.get("input_data_format")
        if layout not in (None, ChannelDimension.FIRST, ChannelDimension.LAST):
            raise ValueError(
                f"{type(self).__name__}: got input_data_format={layout!r:.200}; expected 'channels_first' or "
                "'channels_last', or None to tell from the number of channels."
            )
        factor = settings["rescale_factor"]
        if type(factor) not in (int, float) or abs(factor) not in _POSITIVE:
            raise ValueError(f"rescale_factor must be a number of absolute value in {_POSITIVE}, got {brief(factor)}.")
        for name in ("image_mean", "image_std"):
            if settings[name] is not None:
                # Arrays may have any number of channels.
                channel_values(name, settings[name], count=None)
        device = settings.get("device")
        if self.backend == "pil" and device is not None and torch.device(device).type != "cpu":
            raise ValueError(
                f"{type(self).__name__}: got device={device}, but Pillow works on the CPU: move pixel_values, or take "
                f"{self.back_ends['torchvision']}."
            )
        for name, (takes, remedy) in self.without_effect.items():
            value = settings.get(name)
            if value is not None and not takes(value, settings.get("size")):
                raise ValueError(f"{type(self).__name__}: got {name}={value}, which would have no effect: {remedy}")

    def to_dict(self) -> dict[str, Any]:
        """The settings as they are saved; from a Hub repository's copy of this code, for both back ends again."""
        settings = super().to_dict()
        auto_map = settings.pop("auto_map", None) or {}
        if IS_BUNDLED and auto_map:
            # transformers names the one class that it saves.
            module = type(self).__module__.rpartition(".")[2]
            references = {back_end: f"{module}.{name}" for back_end, name in self.back_ends.items()}
            settings["auto_map"] = {**auto_map, "AutoImageProcessor": references}
        return settings

    def finish(self, images: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rescale and normalise what the image processor made without, of images prepared one by one."""
        raise NotImplementedError

    @property
    def _finishing(self) -> tuple:
        return self.do_rescale, self.rescale_factor, self.do_normalize, self.image_mean, self.image_std

    def fetch_images(self, image_url_or_urls):
        """Open paths, URLs and base64 strings; nested lists and images pass through."""
        if isinstance(image_url_or_urls, (str, os.PathLike)):
            return open_image(image_url_or_urls)
        if isinstance(image_url_or_urls, (list, tuple)):
            for index, source in enumerate(image_url_or_urls):
                if source is None:
                    raise ValueError(f"{type(self).__name__}: image {index} (counted from 0) is None: leave it out.")
            return [self.fetch_images(source) for source in image_url_or_urls]
        return super().fetch_images(image_url_or_urls)

    def _prepare_images_structure(self, images, expected_ndims=3):
        if isinstance(images, (list, tuple)) and not images:
            raise ValueError(f"{type(self).__name__}: got an empty list of images: pass at least one image.")
        return super()._prepare_images_structure(images, expected_ndims=expected_ndims)

    def _prepare_image_like_inputs(self, images, *args, expected_ndims=3, **kwargs) -> list:
        images = self._prepare_images_structure(images, expected_ndims=expected_ndims)
        process = partial(self.process_image, *args, **kwargs)
        if self.backend == "pil" or any(isinstance(image, Image.Image) for image in images):
            return map_images(process, images)
        return [process(image) for image in images]


class OpenClipImageSettings(ImageSettings):
    """Settings of an image processor, a mixin for a back end of transformers.

    Images are prepared as open_clip does: they are not turned as their EXIF data may say, and are converted to RGB
    after resize and crop. transformers' pipelines, all but `image-to-text` here, do both before the image processor
    sees an image; for open_clip's pixels call the processor and the model, or the command line.

    Takes the settings of [`ImageSettings`] and these.

    Args:
        size: height and width of the result in pixels; open_clip: `size`.
        resize_mode: `"shortest"`, `"longest"` or `"squash"`; open_clip: the same name.
        fill_color: colour of the padding of `"longest"`, in 0..255; open_clip: the same name.
        do_resize: resize as `resize_mode` says.
        do_center_crop: crop, or pad, the centre to `size`; nothing to do after `"squash"`.
    """

    back_ends = {"torchvision": "OpenClipImageProcessor", "pil": "OpenClipImageProcessorPil"}
    without_effect = _WITHOUT_EFFECT

    valid_kwargs = OpenClipImageProcessorKwargs
    size = {"height": 224, "width": 224}
    resize_mode = "shortest"
    fill_color = 0
    do_center_crop = True

    def finish(self, images: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"pixel_values": to_pixel_values(images["pixel_values"].unbind(), *self._finishing)}

    def _for_base_class(self, settings: dict[str, Any]) -> dict[str, Any]:
        # The crop is to `size`, which the base class calls `crop_size`.
        return {**settings, "crop_size": settings["size"]}

    def _check_settings(self, settings: dict[str, Any]):
        size, resize_mode = settings["size"], settings["resize_mode"]
        sides = [size.get("height"), size.get("width")] if hasattr(size, "get") else [None]
        if not all(type(side) is int and side in PIXELS for side in sides):
            raise ValueError(
                f"{type(self).__name__}: got size={size}; expected {{'height': ..., 'width': ...}} in {PIXELS}."
            )
        if not isinstance(resize_mode, str) or resize_mode not in RESIZE_MODES:
            raise ValueError(
                f"{type(self).__name__}: got resize_mode={resize_mode!r}; choose one of "
                f"{', '.join(map(repr, RESIZE_MODES))}."
            )
        check_fill_color(settings["fill_color"])
        super()._check_settings(settings)


def open_image(source: str | os.PathLike, timeout: float = 60) -> Image.Image:
    """The image at a path, URL or in a base64 string.

    It is opened as open_clip opens a file, in its own mode and not turned as its EXIF data may say. A URL is left to
    transformers' `load_image`, which does both, turning and converting to RGB.

    Args:
        source: path, URL, or base64 string, in a data URL or not.
        timeout: seconds to wait for a download.

    Raises:
        OSError: the file is no image, or one of more pixels than Pillow allows, or a download fails.
        ValueError: neither a file, nor a URL, nor base64.
    """
    source = os.fspath(source)
    try:
        if os.path.isfile(source):
            return Image.open(source)
        if source.startswith(("http://", "https://")):
            return load_image(source, timeout=timeout)
    except (OSError, ValueError):
        raise
    except Exception as error:  # of the network, or Pillow's own of images that are too large
        raise OSError(f"Cannot open the image {source!r:.200}: {error}") from error
    data = source.split(",", 1)[-1] if source.startswith("data:image/") else source
    try:
        return Image.open(BytesIO(base64.decodebytes(data.encode())))
    except Exception as error:
        raise ValueError(
            f"Incorrect image source {source!r:.200}: expected the path of a file, an http(s) URL, or the base64 "
            "string of an image."
        ) from error


def channel_values(name: str, values: Any, count: int | None = 3) -> list[float]:
    """A mean or standard deviation of pixels, one number or one for each of `count` channels, as a list.

    Raises:
        ValueError: other values, or some that make of pixels what is not finite.
    """
    numbers = _POSITIVE if name.endswith("std") else _NUMBERS
    values = [values] * (count or 1) if isinstance(values, int | float) else values
    if (
        not isinstance(values, list | tuple)
        or not values
        or count not in (None, len(values))
        or not all(type(value) in (int, float) and value in numbers for value in values)
    ):
        raise ValueError(f"{name} must be {count or 'as many as channels'} numbers in {numbers}, got {brief(values)}.")
    return list(values)


def check_fill_color(color: Any):
    """Raise `ValueError` unless `color` is a number in 0..255, or three."""
    colors = color if isinstance(color, list | tuple) and len(color) == 3 else [color]
    if not all(isinstance(value, int | float) and value in _COLORS for value in colors):
        raise ValueError(f"fill_color must be a number in {_COLORS} or three, got {brief(color)}.")


def channels_first(image, input_data_format=None):
    """The array or tensor `image` of 1, 3 or 4 channels with its channels first, moved there if they are last."""
    if input_data_format is None:
        input_data_format = infer_channel_dimension_format(image, num_channels=(1, 3, 4))
    if input_data_format == ChannelDimension.LAST:
        return image.permute(2, 0, 1) if hasattr(image, "permute") else image.transpose(2, 0, 1)
    return image


def resized_size(height: int, width: int, target: tuple[int, int], resize_mode: str) -> tuple[int, int]:
    """Height and width to which an image is resized for a `target` (height, width), before crop or padding.

    open_clip cannot resize an image so narrow that its shorter edge would vanish; here one pixel stays.

    Raises:
        ValueError: the image has no pixels.
    """
    if not height or not width:
        raise ValueError(f"An image of {width} x {height} pixels has none to resize.")
    if resize_mode == "squash":
        return target
    if resize_mode == "shortest" and target[0] == target[1]:
        # As torchvision's `Resize` does: the longer edge is cut, not rounded.
        short, long = sorted((height, width))
        scaled = int(target[0] * long / short)
        return (target[0], scaled) if height <= width else (scaled, target[0])
    ratios = height / target[0], width / target[1]
    ratio = max(ratios) if resize_mode == "longest" else min(ratios)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def needs_part(size: tuple[int, int], resized: tuple[int, int], is_cropped: bool) -> bool:
    """Whether an image of `size` (height, width) is so narrow that only what is kept of it is to be `resized`.

    Raises:
        ValueError: it is too narrow even for that, or all of it is kept.
    """
    (height, width), pixels = resized, resized[0] * resized[1]
    if pixels <= WHOLE_PIXELS or height < size[0] or width < size[1]:
        return False
    if max(resized) > MAX_EDGE if is_cropped else pixels > MAX_PIXELS:
        raise ValueError(
            f"An image of {size[1]} x {size[0]} pixels is too narrow: its shorter edge resized, it would have {width} "
            f"x {height}. Crop it, or choose resize_mode='longest' or 'squash'."
        )
    return is_cropped


def center_padding(height: int, width: int, target: tuple[int, int]) -> tuple[int, int, int, int]:
    """Pixels to add on the left, top, right and bottom so that neither edge is shorter than in `target`."""
    rows, columns = max(target[0] - height, 0), max(target[1] - width, 0)
    return columns // 2, rows // 2, (columns + 1) // 2, (rows + 1) // 2


def center_offset(height: int, width: int, target: tuple[int, int]) -> tuple[int, int]:
    """Top and left of the centre crop; torchvision rounds them (halves to even), transformers cuts them off."""
    return round((height - target[0]) / 2), round((width - target[1]) / 2)


__all__ = [
    "RESIZE_MODES",
    "WHOLE_PIXELS",
    "ImageSettings",
    "OpenClipImageProcessorKwargs",
    "OpenClipImageSettings",
    "WithoutEffect",
    "center_offset",
    "center_padding",
    "channels_first",
    "needs_part",
    "open_image",
    "resized_size",
]
