"""Image processor and tokenizer of a converted checkpoint.

Mirrors open_clip's `PreprocessCfg` and `merge_preprocess_dict` (`transform.py`) and `get_tokenizer` (`factory.py`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import ProcessorMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..configuration.configuration_common import height_and_width
from ..processing.image_processing_pil_open_clip import OpenClipImageProcessorPil
from ..processing.processing_coca import CoCaProcessor
from ..processing.processing_open_clip import OpenClipProcessor
from ..processing.tokenization_open_clip import OpenClipTokenizer
from .config_mapping import CLIP_VOCAB_SIZE, TokenIds
from .errors import ConversionError
from .sources import TOKENIZER_FILES, Source, download_file


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
RESIZE_MODES = ("shortest", "longest", "squash")
# What `tokenizer_kwargs` may hold; open_clip hands anything else to the code of the tokenizer.
CLIP_TOKENIZER_KWARGS = ("clean",)
HF_TOKENIZER_KWARGS = ("clean", "strip_sep_token")


def image_processor_settings(preprocess_cfg: Mapping[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    """Arguments of our image processor for open_clip's `preprocess_cfg`.

    The size is always the vision tower's: open_clip overwrites `size` with it. Fields that open_clip's `PreprocessCfg`
    does not have are ignored, as open_clip does, and so are empty ones.

    Raises:
        ConversionError: values that open_clip has no meaning for.
    """
    given = {key: value for key, value in preprocess_cfg.items() if key in PREPROCESS_DEFAULTS and value is not None}
    cfg = {**PREPROCESS_DEFAULTS, **given}
    for key, known in (("mode", ("RGB",)), ("interpolation", RESAMPLE), ("resize_mode", RESIZE_MODES)):
        if cfg[key] not in known:
            raise ConversionError(f"preprocess_cfg: {key} must be one of {', '.join(known)}, got {cfg[key]!r}.")
    mean, std = ([v] * 3 if isinstance(v, int | float) else list(v) for v in (cfg["mean"], cfg["std"]))
    height, width = height_and_width(config.vision_config.image_size)
    if cfg["resize_mode"] == "shortest" and height != width:
        cfg["interpolation"] = "bicubic"  # open_clip does not hand the interpolation to this resize
    return {
        "size": {"height": height, "width": width},
        "image_mean": mean,
        "image_std": std,
        "resample": RESAMPLE[cfg["interpolation"]],
        "resize_mode": cfg["resize_mode"],
        "fill_color": cfg["fill_color"],
    }


def load_tokenizer(source: Source, required: bool = True) -> OpenClipTokenizer | None:
    """The tokenizer that open_clip gives a checkpoint.

    It is CLIP's, or, with `hf_tokenizer_name`, that of the files beside the weights, else of the Hub repository of
    that name. Only tokenizers of the tokenizers library are read, never code.

    Args:
        source: the checkpoint.
        required: `False` looks beside the weights only, and returns `None` where there is no tokenizer that fits.

    Raises:
        ConversionError: settings that are not supported, a vocabulary larger than the text tower's, or files that are
            not at hand.
    """
    text_cfg = source.model_cfg["text_cfg"]
    beside = source.tokenizer_folder is not None and (source.tokenizer_folder / "tokenizer.json").is_file()
    if not required and not (text_cfg.get("hf_tokenizer_name") and beside):
        return None
    try:
        if text_cfg.get("tokenizer_mode"):
            raise ConversionError(f"text_cfg: tokenizer_mode {text_cfg['tokenizer_mode']!r} is not supported yet.")
        tokenizer = _load_hf_tokenizer(source) if text_cfg.get("hf_tokenizer_name") else _load_clip_tokenizer(text_cfg)
    except ConversionError:
        if required:
            raise
        return None
    return tokenizer


def _load_clip_tokenizer(text_cfg: Mapping[str, Any]) -> OpenClipTokenizer:
    vocab_size = text_cfg.get("vocab_size", CLIP_VOCAB_SIZE)
    if vocab_size < CLIP_VOCAB_SIZE:
        raise ConversionError(
            f"text_cfg: vocab_size is {vocab_size}, but open_clip's own tokenizer, used where there is no "
            f"hf_tokenizer_name, has {CLIP_VOCAB_SIZE} ids. Set hf_tokenizer_name and put the tokenizer's files "
            "beside the weights, or convert with with_processor=False."
        )
    kwargs = _tokenizer_kwargs(text_cfg, CLIP_TOKENIZER_KWARGS)
    return OpenClipTokenizer(model_max_length=text_cfg.get("context_length", 77), **kwargs)


def _load_hf_tokenizer(source: Source) -> OpenClipTokenizer:
    text_cfg = source.model_cfg["text_cfg"]
    kwargs = _tokenizer_kwargs(text_cfg, HF_TOKENIZER_KWARGS)
    folder = tokenizer_folder(source, text_cfg["hf_tokenizer_name"])
    try:
        tokenizer = OpenClipTokenizer.from_hf_tokenizer(
            folder, context_length=text_cfg.get("context_length", 77), trust_remote_code=False, **kwargs
        )
    except Exception as error:  # transformers' tokenizers fail in many ways
        raise ConversionError(f"The tokenizer in {folder} cannot be used: {error}") from error
    vocab_size = text_cfg.get("vocab_size", CLIP_VOCAB_SIZE)
    if len(tokenizer) > vocab_size:
        raise ConversionError(
            f"The tokenizer in {folder} has {len(tokenizer)} ids, the text tower {vocab_size}: these are not its "
            "files. Put the right ones beside the weights, or convert with with_processor=False."
        )
    return tokenizer


def _tokenizer_kwargs(text_cfg: Mapping[str, Any], allowed: tuple[str, ...]) -> dict[str, Any]:
    kwargs = dict(text_cfg.get("tokenizer_kwargs") or {})
    if kwargs.keys() - set(allowed):
        raise ConversionError(
            f"text_cfg: tokenizer_kwargs may hold {', '.join(allowed)} for this tokenizer, got "
            f"{', '.join(sorted(kwargs))}."
        )
    return kwargs


def tokenizer_folder(source: Source, hf_name: str) -> Path:
    """Where the files of the tokenizer `hf_name` are: beside the weights, else from the Hub.

    Raises:
        ConversionError: neither has them.
    """
    beside = source.tokenizer_folder
    if beside is not None and (beside / "tokenizer.json").is_file():
        return beside
    try:
        folders = [download_file(hf_name, name).parent for name in TOKENIZER_FILES]
    except ConversionError as error:
        raise ConversionError(
            f"The tokenizer {hf_name} is needed and {source.name} has no tokenizer.json. Put the tokenizer's files "
            f"({', '.join(TOKENIZER_FILES)}) beside the weights, or convert with with_processor=False. {error}"
        ) from error
    return folders[0]


def token_ids_of(tokenizer: OpenClipTokenizer) -> TokenIds:
    """Ids that start, end and pad texts; tokenizers like BERT's start with `cls_token` and end with `sep_token`."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    return TokenIds(bos=start, eos=end, pad=tokenizer.pad_token_id)


def build_image_processor(source: Source, config: PreTrainedConfig) -> OpenClipImageProcessorPil:
    """The image processor of a converted checkpoint.

    Raises:
        ConversionError: image settings that open_clip has no meaning for.
    """
    return OpenClipImageProcessorPil(**image_processor_settings(source.preprocess_cfg, config))


def processor_class(config: PreTrainedConfig) -> type[ProcessorMixin]:
    """Class of the processor of a model."""
    return CoCaProcessor if "multimodal_config" in config.sub_configs else OpenClipProcessor
