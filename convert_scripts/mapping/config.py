"""open_clip's `model_cfg` and the configuration of our model, in both directions (open_clip: `create_model`,
`model_configs/`)."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from ...configuration.configuration_coca import CoCaConfig
from ...configuration.configuration_mammut import MaMMUTConfig
from ...configuration.configuration_open_clip import OpenClipConfig, OpenClipSiglipConfig
from ..common import ConversionError, listing, plain
from ..towers import mammut_text
from ..towers.base import TowerConversion
from ..towers.coca_decoder import DECODERS
from ..towers.tables import TEXT_CONVERSIONS, TEXT_TOWERS, VISION_CONVERSIONS, VISION_TOWERS
from .config_table import FIELD_KINDS, REQUIRED, Cfg, ConfigTable, text_fields_of


# Parts of open_clip's models of other kinds -> what these are.
OTHER_MODELS = {
    "audio_cfg": "a CLAP, which compares audio with texts; models of images and texts alone are supported",
    "genlip_cfg": "a GenLIP, one generative transformer over images and texts, which has no towers to convert",
    "genlap_cfg": "a GenLAP, one generative transformer over audio and texts, which has no towers to convert",
    "audio_naflex_cfg": "of a GenLAP, a generative model of audio; models of images and texts alone are supported",
}

MODEL = ConfigTable(
    name="model_cfg",
    defaults={
        "embed_dim": REQUIRED,
        "vision_cfg": REQUIRED,
        "text_cfg": None,
        "multimodal_cfg": None,
        "custom_text": False,
        "quick_gelu": False,
        "init_logit_scale": math.log(1 / 0.07),
        "init_logit_bias": None,
        "nonscalar_logit_scale": False,
        "pad_id": 0,
        "cast_dtype": None,
        "output_dict": False,
        **dict.fromkeys(OTHER_MODELS),
    },
    fields={
        "projection_dim": "embed_dim",
        "logit_scale_init_value": "init_logit_scale",
        "logit_bias_init_value": "init_logit_bias",
        "nonscalar_logit_scale": "nonscalar_logit_scale",
    },
    without_effect={
        **dict.fromkeys(
            ("vision_cfg", "text_cfg", "multimodal_cfg", "custom_text", "pad_id"), "read by `build_config`"
        ),
        "quick_gelu": "handed down to the towers",
        "cast_dtype": "dtype at load time",
        "output_dict": "our models return output objects",
    },
    refused={name: f"the model is {what}" for name, what in OTHER_MODELS.items()},
    inverse={
        "quick_gelu": lambda config: any(
            getattr(getattr(config, part), "hidden_act", None) == "quick_gelu" for part in config.sub_configs
        ),
        "pad_id": lambda config: getattr(config, "pad_token_id", None) or 0,
    },
)


@dataclass(frozen=True)
class TokenIds:
    """Ids of a tokenizer's special tokens; `None` where it has no such token."""

    bos: int | None = None
    eos: int | None = None
    pad: int | None = None

    @classmethod
    def of_config(cls, config: PreTrainedConfig) -> "TokenIds":
        """Those in the configuration of one of our models."""
        text = config.text_config
        return cls(text.bos_token_id, text.eos_token_id, getattr(config, "pad_token_id", None))


# open_clip's byte pair encoding, the tokenizer of every configuration that names no other.
CLIP_VOCAB_SIZE = 49408
CLIP_TOKEN_IDS = TokenIds(bos=49406, eos=49407, pad=0)


def default_token_ids(text_cfg: Cfg) -> TokenIds:
    """Ids known without reading a tokenizer: those that a modern text tower's fields state, CLIP's where another one
    has CLIP's vocabulary, else none."""
    if text_cfg.get("text_arch") == "modern":
        return TokenIds(text_cfg.get("bos_id"), text_cfg.get("eos_id"), text_cfg.get("pad_id", 0))
    uses_clip_tokenizer = not text_cfg.get("hf_tokenizer_name") and not text_cfg.get("hf_model_name")
    if uses_clip_tokenizer and text_cfg.get("vocab_size", CLIP_VOCAB_SIZE) >= CLIP_VOCAB_SIZE:
        return CLIP_TOKEN_IDS
    return TokenIds()


def build_config(model_cfg: Cfg, token_ids: TokenIds | None = None) -> PreTrainedConfig:
    """Build the configuration of the model that open_clip builds from `model_cfg`.

    Args:
        model_cfg: contents of a file in open_clip's `model_configs/`, or of `model_cfg` in `open_clip_config.json`.
        token_ids: ids of the checkpoint's tokenizer, by default `default_token_ids`.

    Returns:
        `CoCaConfig` with a `multimodal_cfg`; `MaMMUTConfig` where that is there alone, or `text_cfg` is of LAION's
        MaMMUT; `OpenClipSiglipConfig` with an `init_logit_bias`, else `OpenClipConfig`.

    Raises:
        ConversionError: unknown fields, parts that are not supported, or values that do not fit together.
    """
    try:
        return _build_config(model_cfg, token_ids)
    except ConversionError:
        raise
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise ConversionError(f"model_cfg does not describe a model that can be built: {error}") from error


def check_model_cfg(model_cfg: Cfg):
    """Raise `ConversionError` where fields of `model_cfg` are not known, or of another kind than open_clip's."""
    cfg = MODEL.complete(model_cfg)
    _select(VISION_TOWERS, "vision_cfg", cfg).complete(cfg["vision_cfg"])
    text, text_cfg = _text_part(model_cfg, cfg)
    text.complete(text_cfg)
    if cfg["multimodal_cfg"] is not None and text_cfg is not cfg["multimodal_cfg"]:
        _select_table(DECODERS, "multimodal_cfg", cfg).complete(cfg["multimodal_cfg"])


def _text_part(model_cfg: Cfg, cfg: Cfg) -> tuple[ConfigTable, Cfg]:
    """The table of the text tower's fields, and these: open_clip 4 keeps those of a MaMMUT in `multimodal_cfg`."""
    if "text_cfg" in model_cfg:
        return _select(TEXT_TOWERS, "text_cfg", cfg), cfg["text_cfg"]
    if cfg["multimodal_cfg"] is None:
        raise ConversionError("model_cfg lacks text_cfg.")
    forms = [form.text for form in mammut_text.FORMS if form.text.name == "multimodal_cfg"]
    return _select_table(forms, "multimodal_cfg", cfg), cfg["multimodal_cfg"]


def _build_config(model_cfg: Cfg, token_ids: TokenIds | None) -> PreTrainedConfig:
    cfg = MODEL.complete(model_cfg)
    vision, (text, text_cfg) = _select(VISION_TOWERS, "vision_cfg", cfg), _text_part(model_cfg, cfg)
    _check_custom_text(cfg)
    handed_down = {"quick_gelu": cfg["quick_gelu"], "embed_dim": cfg["embed_dim"]}
    vision_fields = vision.translate(cfg["vision_cfg"], **handed_down)
    text_fields = text.translate(text_cfg, **handed_down)
    token_ids = default_token_ids(text_cfg) if token_ids is None else token_ids
    # With this pooling open_clip looks for eos_id, whatever the tokenizer.
    eos_id = text.complete(text_cfg)["eos_id"] if text_fields.get("pool_type") == "eos" else token_ids.eos
    text_fields = {"bos_token_id": token_ids.bos, "eos_token_id": eos_id, **text_fields}
    model_fields = {
        **MODEL.translate(model_cfg),
        "vision_config": vision.config_class(**vision_fields),
        "text_config": text.config_class(**text_fields),
    }
    form = next((form for form in mammut_text.FORMS if form.text is text), None)
    if form is not None:
        return MaMMUTConfig(
            **model_fields,
            **form.whole_fields(text_cfg),
            multimodal_config=form.decoder(text_cfg, **handed_down),
            **_caption_ids(model_cfg, text.complete(text_cfg), token_ids),
        )
    if cfg["multimodal_cfg"] is None:
        return (OpenClipConfig if cfg["init_logit_bias"] is None else OpenClipSiglipConfig)(**model_fields)
    decoder = _select_table(DECODERS, "multimodal_cfg", cfg)
    decoder_fields = decoder.translate(cfg["multimodal_cfg"], **handed_down)
    # Also with a Hugging Face text tower, whose own vocabulary may be larger.
    vocab_size = text.complete(text_cfg)["vocab_size"]
    return CoCaConfig(
        **model_fields,
        multimodal_config=decoder.config_class(**decoder_fields, vocab_size=vocab_size),
        **_caption_ids(model_cfg, text.complete(text_cfg), token_ids),
    )


def _caption_ids(model_cfg: Cfg, text_cfg: Cfg, token_ids: TokenIds) -> dict[str, int | None]:
    """Ids of a captioner's special tokens."""
    pad_token_id = token_ids.pad
    if "pad_id" in model_cfg or (pad_token_id is None and not text_cfg.get("hf_model_name")):
        # open_clip 4 has no field of the model for it: captions are padded as the text tower's texts.
        pad_token_id = model_cfg.get("pad_id", text_cfg["pad_id"])
    return {"bos_token_id": token_ids.bos, "eos_token_id": token_ids.eos, "pad_token_id": pad_token_id}


def _check_custom_text(cfg: Cfg):
    text_cfg = cfg["text_cfg"]
    if (
        cfg["custom_text"]
        or text_cfg is None
        or text_cfg.get("hf_model_name")
        or text_cfg.get("text_arch") == "modern"
    ):
        return
    if cfg["multimodal_cfg"] is not None:
        raise ConversionError(
            'model_cfg has a multimodal_cfg but not "custom_text": true: open_clip would build a CLIP, which takes no '
            "multimodal_cfg. Set custom_text for a CoCa, or remove multimodal_cfg for a CLIP."
        )
    for field in ("embed_cls", "does_full_decoding"):
        if text_cfg.get(field):
            raise ConversionError(
                f'text_cfg has {field} but model_cfg has not "custom_text": true: open_clip would build a CLIP, which '
                f"cannot run such a text tower. Set custom_text, or remove {field}."
            )


def _select(towers: Sequence[TowerConversion], part: str, cfg: Cfg) -> ConfigTable:
    return _select_table([tower.config_table for tower in towers], part, cfg)


def _select_table(tables: Sequence[ConfigTable], part: str, cfg: Cfg) -> ConfigTable:
    cfg = cfg[part]
    if not isinstance(cfg, Mapping):
        raise ConversionError(f"{part} must be a JSON object, got {cfg!r}.")
    for name in ("hf_model_name", "text_arch", "timm_model_name", "timm_pool"):  # by which towers are selected
        if cfg.get(name) is not None:
            FIELD_KINDS[name].check(part, name, cfg[name])
    return next(table for table in tables if table.selects(cfg))


# Our fields that are no part of an open_clip model -> why.
NOT_IN_MODEL_CFG = {
    "initializer_range": "initialisation of new weights",
    "caption_loss_weight": "chosen for a training run",
    "contrastive_loss_weight": "chosen for a training run",
    "bos_token_id": "the tokenizer's",
    "eos_token_id": "the tokenizer's, or `eos_id`",
    "use_projection": "told by the weights",
}
_UPSTREAM = {field.name for field in fields(PreTrainedConfig)} - {"pad_token_id"}


def build_model_cfg(config: PreTrainedConfig, tokenizer_cfg: Cfg | None = None) -> dict[str, Any]:
    """Build open_clip's `model_cfg` of the model that `config` describes, without fields at open_clip's defaults.

    Args:
        config: configuration of a dual model or of a captioner.
        tokenizer_cfg: the fields of `text_cfg` that choose the tokenizer, such as `hf_tokenizer_name`.

    Raises:
        ConversionError: settings that open_clip has no field for; all of them are listed.
    """
    cfg = {
        **MODEL.invert(config),
        "vision_cfg": VISION_CONVERSIONS[config.vision_config.model_type].config_table.invert(config.vision_config),
        **_DECODER_PARTS.get(config.model_type, _text_parts)(config),
    }
    text_fields_of(cfg).update(tokenizer_cfg or {})
    if "multimodal_config" in config.sub_configs:
        # open_clip's captioners unpack the outputs of their towers.
        cfg["vision_cfg"]["output_tokens"] = text_fields_of(cfg)["output_tokens"] = True
    if _is_custom_text(cfg):
        cfg["custom_text"] = True
    cfg = json.loads(json.dumps(cfg))  # tuples become lists, as they will in the file
    _check_nothing_is_lost(config, cfg)
    return cfg


def _text_parts(config: PreTrainedConfig) -> dict[str, Any]:
    return {"text_cfg": TEXT_CONVERSIONS[config.text_config.model_type].config_table.invert(config.text_config)}


def _coca_parts(config: PreTrainedConfig) -> dict[str, Any]:
    decoder = config.multimodal_config
    table = next(table for table in DECODERS if table.config_class.model_type == decoder.model_type)
    parts = {**_text_parts(config), "multimodal_cfg": table.invert(decoder)}
    # open_clip's decoder has no vocabulary of its own: it takes that of the text tower's fields.
    parts["text_cfg"]["vocab_size"] = config.multimodal_config.vocab_size
    return parts


def _mammut_parts(config: PreTrainedConfig) -> dict[str, Any]:
    form = mammut_text.form_of(config.text_config)
    return {form.text.name: form.invert(config)}


# `model_type` of a captioner -> the parts of its `model_cfg` that describe texts and captions.
_DECODER_PARTS = {CoCaConfig.model_type: _coca_parts, MaMMUTConfig.model_type: _mammut_parts}


def _is_custom_text(cfg: Cfg) -> bool:
    """Whether open_clip keeps the text tower under `text.`: where it must, and where its own files do by habit."""
    return (
        "multimodal_cfg" in cfg
        or bool({"embed_cls", "does_full_decoding"} & cfg["text_cfg"].keys())
        or "init_logit_bias" in cfg
        or "timm_model_name" in cfg["vision_cfg"]
        or "text_arch" in cfg["text_cfg"]
    )


def _check_nothing_is_lost(config: PreTrainedConfig, cfg: Cfg):
    """Translate `cfg` back: a field that does not come back has none in open_clip."""
    back = build_config(cfg, TokenIds.of_config(config))
    lost = [f"{name} = {ours!r} (open_clip's model has {theirs!r})" for name, ours, theirs in _unequal(config, back)]
    if lost:
        raise ConversionError(
            f"open_clip cannot express these settings of the model:{listing(lost)}\n"
            "Change them in config.json where they make no difference to what you need, such as training alone."
        )


def _unequal(ours: PreTrainedConfig, back: PreTrainedConfig, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    names = {"model_type": None} | dict.fromkeys(field.name for field in fields(ours) if field.name not in _UPSTREAM)
    for name in names:
        first, second = getattr(ours, name), getattr(back, name, None)
        if name in ours.sub_configs:
            yield from _unequal(first, second, f"{prefix}{name}.")
        elif name not in NOT_IN_MODEL_CFG and plain(first) != plain(second):
            yield prefix + name, first, second
