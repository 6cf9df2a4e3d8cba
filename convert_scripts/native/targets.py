"""From our models, image processors and tokenizers to transformers' own, where the architectures are the same.

The tables are in `tables`. The files work without our package. transformers cannot do everything: it crops one
pixel beside open_clip's crop for some image sizes, converts to RGB before resizing, and does not repair mis-decoded
text.
"""

import json
import string
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, normalizers
from transformers import CLIPTokenizer
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import IMAGE_PROCESSOR_NAME

from ...configuration.configuration_common import height_and_width
from ...processing.clip_bpe import BOS_TOKEN, EOS_TOKEN, is_clip_bpe
from ...processing.image_settings_naflex import NaFlexImageSettings
from ...processing.image_settings_open_clip import OpenClipImageSettings
from ...processing.tokenization_open_clip import OpenClipTokenizer
from ..common import ConversionError, argument, listing
from ..mapping.config import CLIP_VOCAB_SIZE
from ..mapping.plan import ConversionPlan, DerivedPlan, derive_plan
from ..processors.tokenizers import save_plain_tokenizer
from .tables import NATIVE_TARGETS, NativePart, NativeTarget


# CLIP's special tokens as transformers spells them.
NATIVE_TOKENS = {BOS_TOKEN: "<|startoftext|>", EOS_TOKEN: "<|endoftext|>"}

_SINGLE_SPACES = (normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip())
_NO_PUNCTUATION = normalizers.Replace(Regex("[" + "".join(f"\\{char}" for char in string.punctuation) + "]"), "")
# `text_cleaning`'s names -> the same in the tokenizers library, without the repair of mis-decoded text.
CLEANING = {
    "whitespace": _SINGLE_SPACES,
    "lower": (*_SINGLE_SPACES, normalizers.Lowercase()),
    "canonicalize": (
        normalizers.Replace("_", " "),
        _NO_PUNCTUATION,
        normalizers.Lowercase(),
        *_SINGLE_SPACES,
    ),
}
PROCESSOR_NOTES = (
    "images: transformers resizes after the conversion to RGB, and its centre crop lies up to one pixel beside "
    "open_clip's",
    "texts: transformers does not repair mis-decoded characters and HTML entities as open_clip does",
)

Part = tuple[str, NativePart, PreTrainedConfig]
ImageProcessor = OpenClipImageSettings | NaFlexImageSettings


def find_target(config: PreTrainedConfig, tower: str | None = None) -> NativeTarget:
    """Find the model of transformers that our `config` describes.

    Args:
        config: configuration of one of our models.
        tower: `"vision"` or `"text"` for a model of that tower alone.

    Raises:
        ConversionError: there is none; the settings that stand in the way of the closest one are listed.
    """
    obstacles = {target.name: _obstacles(target, config, tower) for target in NATIVE_TARGETS}
    fitting = [target for target in NATIVE_TARGETS if not obstacles[target.name]]
    if fitting:
        return fitting[0]
    # Another kind of tower is farther away than any number of options.
    closest, *others = sorted(
        obstacles, key=lambda name: (any("model_type" in text for text in obstacles[name]), len(obstacles[name]))
    )
    raise ConversionError(
        f"transformers has no {f'{tower} tower' if tower else 'model'} like this one. What stands in the way of "
        f"{closest} (others: {', '.join(others)}):{listing(obstacles[closest])}\n"
        f"Without {argument('target', 'native')} it converts to our own classes."
    )


def _parts(target: NativeTarget, config: PreTrainedConfig, tower: str | None) -> list[Part]:
    """The parts to convert: name of our sub-configuration, `""` for the whole; its tables; its configuration."""
    parts = [("vision_config", target.vision, config.vision_config), ("text_config", target.text, config.text_config)]
    if tower:
        return [part for part in parts if part[0] == f"{tower}_config"]
    return [*parts, ("", target.model, config)]


def _obstacles(target: NativeTarget, config: PreTrainedConfig, tower: str | None) -> list[str]:
    return [
        f"{_path(name, row.field)} is {_shown(getattr(part_config, row.field, None))}, {row}"
        for name, part, part_config in _parts(target, config, tower)
        for row in part.unmet(part_config)
    ]


def _path(name: str, field: str) -> str:
    return f"{name}.{field}" if name else field


def _shown(value) -> str:
    return type(value).__name__ if isinstance(value, PreTrainedConfig) else repr(value)


def plan_native(plan: ConversionPlan, tower: str | None = None) -> tuple[DerivedPlan, tuple[str, ...]]:
    """Map our tensors onto transformers' own model.

    Args:
        plan: the plan of our model.
        tower: `"vision"` or `"text"` for that tower alone, with its projection.

    Returns:
        The plan, and notes on settings that transformers' model lacks.

    Raises:
        ConversionError: no model of transformers is built alike.
    """
    config = plan.model.config
    target = find_target(config, tower)
    parts = _parts(target, config, tower)
    table = sum((part.rename_table(part_config) for _, part, part_config in parts), ())
    notes = tuple(
        f"left out, as it matters in training alone: {_path(name, field)} = {getattr(part_config, field)}"
        for name, part, part_config in parts
        for field, neutral in part.training_only.items()
        if getattr(part_config, field) != neutral
    )
    return derive_plan(plan, _native_model(target, config, tower), table), notes


def _native_model(target: NativeTarget, config: PreTrainedConfig, tower: str | None) -> PreTrainedModel:
    class_name = {None: target.name, "vision": target.vision_class, "text": target.text_class}[tower]
    with torch.device("meta"):
        return getattr(transformers, class_name)(native_config(target, config, tower))


def native_config(target: NativeTarget, config: PreTrainedConfig, tower: str | None = None) -> PreTrainedConfig:
    """Build transformers' configuration of the model, or of one of its towers, that our `config` describes."""
    configs = {
        name: part.config_class(**part.config_table.invert(part_config))
        for name, part, part_config in _parts(target, config, tower)
        if name
    }
    if tower:
        return configs[f"{tower}_config"]
    return target.model.config_class(**configs, **target.model.config_table.invert(config))


def image_processor_config(
    image_processor: OpenClipImageSettings | NaFlexImageSettings, target: NativeTarget
) -> dict[str, Any]:
    """Build the contents of `preprocessor_config.json` for one of our image processors.

    Raises:
        ConversionError: transformers' image processors cannot pad to the size.
    """
    colours = {
        "resample": int(image_processor.resample),
        "do_rescale": image_processor.do_rescale,
        "rescale_factor": image_processor.rescale_factor,
        "do_normalize": image_processor.do_normalize,
        "image_mean": list(image_processor.image_mean),
        "image_std": list(image_processor.image_std),
        "do_convert_rgb": True,
        "processor_class": target.processor_class,
        "do_resize": image_processor.do_resize,
    }
    if isinstance(image_processor, NaFlexImageSettings):
        patch_size = height_and_width(image_processor.patch_size)[0]
        budget = {"patch_size": patch_size, "max_num_patches": image_processor.max_num_patches}
        return {"image_processor_type": target.image_processor_class, **colours, **budget}
    height, width = image_processor.size["height"], image_processor.size["width"]
    size = {"height": height, "width": width}
    if image_processor.resize_mode == "longest" or (image_processor.resize_mode == "shortest" and height != width):
        raise ConversionError(
            f"resize_mode {image_processor.resize_mode!r} to {height} x {width} is nothing that transformers' "
            f"{target.image_processor_class} can do: convert with {argument('with_processor', False)}, and prepare "
            "images yourself."
        )
    crops = image_processor.resize_mode == "shortest"
    return {
        # Only CLIP's image processor crops.
        "image_processor_type": "CLIPImageProcessor" if crops else target.image_processor_class,
        **colours,
        "size": {"shortest_edge": height} if crops else size,
        "do_center_crop": crops,
        "crop_size": size,
    }


def save_image_processor(
    image_processor: OpenClipImageSettings | NaFlexImageSettings, target: NativeTarget, folder: Path
):
    """Write `preprocessor_config.json`. Raise `ConversionError` as `image_processor_config`."""
    content = image_processor_config(image_processor, target)
    (folder / IMAGE_PROCESSOR_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_tokenizer(tokenizer: OpenClipTokenizer, target: NativeTarget, folder: Path):
    """Write the files of a tokenizer of transformers itself.

    CLIP's vocabulary becomes a `CLIPTokenizer`, which pads with the end-of-text token. Other tokenizers keep their
    own rules; white space, letter case and punctuation are cleaned by the tokenizer file.

    Raises:
        ConversionError: tokens were added to CLIP's vocabulary, or the separator token is replaced behind the
            tokenizer.
    """
    if not is_clip_bpe(tokenizer.backend_tokenizer):
        for option in ("strip_sep_token", "class_token_last"):
            if getattr(tokenizer, option):
                raise ConversionError(
                    f"The tokenizer has {option}, which transformers' own tokenizers cannot do: convert with "
                    f"{argument('with_processor', False)}."
                )
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        own = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([*CLEANING[tokenizer.clean], *own])
        save_plain_tokenizer(
            tokenizer,
            folder,
            backend,
            model_input_names=list(target.tokenizer_outputs),
            processor_class=target.processor_class,
        )
        return
    if len(tokenizer) != CLIP_VOCAB_SIZE or tokenizer.clean != "lower":
        raise ConversionError(
            f"The tokenizer has {len(tokenizer)} tokens and clean={tokenizer.clean!r}; transformers' CLIPTokenizer "
            f"has {CLIP_VOCAB_SIZE} and makes texts lower case. Convert with {argument('with_processor', False)}."
        )
    _save_clip_tokenizer(tokenizer, target, folder)


def _save_clip_tokenizer(tokenizer: OpenClipTokenizer, target: NativeTarget, folder: Path):
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary = {NATIVE_TOKENS.get(token, token): token_id for token, token_id in model["vocab"].items()}
    merges = [tuple(merge) for merge in model["merges"]]
    native = CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        model_max_length=tokenizer.model_max_length,
        processor_class=target.processor_class,
    )
    native.save_pretrained(folder)
    # The files that `CLIPTokenizer` of transformers 4 reads.
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
