"""The towers that a dual model or CoCa can be made of: `model_type` -> model class.

Mirrors `configuration/configuration_towers.py`.
"""

from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .modeling_text import OpenClipTextModel
from .modeling_vit import OpenClipVitModel


VISION_MODELS = {model.config_class.model_type: model for model in (OpenClipVitModel,)}
TEXT_MODELS = {model.config_class.model_type: model for model in (OpenClipTextModel,)}


def build_tower(config: PreTrainedConfig, towers: dict[str, type[PreTrainedModel]]) -> PreTrainedModel:
    """A tower with new weights. Looks at `model_type` alone: code from the Hub may hold a second copy of each class."""
    return towers[config.model_type]._from_config(config)
