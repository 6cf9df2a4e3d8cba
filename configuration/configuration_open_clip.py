"""Configurations of the dual models (open_clip: `CLIP` and `CustomTextCLIP` in `model.py`)."""

import math

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto import AutoConfig

from .configuration_common import IS_BUNDLED, OpenClipPreTrainedConfig, strict
from .configuration_towers import TEXT_CONFIGS, VISION_CONFIGS, tower_config


@strict
class OpenClipDualConfig(OpenClipPreTrainedConfig):
    r"""Fields that every model of a vision and a text tower has.

    Args:
        vision_config: configuration of the vision tower, or its fields; `model_type` selects the class.
        text_config: configuration of the text tower, or its fields; `model_type` selects the class.
        projection_dim: width of the shared embedding, equal in both towers; open_clip: `embed_dim`.
        logit_scale_init_value: initial `logit_scale`, in log space; open_clip: `init_logit_scale`.
        logit_bias_init_value: initial `logit_bias`, `None` for no bias; open_clip: `init_logit_bias`.
        nonscalar_logit_scale: `logit_scale` and `logit_bias` have shape `(1,)` instead of `()`.
    """

    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}
    # A Hub repository's copy of this file knows the towers of its own model alone, of which no other can be made.
    has_no_defaults_at_init = IS_BUNDLED

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projection_dim: int | None = None
    logit_scale_init_value: float | int = math.log(1 / 0.07)
    logit_bias_init_value: float | int | None = None
    nonscalar_logit_scale: bool = False
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        self.vision_config = tower_config(self.vision_config, VISION_CONFIGS, "vision_config")
        self.text_config = tower_config(self.text_config, TEXT_CONFIGS, "text_config")
        if self.projection_dim is None:
            self.projection_dim = self.vision_config.projection_dim
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        widths = (self.projection_dim, self.vision_config.projection_dim, self.text_config.projection_dim)
        if len(set(widths)) > 1:
            raise ValueError(
                f"{type(self).__name__}: projection_dim must be equal in the model, vision_config and text_config, "
                f"got {', '.join(map(str, widths))}."
            )


@strict
class OpenClipConfig(OpenClipDualConfig):
    r"""Configuration of [`OpenClipModel`] (https://arxiv.org/abs/2103.00020), trained with a softmax over the batch.

    Takes the fields of [`OpenClipDualConfig`].
    """

    model_type = "open_clip"


@strict
class OpenClipSiglipConfig(OpenClipDualConfig):
    r"""Configuration of [`OpenClipSiglipModel`] (https://arxiv.org/abs/2303.15343), trained with a sigmoid per pair.

    Takes the fields of [`OpenClipDualConfig`]. `siglip` in the model type makes transformers' zero-shot pipeline use
    the sigmoid.
    """

    model_type = "open_clip_siglip"

    logit_bias_init_value: float | int | None = -10.0


__all__ = ["OpenClipConfig", "OpenClipSiglipConfig"]
