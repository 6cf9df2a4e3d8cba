"""Configurations of captioners' decoders with modern layers (open_clip 4: `ModernMultimodalTransformer` and
`ModernMultimodalDecoder` in `transformer.py`)."""

from .configuration_common import check_layers, check_number_of_layers, strict
from .configuration_modern_layers import ModernAttentionConfig, ModernLayersConfig


@strict
class CoCaModernDecoderConfig(ModernLayersConfig):
    r"""Configuration of CoCa's multimodal decoder with the layers of modern text towers.

    Takes the fields of [`ModernLayersConfig`] and these.

    Args:
        vocab_size: number of token ids predicted.
        max_position_embeddings: longest text in tokens; open_clip: `context_length`.
        cross_attention_layers: indices of the layers that attend to the image between their attention and their MLP,
            by default all; open_clip: every `cross_attn_ratio`th, the first included.
    """

    model_type = "open_clip_coca_modern_decoder"
    base_config_key = "multimodal_config"

    vocab_size: int = 49408
    max_position_embeddings: int = 76
    intermediate_size: int = 2048
    cross_attention_layers: list[int] | tuple[int, ...] | None = None

    def __post_init__(self, **kwargs):
        layers = range(self.num_hidden_layers) if self.cross_attention_layers is None else self.cross_attention_layers
        self.cross_attention_layers = list(layers)  # as a file has them
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        super().validate_architecture()
        check_layers(self, "cross_attention_layers", self.num_hidden_layers)


@strict
class MaMMUTModernDecoderConfig(ModernAttentionConfig):
    r"""Configuration of what MaMMUT adds to a modern text tower for captions: cross-attention inside its layers.

    Takes the fields of [`ModernAttentionConfig`], of which `num_hidden_layers` is the number of entries of
    `cross_attention_layers`, and this one.

    Args:
        cross_attention_layers: indices of the text tower's layers that attend to the image between their attention
            and their MLP; open_clip: every `cross_attn_ratio`th, the first included.
    """

    model_type = "open_clip_mammut_modern_decoder"
    base_config_key = "multimodal_config"

    num_hidden_layers: int = 6
    cross_attention_layers: list[int] | tuple[int, ...] = (0, 2, 4, 6, 8, 10)

    def __post_init__(self, **kwargs):
        self.cross_attention_layers = list(self.cross_attention_layers)  # as a file has them
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        super().validate_architecture()
        check_number_of_layers(self)


__all__ = ["CoCaModernDecoderConfig", "MaMMUTModernDecoderConfig"]
