"""The towers that a dual model or a captioner can be made of: `model_type` -> model class.

Mirrors `configuration/configuration_towers.py`.
"""

from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .modeling_hf_text import HfTextModel
from .modeling_mammut_text import MaMMUTTextModel
from .modeling_modern_text import ModernTextModel
from .modeling_modified_resnet import ModifiedResNetModel
from .modeling_naflex_vit import NaFlexVitModel
from .modeling_siglip_vit import SiglipVitModel
from .modeling_text import OpenClipTextModel
from .modeling_timm_vision import TimmVisionModel
from .modeling_vit import OpenClipVitModel


VISION_MODELS = {
    model.config_class.model_type: model
    for model in (OpenClipVitModel, ModifiedResNetModel, SiglipVitModel, NaFlexVitModel, TimmVisionModel)
}
TEXT_MODELS = {
    model.config_class.model_type: model
    for model in (OpenClipTextModel, HfTextModel, ModernTextModel, MaMMUTTextModel)
}


def build_tower(config: PreTrainedConfig, towers: dict[str, type[PreTrainedModel]]) -> PreTrainedModel:
    """Build a tower with new weights.

    Goes by `model_type` alone: code from the Hub may hold a second copy of each class.
    """
    tower = towers[config.model_type]._from_config(config)
    # Loaded alone, a tower ignores keys outside itself. transformers hands that on to the model around it, which must
    # report them.
    tower._keys_to_ignore_on_load_unexpected = set()
    return tower
