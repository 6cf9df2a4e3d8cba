"""Image processors of checkpoints, in both directions, and the class of a model's processor.

Mirrors open_clip's `PreprocessCfg` and `merge_preprocess_dict` (`transform.py`).
"""

from collections.abc import Mapping
from reprlib import repr as brief
from typing import Any

from PIL import Image
from transformers import ProcessorMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ...configuration.configuration_common import height_and_width
from ...configuration.configuration_naflex_vit import NaFlexVitConfig
from ...processing.image_processing_pil_naflex import NaFlexImageProcessorPil
from ...processing.image_processing_pil_open_clip import OpenClipImageProcessorPil
from ...processing.image_settings_open_clip import (
    ImageSettings,
    OpenClipImageSettings,
    channel_values,
    check_fill_color,
)
from ...processing.processing_coca import CoCaProcessor
from ...processing.processing_open_clip import OpenClipProcessor
from ..common import ConversionError, argument, failing_as, listing, plain
from ..sources.architectures import find_published
from ..sources.source import Source
from ..sources.weights import CONFIG_FILE


PREPROCESS_DEFAULTS = {
    "mode": "RGB",
    "mean": OPENAI_CLIP_MEAN,
    "std": OPENAI_CLIP_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}
# "random" varies the interpolation in training and means bicubic outside of it.
RESAMPLE = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "random": Image.Resampling.BICUBIC,
}
INTERPOLATION = {resample: name for name, resample in RESAMPLE.items() if name != "random"}
IMAGE_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
RESIZE_MODES = ("shortest", "longest", "squash")
_ALWAYS_ON = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")


# Settings that published weights may differ in.
_PUBLISHED = ("mean", "std", "interpolation", "resize_mode")


def preprocess_defaults() -> dict[str, Any]:
    """open_clip's image settings where none are stated, of those that weights differ in."""
    return {key: plain(PREPROCESS_DEFAULTS[key]) for key in _PUBLISHED}


def complete_preprocess_cfg(source: Source, known: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Complete a checkpoint's image settings by those of its architecture's published weights.

    What its files or the user state comes first, then what all published weights of the architecture share;
    open_clip's defaults are left for the rest.

    Args:
        source: the checkpoint.
        known: settings that follow from the weights file itself.

    Returns:
        The settings, and a note on those that nobody stated; `None` where there are none, or all published weights of
        the architecture have open_clip's defaults.
    """
    own = {key: value for key, value in source.preprocess_cfg.items() if value is not None}
    stated = {**known, **own}
    tags = find_published(source.model_name, source.model_cfg)
    if source.model_name is None and (own or (source.has_own_config and not tags)):
        return stated, None  # the file means open_clip's defaults for what it does not state
    shared = dict(tags[0].preprocess_cfg) if tags else {}
    shared = {k: v for k, v in shared.items() if k not in stated and all(tag.preprocess_cfg[k] == v for tag in tags)}
    defaults = preprocess_defaults()
    unclear = {key: value for key, value in defaults.items() if key not in {**stated, **shared}}
    special = {key: value for key, value in shared.items() if value != defaults[key]}
    name = source.model_name or (tags[0].model if tags else "this architecture")
    reasons = [
        (special, f"as in all published weights of {name}"),
        (unclear, f"open_clip's default, as published weights of {name} {'differ' if tags else 'are not known'}"),
    ]
    choices = [f"{_shown(chosen)} ({reason})" for chosen, reason in reasons if chosen]
    note = (
        f"image settings that were not stated: {'; '.join(choices)}. For others state a preprocess_cfg, in "
        f"{CONFIG_FILE} beside the weights or with {argument('config')}"
    )
    return {**shared, **stated}, note if choices else None


def unread_settings(preprocess_cfg: Mapping[str, Any]) -> str | None:
    """A note on settings that open_clip does not know; `None` where there are none."""
    unread = [brief(key) for key in preprocess_cfg if key not in {*PREPROCESS_DEFAULTS, "size"}]
    known = ", ".join(PREPROCESS_DEFAULTS)
    return f"preprocess_cfg: {', '.join(unread)} left out, as in open_clip, which knows {known}" if unread else None


def _shown(cfg: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in cfg.items())


def image_processor_settings(preprocess_cfg: Mapping[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    """Arguments of our image processor, of `image_processor_class`, for open_clip's `preprocess_cfg`.

    The size is always the vision tower's: open_clip overwrites `size` with it. Fields that open_clip's `PreprocessCfg`
    does not have are ignored, as open_clip does, and so are empty ones.

    Raises:
        ConversionError: values that open_clip has no meaning for.
    """
    given = {key: value for key, value in preprocess_cfg.items() if key in PREPROCESS_DEFAULTS and value is not None}
    cfg = {**PREPROCESS_DEFAULTS, **given}
    for key, known in (("mode", ("RGB",)), ("interpolation", RESAMPLE), ("resize_mode", RESIZE_MODES)):
        if not isinstance(cfg[key], str) or cfg[key] not in known:
            raise ConversionError(f"preprocess_cfg: {key} must be one of {', '.join(known)}, got {brief(cfg[key])}.")
    with failing_as("preprocess_cfg"):
        mean, std = (channel_values(key, cfg[key]) for key in ("mean", "std"))
        check_fill_color(cfg["fill_color"])
    colours = {"image_mean": mean, "image_std": std}
    if takes_patches(config):
        vision = config.vision_config
        budget = {"patch_size": plain(vision.patch_size), "max_num_patches": vision.max_num_patches}
        return {**budget, **colours, "resample": RESAMPLE[cfg["interpolation"]]}
    height, width = height_and_width(config.vision_config.image_size)
    if cfg["resize_mode"] == "shortest" and height != width:
        cfg["interpolation"] = "bicubic"  # open_clip does not hand the interpolation to this resize
    return {
        "size": {"height": height, "width": width},
        **colours,
        "resample": RESAMPLE[cfg["interpolation"]],
        "resize_mode": cfg["resize_mode"],
        "fill_color": cfg["fill_color"],
    }


def takes_patches(config: PreTrainedConfig) -> bool:
    """Whether the vision tower takes images as patches, as many as their shapes ask for."""
    return config.vision_config.model_type == NaFlexVitConfig.model_type


def image_processor_class(config: PreTrainedConfig) -> type[NaFlexImageProcessorPil | OpenClipImageProcessorPil]:
    """Class of the image processor of a model, on Pillow."""
    return NaFlexImageProcessorPil if takes_patches(config) else OpenClipImageProcessorPil


def build_image_processor(source: Source, config: PreTrainedConfig) -> ImageSettings:
    """Build the image processor of a checkpoint.

    Raises:
        ConversionError: image settings that open_clip has no meaning for.
    """
    return image_processor_class(config)(**image_processor_settings(source.preprocess_cfg, config))


def preprocess_cfg_of(image_processor: ImageSettings, config: PreTrainedConfig) -> dict[str, Any]:
    """Build open_clip's `preprocess_cfg` of one of our image processors.

    Raises:
        ConversionError: settings that open_clip has no field for; all of them are listed.
    """
    cfg: dict[str, Any] = {
        "mode": "RGB",
        "mean": channel_values("image_mean", image_processor.image_mean),
        "std": channel_values("image_std", image_processor.image_std),
        "interpolation": INTERPOLATION[image_processor.resample],
    }
    if isinstance(image_processor, OpenClipImageSettings):
        height, width = image_processor.size["height"], image_processor.size["width"]
        cfg = {
            "size": height if height == width else [height, width],
            **cfg,
            "resize_mode": image_processor.resize_mode,
            "fill_color": image_processor.fill_color,
        }
    # The settings that open_clip makes of it, with the sizes of its own model.
    settings, kind = image_processor_settings(cfg, config), image_processor_class(config)
    switches = {name: True for name in _ALWAYS_ON if getattr(kind, name, None)}
    expected = {**settings, **switches, "rescale_factor": 1 / 255}
    lost = [
        f"{name} = {getattr(image_processor, name)!r} (open_clip has {value!r})"
        for name, value in expected.items()
        if plain(getattr(image_processor, name)) != plain(value)
    ]
    if lost:
        raise ConversionError(
            f"open_clip cannot express these settings of the image processor:{listing(lost)}\n"
            f"Change them in its configuration file, or convert with {argument('with_processor', False)}."
        )
    return cfg


def processor_class(config: PreTrainedConfig) -> type[ProcessorMixin]:
    """Class of the processor of a model."""
    return CoCaProcessor if "multimodal_config" in config.sub_configs else OpenClipProcessor
