"""open_clip's CLIP and CoCa models as transformers models.

Importing this package registers the models, processors and pipelines with transformers' Auto classes. The public names
are loaded when they are first used, so that the import stays cheap.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ._register import register


if not (Path(__file__).parent / "modeling").is_dir():  # a checkout: the sub-packages lie beside this folder
    __path__.append(str(Path(__file__).parents[1]))

if TYPE_CHECKING:
    from .configuration.configuration_coca import CoCaConfig as CoCaConfig
    from .configuration.configuration_coca import CoCaDecoderConfig as CoCaDecoderConfig
    from .configuration.configuration_hf_text import HfTextConfig as HfTextConfig
    from .configuration.configuration_modified_resnet import ModifiedResNetConfig as ModifiedResNetConfig
    from .configuration.configuration_open_clip import OpenClipConfig as OpenClipConfig
    from .configuration.configuration_open_clip import OpenClipSiglipConfig as OpenClipSiglipConfig
    from .configuration.configuration_siglip_vit import SiglipVitConfig as SiglipVitConfig
    from .configuration.configuration_text import OpenClipTextConfig as OpenClipTextConfig
    from .configuration.configuration_timm_vision import TimmVisionConfig as TimmVisionConfig
    from .configuration.configuration_vit import OpenClipVitConfig as OpenClipVitConfig
    from .convert_scripts.convert_open_clip import ConversionReport as ConversionReport
    from .convert_scripts.convert_open_clip import convert_open_clip_checkpoint as convert_open_clip_checkpoint
    from .convert_scripts.convert_to_open_clip import OpenClipReport as OpenClipReport
    from .convert_scripts.convert_to_open_clip import convert_to_open_clip as convert_to_open_clip
    from .convert_scripts.verify.folder import verify_folder as verify_folder
    from .convert_scripts.verify.report import VerificationReport as VerificationReport
    from .modeling.attention_maps import caption_attention as caption_attention
    from .modeling.attention_maps import patch_similarity as patch_similarity
    from .modeling.attention_maps import word_attention as word_attention
    from .modeling.modeling_coca import CoCaForConditionalGeneration as CoCaForConditionalGeneration
    from .modeling.modeling_coca import CoCaForImageClassification as CoCaForImageClassification
    from .modeling.modeling_coca import CoCaForZeroShotImageClassification as CoCaForZeroShotImageClassification
    from .modeling.modeling_coca import CoCaModel as CoCaModel
    from .modeling.modeling_hf_text import HfTextModel as HfTextModel
    from .modeling.modeling_modified_resnet import ModifiedResNetBackbone as ModifiedResNetBackbone
    from .modeling.modeling_modified_resnet import ModifiedResNetModel as ModifiedResNetModel
    from .modeling.modeling_open_clip import OpenClipForImageClassification as OpenClipForImageClassification
    from .modeling.modeling_open_clip import OpenClipModel as OpenClipModel
    from .modeling.modeling_open_clip import (
        OpenClipSiglipForImageClassification as OpenClipSiglipForImageClassification,
    )
    from .modeling.modeling_open_clip import OpenClipSiglipModel as OpenClipSiglipModel
    from .modeling.modeling_open_clip import OpenClipTextModelWithProjection as OpenClipTextModelWithProjection
    from .modeling.modeling_open_clip import OpenClipVisionModelWithProjection as OpenClipVisionModelWithProjection
    from .modeling.modeling_siglip_vit import SiglipVitBackbone as SiglipVitBackbone
    from .modeling.modeling_siglip_vit import SiglipVitModel as SiglipVitModel
    from .modeling.modeling_text import OpenClipTextModel as OpenClipTextModel
    from .modeling.modeling_timm_vision import TimmVisionModel as TimmVisionModel
    from .modeling.modeling_vit import OpenClipVitBackbone as OpenClipVitBackbone
    from .modeling.modeling_vit import OpenClipVitModel as OpenClipVitModel
    from .processing.image_processing_open_clip import OpenClipImageProcessor as OpenClipImageProcessor
    from .processing.image_processing_pil_open_clip import OpenClipImageProcessorPil as OpenClipImageProcessorPil
    from .processing.pipeline_image_to_text import ImageToTextPipeline as ImageToTextPipeline
    from .processing.processing_coca import CoCaProcessor as CoCaProcessor
    from .processing.processing_open_clip import OpenClipProcessor as OpenClipProcessor
    from .processing.tokenization_open_clip import OpenClipTokenizer as OpenClipTokenizer

__version__ = "0.1.0"

# Public name -> module it lives in. The imports above say the same to static tools.
_PUBLIC = {
    "CoCaConfig": "configuration.configuration_coca",
    "CoCaDecoderConfig": "configuration.configuration_coca",
    "HfTextConfig": "configuration.configuration_hf_text",
    "ModifiedResNetConfig": "configuration.configuration_modified_resnet",
    "OpenClipConfig": "configuration.configuration_open_clip",
    "OpenClipSiglipConfig": "configuration.configuration_open_clip",
    "SiglipVitConfig": "configuration.configuration_siglip_vit",
    "OpenClipTextConfig": "configuration.configuration_text",
    "TimmVisionConfig": "configuration.configuration_timm_vision",
    "OpenClipVitConfig": "configuration.configuration_vit",
    "convert_open_clip_checkpoint": "convert_scripts.convert_open_clip",
    "convert_to_open_clip": "convert_scripts.convert_to_open_clip",
    "OpenClipReport": "convert_scripts.convert_to_open_clip",
    "ConversionReport": "convert_scripts.convert_open_clip",
    "VerificationReport": "convert_scripts.verify.report",
    "verify_folder": "convert_scripts.verify.folder",
    "caption_attention": "modeling.attention_maps",
    "patch_similarity": "modeling.attention_maps",
    "word_attention": "modeling.attention_maps",
    "CoCaForConditionalGeneration": "modeling.modeling_coca",
    "CoCaForImageClassification": "modeling.modeling_coca",
    "CoCaForZeroShotImageClassification": "modeling.modeling_coca",
    "CoCaModel": "modeling.modeling_coca",
    "HfTextModel": "modeling.modeling_hf_text",
    "ModifiedResNetBackbone": "modeling.modeling_modified_resnet",
    "ModifiedResNetModel": "modeling.modeling_modified_resnet",
    "OpenClipForImageClassification": "modeling.modeling_open_clip",
    "OpenClipModel": "modeling.modeling_open_clip",
    "OpenClipSiglipForImageClassification": "modeling.modeling_open_clip",
    "OpenClipSiglipModel": "modeling.modeling_open_clip",
    "OpenClipTextModelWithProjection": "modeling.modeling_open_clip",
    "OpenClipVisionModelWithProjection": "modeling.modeling_open_clip",
    "SiglipVitBackbone": "modeling.modeling_siglip_vit",
    "SiglipVitModel": "modeling.modeling_siglip_vit",
    "OpenClipTextModel": "modeling.modeling_text",
    "TimmVisionModel": "modeling.modeling_timm_vision",
    "OpenClipVitBackbone": "modeling.modeling_vit",
    "OpenClipVitModel": "modeling.modeling_vit",
    "OpenClipImageProcessor": "processing.image_processing_open_clip",
    "OpenClipImageProcessorPil": "processing.image_processing_pil_open_clip",
    "ImageToTextPipeline": "processing.pipeline_image_to_text",
    "CoCaProcessor": "processing.processing_coca",
    "OpenClipProcessor": "processing.processing_open_clip",
    "OpenClipTokenizer": "processing.tokenization_open_clip",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__():
    return sorted([*globals(), *_PUBLIC])


register()
