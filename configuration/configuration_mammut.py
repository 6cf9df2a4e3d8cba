"""Configurations of MaMMUT and of its decoder (open_clip: `mammut_model.py` of LAION's `open_clip_mammut`)."""

from typing import cast

from transformers.models.auto import AutoConfig

from .configuration_captioning import CaptioningConfig
from .configuration_common import OpenClipTransformerConfig, strict
from .configuration_mammut_text import MaMMUTTextConfig, check_layers


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
        if len(self.cross_attention_layers) != self.num_hidden_layers:
            raise ValueError(
                f"MaMMUTDecoderConfig: num_hidden_layers is {self.num_hidden_layers}, and cross_attention_layers has "
                f"{len(self.cross_attention_layers)} entries: {self.cross_attention_layers}."
            )


@strict
class MaMMUTConfig(CaptioningConfig):
    r"""Configuration of [`MaMMUTModel`] and [`MaMMUTForConditionalGeneration`] (https://arxiv.org/abs/2303.16839).

    Takes the fields of [`CaptioningConfig`] and this one. The causal stack is the text tower's layers.

    Args:
        multimodal_config: configuration of the cross-attention, or its fields.
    """

    model_type = "open_clip_mammut"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig, "multimodal_config": MaMMUTDecoderConfig}

    multimodal_config: dict | MaMMUTDecoderConfig | None = None

    def __post_init__(self, **kwargs):
        if self.vision_config is None:
            self.vision_config = {"pool_type": "avg_all", "final_ln_after_pool": True}
        if self.text_config is None:
            self.text_config = {"model_type": MaMMUTTextConfig.model_type}
        if not isinstance(self.multimodal_config, MaMMUTDecoderConfig):
            self.multimodal_config = MaMMUTDecoderConfig(**(self.multimodal_config or {}))
        super().__post_init__(**kwargs)

    def get_text_config(self, decoder=None, encoder=None) -> "MaMMUTConfig | MaMMUTTextConfig":
        """The text tower's configuration, whose layers' attentions and hidden states MaMMUT's outputs hold.

        With `decoder=True` this configuration itself, for which `generate` sizes its cache.
        """
        return self if decoder else cast(MaMMUTTextConfig, self.text_config)

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
        text_type = self.text_config.model_type
        if text_type != MaMMUTTextConfig.model_type:
            raise ValueError(
                f"MaMMUTConfig: captions are written by the layers of a text tower of type "
                f"{MaMMUTTextConfig.model_type!r}, got text_config of type {text_type!r}."
            )
        widths = (self.text_config.hidden_size, self.multimodal_config.hidden_size)
        if len(set(widths)) > 1:
            raise ValueError(
                "MaMMUTConfig: cross-attention stands between the text tower's layers, so hidden_size must be equal "
                f"in text_config and multimodal_config, got {' and '.join(map(str, widths))}."
            )
        check_layers(self.multimodal_config, "cross_attention_layers", self.text_config.num_hidden_layers)


__all__ = ["MaMMUTConfig", "MaMMUTDecoderConfig"]
