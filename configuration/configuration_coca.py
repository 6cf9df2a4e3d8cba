"""Configurations of CoCa and of its multimodal decoder (open_clip: `coca_model.py`)."""

from typing import cast

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto import AutoConfig

from .configuration_captioning import CaptioningConfig
from .configuration_common import OpenClipTransformerConfig, strict
from .configuration_modern_decoder import CoCaModernDecoderConfig
from .configuration_towers import tower_config


@strict
class CoCaDecoderConfig(OpenClipTransformerConfig):
    r"""Configuration of CoCa's multimodal decoder (open_clip: `MultimodalTransformer`, `MultimodalCfg`).

    Takes the fields of [`OpenClipTransformerConfig`] and these. open_clip ignores `mlp_ratio`, `norm_kwargs` and
    `act_kwargs` of a `multimodal_cfg`: its MLPs are four times as wide as `hidden_size` and its epsilon is 1e-5.

    Args:
        vocab_size: number of token ids predicted.
        max_position_embeddings: longest text in tokens; open_clip: `context_length`.
    """

    model_type = "open_clip_coca_decoder"
    base_config_key = "multimodal_config"

    vocab_size: int = 49408
    max_position_embeddings: int = 76


_DECODERS = {config.model_type: config for config in (CoCaDecoderConfig, CoCaModernDecoderConfig)}


@strict
class CoCaConfig(CaptioningConfig):
    r"""Configuration of [`CoCaModel`] and [`CoCaForConditionalGeneration`] (https://arxiv.org/abs/2205.01917).

    Takes the fields of [`CaptioningConfig`] and this one. The causal stack is the text tower's layers followed by the
    decoder's.

    Args:
        multimodal_config: configuration of the multimodal decoder, or its fields; `model_type` selects the class;
            open_clip: `multimodal_cfg`.
    """

    model_type = "open_clip_coca"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig, "multimodal_config": AutoConfig}

    multimodal_config: dict | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs):
        if self.text_config is None:
            self.text_config = {"embed_cls": True, "max_position_embeddings": 76}
        if self.vision_config is None:
            self.vision_config = {"attentional_pool": True}
        self.multimodal_config = tower_config(self.multimodal_config, _DECODERS, "multimodal_config")
        super().__post_init__(**kwargs)

    def get_text_config(self, decoder=None, encoder=None) -> PreTrainedConfig:
        """The decoder's configuration, whose layers' attentions and hidden states CoCa's outputs hold.

        With `decoder=True` this configuration itself, the whole causal stack, for which `generate` sizes its cache.
        """
        return self if decoder else cast(PreTrainedConfig, self.multimodal_config)

    @property
    def cache_obstacle(self) -> str | None:
        if not self.text_config.is_causal:
            return "is bidirectional"
        return "has register tokens" if getattr(self.text_config, "num_register_tokens", 0) else None

    def layer_config(self, index: int) -> PreTrainedConfig:
        in_text_tower = index < self.text_config.num_hidden_layers
        return self.text_config if in_text_tower else self.multimodal_config

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the causal stack: the text tower's and the decoder's."""
        return self.text_config.num_hidden_layers + self.multimodal_config.num_hidden_layers

    @property
    def max_position_embeddings(self) -> int:
        """Longest text in tokens that both the text tower and the decoder take."""
        return min(self.text_config.max_position_embeddings, self.multimodal_config.max_position_embeddings)

    @property
    def vocab_size(self) -> int:
        return self.multimodal_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, vocab_size: int):
        self.text_config.vocab_size = self.multimodal_config.vocab_size = vocab_size

    def validate_architecture(self):
        super().validate_architecture()
        if getattr(self.text_config, "pool_type", None) == "cls_pooler":
            raise ValueError(
                "CoCaConfig: the decoder predicts a token from each token of a text, and a text tower with "
                "pool_type='cls_pooler' leaves the first one out; open_clip can neither train nor caption with it. "
                "Take 'cls_last_hidden_state_pooler' or 'mean_pooler'."
            )
        widths = {
            "vision_config.token_dim": self.vision_config.token_dim,
            "text_config.token_dim": self.text_config.token_dim,
            "multimodal_config.hidden_size": self.multimodal_config.hidden_size,
        }
        if len(set(widths.values())) > 1:
            raise ValueError(
                "CoCaConfig: the decoder attends to the image tokens and continues the text tokens, so these must be "
                f"equal: {', '.join(f'{name} = {width}' for name, width in widths.items())}."
            )


__all__ = ["CoCaConfig", "CoCaDecoderConfig"]
