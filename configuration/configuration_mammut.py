"""Configurations of MaMMUT and of its decoder (open_clip: `mammut_model.py` of LAION's `open_clip_mammut`)."""

from typing import cast

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto import AutoConfig

from .configuration_captioning import CaptioningConfig
from .configuration_common import OpenClipTransformerConfig, check_layers, check_number_of_layers, strict
from .configuration_mammut_text import MaMMUTTextConfig
from .configuration_modern_decoder import MaMMUTModernDecoderConfig
from .configuration_modern_text import ModernTextConfig
from .configuration_towers import tower_config


@strict
class MaMMUTDecoderConfig(OpenClipTransformerConfig):
    r"""Configuration of what MaMMUT adds to its text tower for captions: layers of cross-attention.

    Takes the fields of [`OpenClipTransformerConfig`], of which `num_hidden_layers` is the number of entries of
    `cross_attention_layers`, and this one.

    Args:
        cross_attention_layers: indices of the text tower's layers behind each of which stands a cross-attention;
            open_clip: every `cross_attn_ratio`th, the first included.
    """

    model_type = "open_clip_mammut_decoder"
    base_config_key = "multimodal_config"

    num_hidden_layers: int = 6
    cross_attention_layers: list[int] | tuple[int, ...] = (0, 2, 4, 6, 8, 10)

    def __post_init__(self, **kwargs):
        self.cross_attention_layers = list(self.cross_attention_layers)  # as a file has them
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        super().validate_architecture()
        check_number_of_layers(self)


# Type of a text tower that captions -> the configuration of the cross-attention that its layers take.
_DECODERS = {
    MaMMUTTextConfig.model_type: MaMMUTDecoderConfig,
    ModernTextConfig.model_type: MaMMUTModernDecoderConfig,
}


@strict
class MaMMUTConfig(CaptioningConfig):
    r"""Configuration of [`MaMMUTModel`] and [`MaMMUTForConditionalGeneration`] (https://arxiv.org/abs/2303.16839).

    Takes the fields of [`CaptioningConfig`] and these. The causal stack is the text tower's layers.

    Args:
        multimodal_config: configuration of the cross-attention, or its fields; `model_type` selects the class.
        tie_word_embeddings: the head that predicts tokens has the weights of the token embedding; open_clip:
            `tie_lm_head`.
    """

    model_type = "open_clip_mammut"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig, "multimodal_config": AutoConfig}

    multimodal_config: dict | PreTrainedConfig | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if self.vision_config is None:
            self.vision_config = {"pool_type": "avg_all", "final_ln_after_pool": True}
        if self.text_config is None:
            self.text_config = {"model_type": MaMMUTTextConfig.model_type}
        decoders = {config.model_type: config for config in _DECODERS.values()}
        self.multimodal_config = tower_config(self.multimodal_config, decoders, "multimodal_config")
        super().__post_init__(**kwargs)

    def get_text_config(self, decoder=None, encoder=None) -> PreTrainedConfig:
        """The text tower's configuration, whose layers' attentions and hidden states MaMMUT's outputs hold.

        With `decoder=True` this configuration itself, for which `generate` sizes its cache.
        """
        return self if decoder else cast(PreTrainedConfig, self.text_config)

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the causal stack: the text tower's."""
        return self.text_config.num_hidden_layers

    @property
    def max_position_embeddings(self) -> int:
        """Longest text in tokens."""
        return self.text_config.max_position_embeddings

    @property
    def vocab_size(self) -> int:
        return self.text_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, vocab_size: int):
        self.text_config.vocab_size = vocab_size

    def validate_architecture(self):
        super().validate_architecture()
        text, decoder = self.text_config, self.multimodal_config
        if text.model_type not in _DECODERS:
            raise ValueError(
                f"MaMMUTConfig: captions are written by the layers of a text tower of type "
                f"{' or '.join(map(repr, _DECODERS))}, got text_config of type {text.model_type!r}."
            )
        expected = _DECODERS[text.model_type].model_type
        if decoder.model_type != expected:
            raise ValueError(
                f"MaMMUTConfig: the cross-attention of a text tower of type {text.model_type!r} is of type "
                f"{expected!r}, got multimodal_config of type {decoder.model_type!r}."
            )
        if text.is_causal or getattr(text, "num_register_tokens", 0):
            raise ValueError(
                "MaMMUTConfig: the text tower embeds a text by tokens that each see all others, and captions with "
                f"the same layers: is_causal must be false and num_register_tokens 0, got {text.is_causal} and "
                f"{getattr(text, 'num_register_tokens', 0)}."
            )
        widths = (text.hidden_size, decoder.hidden_size)
        if len(set(widths)) > 1:
            raise ValueError(
                "MaMMUTConfig: cross-attention stands between the text tower's layers, so hidden_size must be equal "
                f"in text_config and multimodal_config, got {' and '.join(map(str, widths))}."
            )
        check_layers(decoder, "cross_attention_layers", text.num_hidden_layers)


__all__ = ["MaMMUTConfig", "MaMMUTDecoderConfig"]
