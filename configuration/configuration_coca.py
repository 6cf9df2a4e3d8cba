"""Configurations of CoCa and of its multimodal decoder (open_clip: `coca_model.py`)."""

from typing import cast

from transformers.models.auto import AutoConfig

from .configuration_common import OpenClipTransformerConfig, strict
from .configuration_open_clip import OpenClipDualConfig


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


@strict
class CoCaConfig(OpenClipDualConfig):
    r"""Configuration of [`CoCaModel`] and [`CoCaForConditionalGeneration`] (https://arxiv.org/abs/2205.01917).

    Takes the fields of [`OpenClipDualConfig`] and these. As a decoder's configuration
    (`get_text_config(decoder=True)`) it describes the whole causal stack, the text tower's layers followed by the
    decoder's.

    Args:
        multimodal_config: configuration of the multimodal decoder, or its fields; open_clip: `multimodal_cfg`.
        pad_token_id: id of padding, by default the text tower's; open_clip: `pad_id`.
        bos_token_id: id that captions start from, by default the text tower's; open_clip: `sot_token_id`.
        eos_token_id: id that ends a caption, by default the text tower's.
        caption_loss_weight: weight of the caption loss where both losses are asked for; open_clip: the same name.
        contrastive_loss_weight: weight of the contrastive loss then; open_clip: `clip_loss_weight`.
    """

    model_type = "open_clip_coca"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig, "multimodal_config": CoCaDecoderConfig}

    multimodal_config: dict | CoCaDecoderConfig | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    caption_loss_weight: float | int = 2.0
    contrastive_loss_weight: float | int = 1.0

    def __post_init__(self, **kwargs):
        if self.text_config is None:
            self.text_config = {"embed_cls": True, "max_position_embeddings": 76}
        if self.vision_config is None:
            self.vision_config = {"attentional_pool": True}
        if not isinstance(self.multimodal_config, CoCaDecoderConfig):
            self.multimodal_config = CoCaDecoderConfig(**(self.multimodal_config or {}))
        super().__post_init__(**kwargs)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(self.text_config, name))

    def get_text_config(self, decoder=None, encoder=None) -> "CoCaConfig | CoCaDecoderConfig":
        """The decoder's configuration, whose layers' attentions and hidden states CoCa's outputs hold.

        With `decoder=True` this configuration itself, the whole causal stack, for which `generate` sizes its cache.
        """
        return self if decoder else cast(CoCaDecoderConfig, self.multimodal_config)

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the causal stack: the text tower's and the decoder's."""
        return self.text_config.num_hidden_layers + self.multimodal_config.num_hidden_layers

    @property
    def num_attention_heads(self) -> int:
        return self.multimodal_config.num_attention_heads

    @property
    def hidden_size(self) -> int:
        return self.multimodal_config.hidden_size

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
        if self.text_config.model_type == "open_clip_modern_text":
            raise ValueError(
                "CoCaConfig: a captioner whose text tower is a modern one is not supported yet. open_clip 4 has such, "
                "and another text tower would make another model."
            )
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
