"""The towers that a dual model or a captioner can be made of: `model_type` -> configuration class.

`modeling/modeling_towers.py` mirrors these tables with the model classes.
"""

from collections.abc import Mapping

from transformers.configuration_utils import PreTrainedConfig

from .configuration_hf_text import HfTextConfig
from .configuration_mammut_text import MaMMUTTextConfig
from .configuration_modern_text import ModernTextConfig
from .configuration_modified_resnet import ModifiedResNetConfig
from .configuration_naflex_vit import NaFlexVitConfig
from .configuration_siglip_vit import SiglipVitConfig
from .configuration_text import OpenClipTextConfig
from .configuration_timm_vision import TimmVisionConfig
from .configuration_vit import OpenClipVitConfig


VISION_CONFIGS = {
    config.model_type: config
    for config in (OpenClipVitConfig, ModifiedResNetConfig, SiglipVitConfig, NaFlexVitConfig, TimmVisionConfig)
}
TEXT_CONFIGS = {
    config.model_type: config for config in (OpenClipTextConfig, HfTextConfig, ModernTextConfig, MaMMUTTextConfig)
}


def tower_config(config: PreTrainedConfig | dict | None, towers: Mapping[str, type], name: str) -> PreTrainedConfig:
    """The configuration object for `config`, the first class of `towers` where it names no `model_type`.

    Raises:
        ValueError: `config` names a `model_type` that is not in `towers`.
    """
    default = next(iter(towers))
    if config is None:
        return towers[default]()
    model_type = config.get("model_type", default) if isinstance(config, dict) else config.model_type
    if not isinstance(model_type, str) or model_type not in towers:
        raise ValueError(f"{name}: model_type must be one of {', '.join(towers)}, got {model_type!r}.")
    return towers[model_type](**config) if isinstance(config, dict) else config
