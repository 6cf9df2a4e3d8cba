"""Hugging Face text towers: fields and tensor names (open_clip: `CLIPTextCfg`, `HFTextEncoder` in `hf_model.py`)."""

from transformers.configuration_utils import PreTrainedConfig

from ...configuration.configuration_hf_text import POOL_TYPES, HfTextConfig
from ..common import ConversionError
from ..hf_encoders import find_encoder_config
from ..mapping.config_table import Cfg, ConfigTable
from ..mapping.state_dict import Rename, Table
from ..open_clip_cfg import EOS_ID, TEXT_DEFAULTS, TOKENIZER_FIELDS, TOKENS_RETURNED
from .base import Intermediate, TowerConversion


# open_clip's `arch_dict` in `hf_configs.py`. It decides whether BERT has its pooling layer before it looks here, and
# leaves it out: what its `cls_pooler` then does has another name.
_DEFAULT_POOLERS = {"bert": "cls_last_hidden_state_pooler", "m2m_100": "cls_pooler"}
_PROJ_TYPES = {"linear": "linear", "mlp": "mlp", None: "none"}


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
