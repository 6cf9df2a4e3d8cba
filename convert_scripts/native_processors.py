"""Image settings and tokenizer files for transformers' own models, which work without our package.

What transformers cannot do is left out: it crops one pixel beside open_clip's crop for some image sizes, converts to
RGB before resizing, and does not repair mis-decoded text.
"""

import json
import string
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers
from transformers import CLIPTokenizer
from transformers.utils import IMAGE_PROCESSOR_NAME

from ..processing.clip_bpe import BOS_TOKEN, EOS_TOKEN, is_clip_bpe
from ..processing.image_settings_open_clip import OpenClipImageSettings
from ..processing.tokenization_open_clip import OpenClipTokenizer
from .common import ConversionError
from .mapping.config import CLIP_VOCAB_SIZE
from .native.tables import NativeTarget
from .processors_back import save_plain_tokenizer


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


def image_processor_config(image_processor: OpenClipImageSettings, target: NativeTarget) -> dict[str, Any]:
    """Contents of `preprocessor_config.json` for one of our image processors.

    Raises:
        ConversionError: transformers' image processors cannot pad to the size.
    """
    height, width = image_processor.size["height"], image_processor.size["width"]
    size = {"height": height, "width": width}
    if image_processor.resize_mode == "longest" or (image_processor.resize_mode == "shortest" and height != width):
        raise ConversionError(
            f"resize_mode {image_processor.resize_mode!r} to {height} x {width} is nothing that transformers' "
            f"{target.image_processor_class} can do: convert with with_processor=False, and prepare images yourself."
        )
    crops = image_processor.resize_mode == "shortest"
    return {
        # Only CLIP's image processor crops.
        "image_processor_type": "CLIPImageProcessor" if crops else target.image_processor_class,
        "processor_class": target.processor_class,
        "do_resize": image_processor.do_resize,
        "size": {"shortest_edge": height} if crops else size,
        "resample": int(image_processor.resample),
        "do_center_crop": crops,
        "crop_size": size,
        "do_rescale": image_processor.do_rescale,
        "rescale_factor": image_processor.rescale_factor,
        "do_normalize": image_processor.do_normalize,
        "image_mean": list(image_processor.image_mean),
        "image_std": list(image_processor.image_std),
        "do_convert_rgb": True,
    }


def save_image_processor(image_processor: OpenClipImageSettings, target: NativeTarget, folder: Path):
    """Writes `preprocessor_config.json`. Raises `ConversionError` as `image_processor_config`."""
    content = image_processor_config(image_processor, target)
    (folder / IMAGE_PROCESSOR_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_tokenizer(tokenizer: OpenClipTokenizer, target: NativeTarget, folder: Path):
    """Writes the files of a tokenizer of transformers itself.

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
                    "with_processor=False."
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
            f"has {CLIP_VOCAB_SIZE} and makes texts lower case. Convert with with_processor=False."
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
    # What `CLIPTokenizer` of transformers 4 reads.
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
