"""Configuration of the Hugging Face text tower (open_clip: `HFTextEncoder` in `hf_model.py`)."""

from dataclasses import fields

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto import AutoConfig

from .configuration_common import (
    FIELD_RANGES,
    OpenClipPreTrainedConfig,
    check_activation,
    check_choice,
    check_range,
    strict,
)


# Encoders that the tower can be made of, by transformers' `model_type`: open_clip's (`arch_dict` in `hf_configs.py`),
# and T5, which differs from mT5 in name only.
ENCODER_MODEL_TYPES = ("roberta", "xlm-roberta", "bert", "mt5", "t5", "m2m_100", "modernbert")
# Those whose transformers model has a pooling layer, a Linear with tanh on the first token.
POOLING_LAYER_MODEL_TYPES = ("roberta", "xlm-roberta", "bert")

# Their fields that name an activation.
ACTIVATION_FIELDS = ("hidden_act", "hidden_activation", "activation_function", "dense_act_fn")
# Names that transformers' configurations had, and those of encoders on the Hub still have, for what is in others now.
_FORMER_FIELDS = {"modernbert": {"global_attn_every_n_layers", "global_rope_theta", "local_rope_theta"}}

POOL_TYPES = ("mean_pooler", "max_pooler", "cls_pooler", "cls_last_hidden_state_pooler")
PROJ_TYPES = ("linear", "mlp", "none")

_ROBERTA_BASE = {
    "model_type": "roberta",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
}


def encoder_fields(model_type: str) -> set[str]:
    """Fields that transformers' configuration of an encoder takes, by any of their names."""
    config_class = type(AutoConfig.for_model(model_type))
    names = {field.name for field in fields(config_class)} | config_class.attribute_map.keys()
    return names | _FORMER_FIELDS.get(model_type, set())


def encoder_config(config: PreTrainedConfig | dict) -> PreTrainedConfig:
    """The configuration object of transformers for an encoder, or for the fields of one; unknown ones are left out.

    Raises:
        ValueError: `model_type` is missing, or not one of `ENCODER_MODEL_TYPES`.
    """
    model_type = config.get("model_type") if isinstance(config, dict) else config.model_type
    if not isinstance(model_type, str) or model_type not in ENCODER_MODEL_TYPES:
        raise ValueError(f"hf_config: model_type must be one of {', '.join(ENCODER_MODEL_TYPES)}, got {model_type!r}.")
    if not isinstance(config, dict):
        return config
    config_class, names = type(AutoConfig.for_model(model_type)), encoder_fields(model_type)
    try:
        return config_class(**{name: value for name, value in config.items() if name in names})
    except Exception as error:  # transformers' configurations take what they are given apart
        raise ValueError(f"hf_config does not describe a {model_type} encoder: {error.__cause__ or error}") from error


def _check_encoder(config: PreTrainedConfig):
    for name, value in vars(config).items():
        if name in FIELD_RANGES:
            check_range("hf_config", name, value)
    for name in ACTIVATION_FIELDS:
        if hasattr(config, name):
            check_activation(config, name)


@strict
class HfTextConfig(OpenClipPreTrainedConfig):
    r"""Configuration of [`HfTextModel`], an encoder of transformers with a pooler and a projection.

    The defaults are those of open_clip's `roberta-ViT-B-32`.

    Args:
        hf_config: configuration of the encoder, or its fields; `model_type` is `"roberta"`, `"xlm-roberta"`, `"bert"`,
            `"mt5"`, `"t5"`, `"m2m_100"` (also NLLB) or `"modernbert"`. Of an encoder-decoder, the encoder alone is
            built.
        hf_model_name: where open_clip takes the encoder's configuration from; read to convert back only.
        max_position_embeddings: longest text in tokens, at most what the encoder has positions for; open_clip:
            `context_length`.
        projection_dim: width of the embedding shared with the vision tower; open_clip: `embed_dim`.
        proj_type: `"linear"`, `"mlp"` (two layers with GELU between them), both without a bias, or `"none"` for an
            embedding of the encoder's width; open_clip: `hf_proj_type`.
        pool_type: `"mean_pooler"` and `"max_pooler"` over the tokens that are no padding, `"cls_pooler"` (the first
            token, through the encoder's pooling layer if it has one; the tower's tokens are then the others), or
            `"cls_last_hidden_state_pooler"` (the first token as it is); open_clip: `hf_pooler_type`.
        pad_token_id: id of padding, the encoder's.
        bos_token_id: id of the start of a text, by default the encoder's.
        eos_token_id: id of the end of a text, by default the encoder's.
        initializer_range: standard deviation of the normal initialisation of the projection.
    """

    model_type = "open_clip_hf_text"
    base_config_key = "text_config"
    sub_configs = {"hf_config": AutoConfig}

    hf_config: dict | PreTrainedConfig | None = None
    hf_model_name: str | None = None
    max_position_embeddings: int = 77
    projection_dim: int = 512
    proj_type: str = "mlp"
    pool_type: str = "mean_pooler"
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    initializer_range: float = 0.02

    # Read by CoCa: each token sees all others, so that captions cannot be continued from a cache.
    is_causal = False

    def __post_init__(self, **kwargs):
        self.hf_config = encoder_config(_ROBERTA_BASE if self.hf_config is None else self.hf_config)
        _check_encoder(self.hf_config)
        self.hf_config.use_cache = False
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(self.hf_config, name, None))
        super().__post_init__(**kwargs)

    @property
    def has_pooling_layer(self) -> bool:
        """Whether the encoder is built with its pooling layer (open_clip: `uses_transformer_pooler`)."""
        return self.pool_type == "cls_pooler" and self.hf_config.model_type in POOLING_LAYER_MODEL_TYPES

    @property
    def token_dim(self) -> int:
        """Width of the tower's `last_hidden_state`."""
        return self.hidden_size

    @property
    def encoder_positions(self) -> int | None:
        """Number of positions that the encoder has learned, `None` where it takes texts of any length."""
        encoder = self.hf_config
        match encoder.model_type:
            case "bert":
                return encoder.max_position_embeddings
            case "roberta" | "xlm-roberta":  # count from behind the padding id
                return encoder.max_position_embeddings - encoder.pad_token_id - 1
        return None

    @property
    def hidden_size(self) -> int:
        return self.hf_config.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        return self.hf_config.num_hidden_layers

    @property
    def num_attention_heads(self) -> int:
        return self.hf_config.num_attention_heads

    @property
    def vocab_size(self) -> int:
        return self.hf_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, vocab_size: int):
        self.hf_config.vocab_size = vocab_size

    def validate_architecture(self):
        """Raise `ValueError` where the fields describe a tower that cannot be built."""
        check_choice(self, "pool_type", POOL_TYPES)
        check_choice(self, "proj_type", PROJ_TYPES)
        if self.pad_token_id is None or self.pad_token_id != self.hf_config.pad_token_id:
            raise ValueError(
                "HfTextConfig: padding is known by its id, which must be the encoder's, got pad_token_id = "
                f"{self.pad_token_id} and hf_config.pad_token_id = {self.hf_config.pad_token_id}."
            )
        positions = self.encoder_positions
        if positions is not None and self.max_position_embeddings > positions:
            raise ValueError(
                f"HfTextConfig: max_position_embeddings ({self.max_position_embeddings}) exceeds the {positions} "
                "positions of the encoder."
            )
        if self.proj_type == "none" and self.projection_dim != self.token_dim:
            raise ValueError(
                f"HfTextConfig: without a projection, projection_dim ({self.projection_dim}) must equal the encoder's "
                f"hidden_size ({self.token_dim})."
            )


__all__ = ["HfTextConfig"]
