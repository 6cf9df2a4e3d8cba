"""Fields that the configurations of all dual models that also caption have (open_clip: `CoCa`, `MaMMUT`)."""

from transformers.configuration_utils import PreTrainedConfig

from .configuration_common import strict
from .configuration_open_clip import OpenClipDualConfig


@strict
class CaptioningConfig(OpenClipDualConfig):
    r"""Fields of a dual model with a decoder that writes captions.

    Takes the fields of [`OpenClipDualConfig`] and these. Each subclass has a `multimodal_config`. As a decoder's
    configuration (`get_text_config(decoder=True)`) it describes the whole causal stack, all layers that `generate`
    keeps keys and values of.

    Args:
        pad_token_id: id of padding, by default the text tower's; open_clip: `pad_id`.
        bos_token_id: id that captions start from, by default the text tower's; open_clip: `sot_token_id`.
        eos_token_id: id that ends a caption, by default the text tower's.
        caption_loss_weight: weight of the caption loss where both losses are asked for; open_clip: the same name.
        contrastive_loss_weight: weight of the contrastive loss then; open_clip: `clip_loss_weight`.
    """

    multimodal_config: dict | PreTrainedConfig | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    caption_loss_weight: float | int = 2.0
    contrastive_loss_weight: float | int = 1.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(self.text_config, name))

    def validate_architecture(self):
        super().validate_architecture()
        if self.vision_config.model_type == "open_clip_naflex_vit":
            raise ValueError(
                f"{type(self).__name__}: a captioner whose vision_config is a NaFlex tower is not supported yet: its "
                "decoder would attend to the padding of images of other shapes. Without multimodal_config the two "
                "towers are a dual model."
            )

    @property
    def cache_obstacle(self) -> str | None:
        """Property of the text tower that keeps `generate` from keeping states of tokens; `None` for none."""
        return None

    @property
    def can_cache(self) -> bool:
        """Whether `generate` can keep the states of tokens, as no token changes those of tokens before it."""
        return self.cache_obstacle is None

    def layer_config(self, index: int) -> PreTrainedConfig:
        """The configuration of layer `index` of the causal stack."""
        return self.text_config

    @property
    def num_attention_heads(self) -> int:
        return self.multimodal_config.num_attention_heads

    @property
    def hidden_size(self) -> int:
        return self.multimodal_config.hidden_size


__all__ = ["CaptioningConfig"]
