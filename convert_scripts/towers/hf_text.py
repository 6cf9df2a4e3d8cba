"""Hugging Face text towers: fields and tensor names (open_clip: `CLIPTextCfg`, `HFTextEncoder` in `hf_model.py`).

The configurations of the encoders that open_clip's own architectures name ship as data, so that a conversion needs no
network. The data holds the differences from the defaults of transformers' configuration classes.
"""

from dataclasses import fields
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from ...configuration.configuration_hf_text import (
    ENCODER_MODEL_TYPES,
    POOL_TYPES,
    HfTextConfig,
    encoder_config,
    encoder_fields,
)
from ..common import ConversionError, data_table, failing_as, read_json, user_path
from ..mapping.config_table import Cfg, ConfigTable
from ..mapping.state_dict import Rename, Table
from ..sources.hub import download_file
from .base import SPECIAL_IDS, TEXT_DEFAULTS, TOKENIZER_FIELDS, TOKENS_RETURNED, Intermediate, TowerConversion


CONFIG_FILE = "config.json"
# open_clip's `arch_dict` in `hf_configs.py`. It decides whether BERT has its pooling layer before it looks here, and
# leaves it out: its `cls_pooler` then is ours of another name.
_DEFAULT_POOLERS = {"bert": "cls_last_hidden_state_pooler", "m2m_100": "cls_pooler"}
_OF_OPEN_CLIP_4 = ("modernbert",)
_PROJ_TYPES = {"linear": "linear", "mlp": "mlp", None: "none"}


def find_encoder_config(name: str) -> PreTrainedConfig:
    """Find transformers' configuration of an encoder.

    Args:
        name: open_clip's `hf_model_name`: one of those that ship, a local folder with a `config.json`, or a Hub id.

    Raises:
        ConversionError: there is no configuration, or it is not one of an encoder that open_clip can use.
    """
    known = data_table("hf_text_configs")
    if name in known:
        return encoder_config(known[name])
    folder = user_path(name)
    if not folder.is_dir():
        try:
            folder = download_file(name, CONFIG_FILE).parent
        except ConversionError as error:
            raise ConversionError(
                f"text_cfg: the configuration of hf_model_name {name!r} is needed. {error}\nOr give, as "
                f"hf_model_name, a folder that holds its {CONFIG_FILE}; known without one are {', '.join(known)}."
            ) from error
    try:
        given = read_json(folder / CONFIG_FILE)
    except ConversionError as error:
        raise ConversionError(f"text_cfg: {CONFIG_FILE} of hf_model_name {name!r} cannot be read: {error}") from error
    model_type = given.get("model_type", "")
    if not isinstance(model_type, str) or model_type not in ENCODER_MODEL_TYPES:
        raise ConversionError(
            f"text_cfg: hf_model_name {name!r} is a {model_type!r}; open_clip has text towers of "
            f"{', '.join(ENCODER_MODEL_TYPES)}."
        )
    described = {name: value for name, value in given.items() if name in _fields_of_model(model_type)}
    return encoder_config({"model_type": model_type, **described})


def _fields_of_model(model_type: str) -> set[str]:
    """Fields of a configuration that describe the model, without those about files, code and tasks."""
    upstream = {field.name for field in fields(PreTrainedConfig)}
    return encoder_fields(model_type) - upstream


def _hf_config(cfg: Cfg) -> PreTrainedConfig:
    """The encoder's configuration with the changes of `hf_model_config`, made one by one as open_clip does."""
    config, changes = find_encoder_config(cfg["hf_model_name"]), cfg["hf_model_config"] or {}
    unknown = sorted(map(str, changes.keys() - _fields_of_model(config.model_type)))
    if unknown:
        raise ConversionError(
            f"text_cfg: hf_model_config may hold fields of a {config.model_type} encoder, got {', '.join(unknown)}."
        )
    with failing_as(f"text_cfg: hf_model_config does not describe a {config.model_type} encoder"):
        for name, value in changes.items():
            setattr(config, name, value)
    return config


def _hf_model_config(config: PreTrainedConfig) -> dict[str, Any] | None:
    """Return the encoder's fields that differ from those at `hf_model_name`; `None` for encoders of open_clip 3."""
    if config.hf_config.model_type not in _OF_OPEN_CLIP_4:
        return None
    ours, named = config.hf_config.to_dict(), find_encoder_config(_hf_model_name(config)).to_dict()
    names = _fields_of_model(config.hf_config.model_type)
    return {name: ours[name] for name in sorted(names & ours.keys()) if ours[name] != named.get(name)} or None


def _pool_type(cfg: Cfg) -> str:
    pooler = cfg["hf_pooler_type"]
    if pooler is None:
        pooler = _DEFAULT_POOLERS.get(find_encoder_config(cfg["hf_model_name"]).model_type, "mean_pooler")
    if pooler not in POOL_TYPES:
        raise ConversionError(f"text_cfg: hf_pooler_type must be one of {', '.join(POOL_TYPES)}, got {pooler!r}.")
    return pooler


def _proj_type(cfg: Cfg) -> str:
    if cfg["hf_proj_type"] not in _PROJ_TYPES:
        raise ConversionError(f"text_cfg: hf_proj_type must be linear, mlp or null, got {cfg['hf_proj_type']!r}.")
    return _PROJ_TYPES[cfg["hf_proj_type"]]


def _hf_model_name(config: PreTrainedConfig) -> str:
    if config.hf_model_name is None:
        raise ConversionError(
            "open_clip takes the configuration of a Hugging Face text tower from the Hub: set hf_model_name in the "
            "text_config of config.json to the Hub id, or to a folder, whose config.json describes its encoder."
        )
    return config.hf_model_name


_READ = {"context_length", "hf_model_name", "hf_model_config", "hf_proj_type", "hf_pooler_type"}
_REFUSED = {"text_arch": "with an hf_model_name, the text tower is an encoder of transformers"}

_CONFIG = ConfigTable(
    name="text_cfg",
    config_class=HfTextConfig,
    selects=lambda cfg: bool(cfg.get("hf_model_name")),
    defaults=TEXT_DEFAULTS,
    fields={
        "hf_config": _hf_config,
        "hf_model_name": "hf_model_name",
        "max_position_embeddings": "context_length",
        "projection_dim": "embed_dim",
        "proj_type": _proj_type,
        "pool_type": _pool_type,
    },
    without_effect={
        **dict.fromkeys(
            TEXT_DEFAULTS.keys() - _READ - _REFUSED.keys(), "read for open_clip's own text transformer only"
        ),
        **TOKENS_RETURNED,
        **TOKENIZER_FIELDS,
        **SPECIAL_IDS,
        "hf_model_pretrained": "all weights come from the checkpoint",
        "pad_id": "the encoder's is used",
        "vocab_size": "the encoder's is used; read by `build_config` for CoCa's decoder",
    },
    refused=_REFUSED,
    inverse={
        "hf_model_name": _hf_model_name,
        "hf_model_config": _hf_model_config,
        "hf_proj_type": lambda config: next(k for k, v in _PROJ_TYPES.items() if v == config.proj_type),
        "hf_pooler_type": lambda config: config.pool_type,
    },
)

_TABLE: Table = (
    Rename("transformer.{rest}", "hf_model.{rest}"),
    Rename("proj.{rest}", "projection.{rest}"),
)

_INTERMEDIATES = (
    Intermediate("tokens", "hf_model.embed_tokens", "transformer.embed_tokens"),
    Intermediate("embeddings", "hf_model.embeddings", "transformer.embeddings"),
    Intermediate("module {blocks}", "hf_model.{blocks}", "transformer.{blocks}"),
    Intermediate("encoder", "hf_model", "transformer"),
)

HF_TEXT = TowerConversion(_CONFIG, lambda config: _TABLE, intermediates=_INTERMEDIATES)
