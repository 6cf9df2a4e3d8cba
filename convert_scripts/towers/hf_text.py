"""Hugging Face text towers: fields and tensor names (open_clip: `CLIPTextCfg`, `HFTextEncoder` in `hf_model.py`).

The configurations of the encoders that open_clip's own architectures name ship as data, so that a conversion needs no
network. The data holds the differences from the defaults of transformers' configuration classes.
"""

from dataclasses import fields
from typing import Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto import AutoConfig

from ...configuration.configuration_hf_text import ENCODER_MODEL_TYPES, POOL_TYPES, HfTextConfig, encoder_config
from ..common import ConversionError, data_table, read_json, user_path
from ..mapping.config_table import Cfg, ConfigTable
from ..mapping.state_dict import Rename, Table
from ..sources.hub import download_file
from .base import EOS_ID, TEXT_DEFAULTS, TOKENIZER_FIELDS, TOKENS_RETURNED, Intermediate, TowerConversion


CONFIG_FILE = "config.json"
# open_clip's `arch_dict` in `hf_configs.py`. It decides whether BERT has its pooling layer before it looks here, and
# leaves it out: its `cls_pooler` then is ours of another name.
_DEFAULT_POOLERS = {"bert": "cls_last_hidden_state_pooler", "m2m_100": "cls_pooler"}
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
    return encoder_config({"model_type": model_type, **_known_fields(model_type, given)})


def _known_fields(model_type: str, given: dict[str, Any]) -> dict[str, Any]:
    """Fields of a configuration that describe the model, without those about files, code and tasks."""
    config_class = type(AutoConfig.for_model(model_type))
    upstream = {field.name for field in fields(PreTrainedConfig)}
    names = {field.name for field in fields(config_class)} - upstream | config_class.attribute_map.keys()
    return {key: value for key, value in given.items() if key in names}


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


_READ = {"context_length", "hf_model_name", "hf_proj_type", "hf_pooler_type"}

_CONFIG = ConfigTable(
    name="text_cfg",
    config_class=HfTextConfig,
    selects=lambda cfg: bool(cfg.get("hf_model_name")),
    defaults=TEXT_DEFAULTS,
    fields={
        "hf_config": lambda cfg: find_encoder_config(cfg["hf_model_name"]),
        "hf_model_name": "hf_model_name",
        "max_position_embeddings": "context_length",
        "projection_dim": "embed_dim",
        "proj_type": _proj_type,
        "pool_type": _pool_type,
    },
    without_effect={
        **dict.fromkeys(TEXT_DEFAULTS.keys() - _READ, "read for open_clip's own text transformer only"),
        **TOKENS_RETURNED,
        **TOKENIZER_FIELDS,
        **EOS_ID,
        "hf_model_pretrained": "all weights come from the checkpoint",
        "pad_id": "the encoder's is used",
        "vocab_size": "the encoder's is used; read by `build_config` for CoCa's decoder",
    },
    inverse={
        "hf_model_name": _hf_model_name,
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
