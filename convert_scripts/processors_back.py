"""From the image processor and the tokenizer of a converted folder back to open_clip's settings and files.

Mirrors open_clip's `PreprocessCfg` (`transform.py`) and the tokenizer fields of its `CLIPTextCfg` (`model.py`).
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.configuration_utils import PreTrainedConfig

from ..processing.clip_bpe import is_clip_bpe
from ..processing.image_settings_open_clip import OpenClipImageSettings
from ..processing.tokenization_open_clip import OpenClipTokenizer
from .common import ConversionError, listing
from .mapping.config import CLIP_VOCAB_SIZE
from .processors.image import RESAMPLE, image_processor_settings


INTERPOLATION = {resample: name for name, resample in RESAMPLE.items() if name != "random"}
_ALWAYS_ON = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")


def preprocess_cfg_of(image_processor: OpenClipImageSettings, config: PreTrainedConfig) -> dict[str, Any]:
    """open_clip's `preprocess_cfg` of one of our image processors.

    Raises:
        ConversionError: settings that open_clip has no field for; all of them are listed.
    """
    height, width = image_processor.size["height"], image_processor.size["width"]
    cfg = {
        "size": height if height == width else [height, width],
        "mode": "RGB",
        "mean": list(image_processor.image_mean),
        "std": list(image_processor.image_std),
        "interpolation": INTERPOLATION[image_processor.resample],
        "resize_mode": image_processor.resize_mode,
        "fill_color": image_processor.fill_color,
    }
    # What open_clip will do with it, and with the image size of its own model.
    expected = {**image_processor_settings(cfg, config), **dict.fromkeys(_ALWAYS_ON, True), "rescale_factor": 1 / 255}
    lost = [
        f"{name} = {getattr(image_processor, name)!r} (open_clip has {value!r})"
        for name, value in expected.items()
        if _plain(getattr(image_processor, name)) != _plain(value)
    ]
    if lost:
        raise ConversionError(
            f"open_clip cannot express these settings of the image processor:{listing(lost)}\n"
            "Change them in its configuration file, or convert with with_processor=False."
        )
    return cfg


def _plain(value):
    return list(value) if isinstance(value, tuple) else dict(value) if hasattr(value, "keys") else value


def tokenizer_cfg_of(tokenizer: OpenClipTokenizer, hf_tokenizer_name: str) -> dict[str, Any]:
    """The fields of open_clip's `text_cfg` that choose a tokenizer like one of ours.

    Args:
        tokenizer: our tokenizer.
        hf_tokenizer_name: what open_clip should call it where it is not CLIP's own.

    Raises:
        ConversionError: tokens were added to CLIP's vocabulary, which open_clip has no file for.
    """
    if not is_clip_bpe(tokenizer.backend_tokenizer):
        kwargs = {"clean": tokenizer.clean, "strip_sep_token": tokenizer.strip_sep_token}
        defaults = {"clean": "whitespace", "strip_sep_token": False}
        cfg = {
            "hf_tokenizer_name": hf_tokenizer_name,
            "tokenizer_kwargs": {name: value for name, value in kwargs.items() if value != defaults[name]},
            "tokenizer_mode": "clips" if tokenizer.class_token_last else None,
        }
        return {name: value for name, value in cfg.items() if value}
    if len(tokenizer) != CLIP_VOCAB_SIZE:
        raise ConversionError(
            f"The tokenizer has CLIP's vocabulary and {len(tokenizer) - CLIP_VOCAB_SIZE} more tokens, which no file "
            "of open_clip can hold: convert with with_processor=False, and give open_clip the tokenizer in code."
        )
    return {} if tokenizer.clean == "lower" else {"tokenizer_kwargs": {"clean": tokenizer.clean}}


def save_plain_tokenizer(tokenizer: OpenClipTokenizer, folder: Path, backend: Tokenizer | None = None, **settings):
    """Writes a tokenizer as `tokenizer.json` and `tokenizer_config.json` for transformers 4 and 5 without our package.

    Args:
        tokenizer: our tokenizer; what it does to texts in Python is left out.
        folder: an existing folder.
        backend: written instead of the tokenizer's own.
        settings: further arguments of `PreTrainedTokenizerFast`.
    """
    names = (
        "model_max_length",
        "padding_side",
        "truncation_side",
        "clean_up_tokenization_spaces",
        "model_input_names",
    )
    plain = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer if backend is None else backend,
        extra_special_tokens=list(tokenizer.extra_special_tokens),
        **{**tokenizer.special_tokens_map, **{name: getattr(tokenizer, name) for name in names}, **settings},
    )
    plain.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    # The names that transformers 4 knows too.
    content["tokenizer_class"] = "PreTrainedTokenizerFast"
    if "extra_special_tokens" in content:
        content["additional_special_tokens"] = content.pop("extra_special_tokens")
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
