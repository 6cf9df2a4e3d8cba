"""Registers our classes with transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForZeroShotImageClassification,
)

from .configuration.configuration_coca import CoCaConfig, CoCaDecoderConfig
from .configuration.configuration_open_clip import OpenClipConfig, OpenClipSiglipConfig
from .configuration.configuration_towers import TEXT_CONFIGS, VISION_CONFIGS
from .modeling.modeling_coca import CoCaForConditionalGeneration, CoCaForZeroShotImageClassification, CoCaModel
from .modeling.modeling_open_clip import OpenClipForImageClassification, OpenClipModel, OpenClipSiglipModel
from .modeling.modeling_towers import TEXT_MODELS, VISION_MODELS


DUAL_MODELS = {OpenClipConfig: OpenClipModel, OpenClipSiglipConfig: OpenClipSiglipModel}


def register():
    """Makes `AutoModel` and its like load our folders."""
    towers = {**VISION_CONFIGS, **TEXT_CONFIGS}
    tower_models = {**VISION_MODELS, **TEXT_MODELS}
    for config in (*towers.values(), *DUAL_MODELS, CoCaConfig, CoCaDecoderConfig):
        AutoConfig.register(config.model_type, config)
    for model_type, config in towers.items():
        AutoModel.register(config, tower_models[model_type])
    for config, model in DUAL_MODELS.items():
        AutoModel.register(config, model)
        AutoModelForZeroShotImageClassification.register(config, model)
    AutoModelForImageClassification.register(OpenClipConfig, OpenClipForImageClassification)
    AutoModel.register(CoCaConfig, CoCaModel)
    AutoModelForImageTextToText.register(CoCaConfig, CoCaForConditionalGeneration)
    AutoModelForZeroShotImageClassification.register(CoCaConfig, CoCaForZeroShotImageClassification)
