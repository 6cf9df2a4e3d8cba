"""transformers' own CLIP, MetaCLIP 2, SigLIP and SigLIP 2 folders as sources: `tables` read towards our classes."""

import difflib
import json
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME

from ...configuration.configuration_open_clip import OpenClipConfig, OpenClipSiglipConfig
from ...configuration.configuration_towers import TEXT_CONFIGS, VISION_CONFIGS
from ...processing.clip_bpe import build_clip_bpe
from ...processing.tokenization_open_clip import OpenClipTokenizer
from ..checkpoint import LoadedCheckpoint
from ..common import ConversionError, argument, failing_as, read_json, user_path
from ..mapping.config import check_model_cfg
from ..mapping.config_table import text_fields_of
from ..mapping.hints import has_names_of_transformers
from ..mapping.plan import MODEL_CLASSES, ConversionPlan, plan_tensors
from ..processors.image import image_processor_class, image_processor_settings, takes_patches
from ..processors.tokenizers import VOCABULARY_FILES, load_tokenizer
from ..sources.openai import is_openai
from ..sources.source import Source, SourceOptions, read_config
from ..sources.weights import CONFIG_FILE, find_weights, read_weights
from ..towers.tables import TEXT_CONVERSIONS
from ..verify.values import Outputs, native_outputs, verification_inputs
from .tables import NATIVE_TARGETS, SIGLIP, SIGLIP_2, NativeTarget
from .targets import NATIVE_TOKENS


# Keys of older checkpoints that no model needs -> why.
DROPPED = {
    f"{tower}_model.embeddings.position_ids": "buffer of old transformers releases, made in forward"
    for tower in ("vision", "text")
}
# Settings of transformers' image processors that files need not state, where they are not CLIP's.
_UNSTATED: dict[str, dict[str, Any]] = {
    SIGLIP.name: {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    SIGLIP_2.name: {
        "patch_size": 16,
        "max_num_patches": 256,
        "resample": Image.Resampling.BILINEAR,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    },
}
_IMAGE_SETTINGS = ("resample", "image_mean", "image_std", "rescale_factor", "do_resize", "do_rescale", "do_normalize")
# transformers' tokenizers clean texts themselves; SigLIP's do so in Python.
_CLEAN = {SIGLIP.name: "canonicalize", SIGLIP_2.name: "lower"}


def find_native_source(options: SourceOptions) -> tuple[Path, NativeTarget] | None:
    """Find the folder that `options` name and the model in it; `None` where it is not one of transformers' own.

    Raises:
        ConversionError: its config.json cannot be read, or options are given that are for checkpoints of open_clip.
    """
    if any(given is not None for given in (options.model_name, options.config, options.pretrained)):
        return None
    folder = user_path(options.source)
    if not (folder / CONFIG_NAME).is_file():
        return None
    model_type = read_json(folder / CONFIG_NAME).get("model_type")
    target = next((t for t in NATIVE_TARGETS if t.model.config_class.model_type == model_type), None)
    has_open_clip_config = (folder / CONFIG_FILE).is_file()
    if target is None and isinstance(model_type, str) and not has_open_clip_config:
        _check_is_open_clip(folder, model_type)
    if target is None or (has_open_clip_config and not has_names_of_transformers(_keys(folder))):
        return None
    if given := [argument(name) for name in ("revision", "ema", "reparameterize") if getattr(options, name)]:
        raise ConversionError(
            f"{folder} holds transformers' {target.name}, which knows no {' and no '.join(given)}: leave out "
            f"{' and '.join(given)}."
        )
    return folder, target


def _check_is_open_clip(folder: Path, model_type: str):
    """Raise `ConversionError` where a folder holds another model of transformers than can be converted."""
    if is_openai(_keys(folder)):
        return
    if model_type in {**VISION_CONFIGS, **TEXT_CONFIGS, **MODEL_CLASSES}:
        raise ConversionError(
            f"{folder} holds a converted model already ({model_type}): it can be loaded as it is, and `to-open-clip` "
            "converts a whole model back."
        )
    known = [f"{target.name} ({target.model.config_class.model_type})" for target in NATIVE_TARGETS]
    raise ConversionError(
        f"{folder} holds a model of transformers of the type {model_type!r}, by its {CONFIG_NAME}, which cannot be "
        f"converted; of transformers' models {', '.join(known)} can. For weights of open_clip put their {CONFIG_FILE} "
        f"there, or say what they are with {argument('model_name')} or {argument('config')}."
    )


def _keys(folder: Path) -> Collection[str]:
    """The keys of a folder's weights, none where they cannot be read."""
    try:
        return read_weights(find_weights(folder)).tensors.keys()
    except (ConversionError, OSError):
        return ()


def load_native_checkpoint(folder: Path, target: NativeTarget, processor_parts: Collection[str]) -> LoadedCheckpoint:
    """Read a folder of transformers' own and plan its conversion.

    Args:
        folder: a folder that `find_native_source` found.
        target: the model in it.
        processor_parts: `"image_processor"` and `"tokenizer"`, where these are needed.

    Raises:
        ConversionError: the weights are not those of the configuration, or the processor is missing or has settings
            that ours lacks.
    """
    source = Source(str(folder), find_weights(folder), model_cfg={}, preprocess_cfg={}, tokenizer_folder=folder)
    with failing_as(f"{folder / CONFIG_NAME} does not describe a {target.name} that can be built"):
        native = target.model.config_class.from_pretrained(folder)
        _check_fields(read_json(folder / CONFIG_NAME), native)
        config = build_our_config(target, native)
    weights = read_weights(source.weights)
    tokenizer = _load_tokenizer(source, target, config) if "tokenizer" in processor_parts else None
    image_processor = None
    if "image_processor" in processor_parts:
        with failing_as(f"The image settings in {folder} cannot be used"):
            settings = _image_settings(folder, target, config)
            image_processor = image_processor_class(config)(**settings)
            if takes_patches(config):
                config.vision_config.max_num_patches = settings["max_num_patches"]
    return LoadedCheckpoint(
        source=source,
        plan=_plan(target, config, weights.tensors),
        image_processor=image_processor,
        tokenizer=tokenizer,
        reference=partial(_reference, folder, target),
        notes=(f"the source is transformers' {target.name}", *weights.notes),
    )


def _check_fields(content: Mapping[str, Any], native: PreTrainedConfig):
    """Raise `ConversionError` where a file's contents, of which transformers made `native`, have misspelt fields."""
    for part in ("vision_config", "text_config"):
        fields = content.get(part)
        if isinstance(fields, Mapping):
            _check_spelling(part, fields, type(getattr(native, part))().to_dict())


def _check_spelling(owner: str, given: Collection[str], known: Collection[str]):
    """Raise `ConversionError` where one of `given` is like a field of `known` that is not there: it would be ignored.

    Files have other fields too, of older releases of transformers.
    """
    missing = [name for name in known if name not in given]
    for name in given:
        meant = [] if name in known else difflib.get_close_matches(name, missing, n=1, cutoff=0.9)
        if meant:
            raise ConversionError(
                f"{owner}: there is a field {name}, which transformers ignores, and no {meant[0]}: rename it."
            )


def build_our_config(target: NativeTarget, native: PreTrainedConfig) -> PreTrainedConfig:
    """Build our configuration of the model that transformers' configuration `native` describes."""
    vision = target.vision.our_fields(native.vision_config)
    text = target.text.our_fields(native.text_config)
    if target.is_siglip:
        # transformers' SigLIP keeps its temperature and bias as vectors of one.
        fields, config_class = {"nonscalar_logit_scale": True}, OpenClipSiglipConfig
        projection_dim = native.text_config.projection_size
    else:
        # Its towers' own `projection_dim` counts where they stand alone.
        fields, config_class = target.model.our_fields(native), OpenClipConfig
        projection_dim = native.projection_dim
    vision_class, text_class = target.vision.config_table.config_class, target.text.config_table.config_class
    with failing_as(f"{CONFIG_NAME} does not describe a {target.name} that can be built"):
        return config_class(
            **{**fields, "projection_dim": projection_dim},
            vision_config=vision_class(**{**vision, "projection_dim": projection_dim}),
            text_config=text_class(**{**text, "projection_dim": projection_dim}),
        )


def _plan(target: NativeTarget, config: PreTrainedConfig, tensors: Mapping[str, torch.Tensor]) -> ConversionPlan:
    with failing_as(f"{CONFIG_NAME} does not describe a model that can be built"), torch.device("meta"):
        model = MODEL_CLASSES[config.model_type](config)
    table = (
        *target.vision.rename_table(config.vision_config),
        *target.text.rename_table(config.text_config),
        *target.model.rename_table(config),
    )
    dropped = {key: DROPPED[key] for key in tensors if key in DROPPED}
    kept = {key: tensor for key, tensor in tensors.items() if key not in dropped}
    return plan_tensors(model, kept, kept, table, dropped, {})


@torch.inference_mode()
def _reference(
    folder: Path, target: NativeTarget, plan: ConversionPlan, dtype: torch.dtype, required: bool
) -> tuple[Outputs | None, str]:
    """Outputs of transformers' own model with its tensors rounded to `dtype`; see `reference_outputs`."""
    model = getattr(transformers, target.name).from_pretrained(folder, dtype=dtype).float()
    return native_outputs(model, verification_inputs(plan.model.config)), f"transformers' {target.name}"


def _load_tokenizer(source: Source, target: NativeTarget, config: PreTrainedConfig) -> OpenClipTokenizer:
    folder, text = source.weights.parent, config.text_config
    text_cfg = TEXT_CONVERSIONS[text.model_type].config_table.invert(text)
    if not _has_clip_vocabulary(folder):
        text_cfg |= {"hf_tokenizer_name": folder.name}
        text_cfg |= {"tokenizer_kwargs": {"clean": _CLEAN[target.name]}} if target.name in _CLEAN else {}
    model_cfg = {"text_cfg": text_cfg, "init_logit_bias": config.logit_bias_init_value}
    with tempfile.TemporaryDirectory() as plain:
        files = _plain_tokenizer(folder, Path(plain)) if target.is_siglip else folder
        tokenizer = load_tokenizer(replace(source, model_cfg=model_cfg, tokenizer_folder=files))
    return cast(OpenClipTokenizer, tokenizer)  # as it is required


def _has_clip_vocabulary(folder: Path) -> bool:
    names = {native: ours for ours, native in NATIVE_TOKENS.items()}
    if (folder / "tokenizer.json").is_file():
        with failing_as(f"{folder / 'tokenizer.json'} cannot be read"):
            vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    elif (folder / "vocab.json").is_file():
        vocabulary = read_json(folder / "vocab.json")
    else:
        return _has_open_clips_tokenizer(folder)
    return {
        names.get(token, token): token_id for token, token_id in vocabulary.items()
    } == build_clip_bpe().get_vocab()


def _has_open_clips_tokenizer(folder: Path) -> bool:
    """Whether a folder without a tokenizer has open_clip's configuration, which names none but CLIP's."""
    if any((folder / name).is_file() for name in VOCABULARY_FILES) or not (folder / CONFIG_FILE).is_file():
        return False
    model_cfg = read_config(folder / CONFIG_FILE)["model_cfg"]
    check_model_cfg(model_cfg)
    return not text_fields_of(model_cfg).get("hf_tokenizer_name")


def _plain_tokenizer(folder: Path, plain: Path) -> Path:
    """`folder`, or `plain` with its tokenizer under a class that takes tokenizer.json where its own does not."""
    if not (folder / "tokenizer.json").is_file():
        return folder
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (plain / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (plain / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    return plain


def _image_settings(folder: Path, target: NativeTarget, config: PreTrainedConfig) -> dict[str, Any]:
    """Build the arguments of our image processor for the settings of transformers' in `folder`."""
    if (folder / IMAGE_PROCESSOR_NAME).is_file():
        cfg = read_json(folder / IMAGE_PROCESSOR_NAME)
    elif (folder / PROCESSOR_NAME).is_file():
        cfg = read_json(folder / PROCESSOR_NAME).get("image_processor") or {}
    elif (folder / CONFIG_FILE).is_file() and (preprocess_cfg := read_config(folder / CONFIG_FILE)["preprocess_cfg"]):
        return image_processor_settings(preprocess_cfg, config)
    else:
        raise ConversionError(
            f"{folder} has no image settings: put {IMAGE_PROCESSOR_NAME} there, or convert with "
            f"{argument('with_processor', False)}."
        )
    _check_spelling("the image settings", cfg, {*_IMAGE_SETTINGS, *_UNSTATED.get(target.name, {})})
    given = {name: cfg[name] for name in _IMAGE_SETTINGS if cfg.get(name) is not None}
    unstated = _UNSTATED.get(target.name, {})
    if takes_patches(config):
        return {**unstated, **{name: cfg[name] for name in unstated if cfg.get(name) is not None}, **given}
    side = config.vision_config.image_size
    expected = {"height": side, "width": side}
    size, crop = _size(cfg.get("size", side)), _size(cfg.get("crop_size", side))
    crops = cfg.get("do_center_crop", "crop_size" in cfg)
    if size in ({"shortest_edge": side}, side) and crops and crop in (expected, side):
        resize_mode = "shortest"
    elif size in (expected, side) and (not crops or crop in (expected, side)):
        resize_mode = "squash"
    else:
        raise ConversionError(
            f"The image settings in {folder} (size {size}, {f'crop {crop}' if crops else 'no crop'}) are not one of "
            f"ours for a model of {side} x {side} pixels: convert with {argument('with_processor', False)}."
        )
    return {"size": expected, "resize_mode": resize_mode, **unstated, **given}


def _size(size: int | Mapping[str, int]) -> int | dict[str, int]:
    return size if isinstance(size, int) else {key: value for key, value in size.items() if value is not None}
