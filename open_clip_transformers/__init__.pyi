"""Public names, each with the module that it is loaded from when it is first used; type checkers read the same."""

from .configuration.configuration_coca import CoCaConfig as CoCaConfig
from .configuration.configuration_coca import CoCaDecoderConfig as CoCaDecoderConfig
from .configuration.configuration_hf_text import HfTextConfig as HfTextConfig
from .configuration.configuration_mammut import MaMMUTConfig as MaMMUTConfig
from .configuration.configuration_mammut import MaMMUTDecoderConfig as MaMMUTDecoderConfig
from .configuration.configuration_mammut_text import MaMMUTTextConfig as MaMMUTTextConfig
from .configuration.configuration_modern_text import ModernTextConfig as ModernTextConfig
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
from .modeling.modeling_mammut import MaMMUTForConditionalGeneration as MaMMUTForConditionalGeneration
from .modeling.modeling_mammut import MaMMUTForImageClassification as MaMMUTForImageClassification
from .modeling.modeling_mammut import MaMMUTForZeroShotImageClassification as MaMMUTForZeroShotImageClassification
from .modeling.modeling_mammut import MaMMUTModel as MaMMUTModel
from .modeling.modeling_mammut_text import MaMMUTTextModel as MaMMUTTextModel
from .modeling.modeling_modern_text import ModernTextModel as ModernTextModel
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
from .processing.pipeline_image_feature_extraction import (
    OpenClipImageFeatureExtractionPipeline as OpenClipImageFeatureExtractionPipeline,
)
from .processing.pipeline_image_to_text import CoCaImageTextToTextPipeline as CoCaImageTextToTextPipeline
from .processing.pipeline_image_to_text import ImageToTextPipeline as ImageToTextPipeline
from .processing.processing_coca import CoCaProcessor as CoCaProcessor
from .processing.processing_open_clip import OpenClipProcessor as OpenClipProcessor
from .processing.tokenization_open_clip import OpenClipTokenizer as OpenClipTokenizer
from .training.batch_norms import freeze_batch_norm as freeze_batch_norm
from .training.losses import caption_loss as caption_loss
from .training.losses import distillation_loss as distillation_loss
from .training.losses import sigmoid_contrastive_loss as sigmoid_contrastive_loss
from .training.losses import softmax_contrastive_loss as softmax_contrastive_loss
from .training.pairs import ContrastiveCollator as ContrastiveCollator
from .training.pairs import training_transform as training_transform
from .training.parameter_groups import parameter_groups as parameter_groups
from .training.towers import lock_image_tower as lock_image_tower
from .training.towers import lock_text_tower as lock_text_tower
from .training.trainer import ContrastiveTrainer as ContrastiveTrainer
from .training.trainer import ContrastiveTrainingArguments as ContrastiveTrainingArguments

__version__: str
