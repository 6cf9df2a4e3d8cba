"""One tiny model of every public class, and inputs for it; sizes come from `tiny_configs`."""

import inspect

import torch
from tiny_configs import (
    TINY_SIGLIP_VIT,
    VOCAB_SIZE,
    tiny_clip_cfg,
    tiny_coca_cfg,
    tiny_hf_coca_cfg,
    tiny_hf_text_cfg,
    tiny_mammut_cfg,
    tiny_modern_coca_cfg,
    tiny_modern_mammut_cfg,
    tiny_modern_text_cfg,
    tiny_resnet_cfg,
    tiny_siglip_cfg,
)
from transformers import PreTrainedConfig, PreTrainedModel

from open_clip_transformers.configuration.configuration_naflex_vit import NaFlexVitConfig
from open_clip_transformers.configuration.configuration_open_clip import OpenClipConfig, OpenClipSiglipConfig
from open_clip_transformers.configuration.configuration_siglip_vit import SiglipVitConfig
from open_clip_transformers.configuration.configuration_timm_vision import TimmVisionConfig
from open_clip_transformers.convert_scripts.mapping.config import TokenIds, build_config
from open_clip_transformers.modeling.modeling_coca import (
    CoCaForConditionalGeneration,
    CoCaForZeroShotImageClassification,
    CoCaModel,
)
from open_clip_transformers.modeling.modeling_hf_text import HfTextModel
from open_clip_transformers.modeling.modeling_mammut import (
    MaMMUTForConditionalGeneration,
    MaMMUTForZeroShotImageClassification,
    MaMMUTModel,
)
from open_clip_transformers.modeling.modeling_mammut_text import MaMMUTTextModel
from open_clip_transformers.modeling.modeling_modern_text import ModernTextModel
from open_clip_transformers.modeling.modeling_modified_resnet import ModifiedResNetModel
from open_clip_transformers.modeling.modeling_naflex_vit import NaFlexVitModel
from open_clip_transformers.modeling.modeling_open_clip import (
    OpenClipForImageClassification,
    OpenClipModel,
    OpenClipSiglipModel,
    OpenClipTextModelWithProjection,
    OpenClipVisionModelWithProjection,
)
from open_clip_transformers.modeling.modeling_siglip_vit import SiglipVitModel
from open_clip_transformers.modeling.modeling_text import OpenClipTextModel
from open_clip_transformers.modeling.modeling_timm_vision import TimmVisionModel
from open_clip_transformers.modeling.modeling_vit import OpenClipVitModel


BOS, EOS, PAD = VOCAB_SIZE - 2, VOCAB_SIZE - 1, 0

# With every module that owns parameters somewhere: block options, LayerScale, sin-cos table, poolers, class token.
CLIP = tiny_clip_cfg(
    nonscalar_logit_scale=True,
    vision_cfg={"scaled_cosine_attn": True, "scale_heads": True, "pos_embed_type": "sin_cos_2d", "ls_init_value": 0.1},
    text_cfg={"qk_norm": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True},
)
SIGLIP = tiny_siglip_cfg()
RESNET = tiny_resnet_cfg()
# Of the encoders, BERT has our padding id, M2M-100 a table of positions that no file holds.
HF_TEXT = tiny_hf_text_cfg("bert")
HF_TEXT_WITH_TABLE = tiny_hf_text_cfg("m2m_100")
MODERN_TEXT = tiny_modern_text_cfg()
COCA_HF_TEXT = tiny_hf_coca_cfg("bert")
COCA = tiny_coca_cfg(
    vision_cfg={"attentional_pool": "cascade", "width": 36, "head_width": 18},
    text_cfg={"ls_init_value": 0.2},
    multimodal_cfg={"ls_init_value": 0.3},
)
MAMMUT = tiny_mammut_cfg(text_cfg={"ls_init_value": 0.2})
MODERN_COCA = tiny_modern_coca_cfg()
MODERN_MAMMUT = tiny_modern_mammut_cfg()


def tiny_config(model_cfg: dict, initializer_range: float = 0.1) -> PreTrainedConfig:
    """Our configuration of an open_clip `model_cfg`; at the usual 0.02, attention hardly shows in outputs."""
    config = build_config(model_cfg, TokenIds(bos=BOS, eos=EOS, pad=PAD))
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        part.initializer_range = initializer_range
    return config


def tiny_siglip_vit_config(**fields) -> SiglipVitConfig:
    """Configuration of a SigLIP tower with every module that owns parameters."""
    options = {
        "image_size": 24,
        "patch_size": [8, 6],
        "use_class_token": True,
        "num_register_tokens": 2,
        "use_pre_layer_norm": True,
        "qk_norm": True,
        "layer_scale_init_value": 0.1,
        "proj_type": "linear",
        "proj_bias": True,
        "projection_dim": 28,
    }
    return SiglipVitConfig(**{**TINY_SIGLIP_VIT["ours"], **options, **fields})


def tiny_siglip_vit_dual_config() -> OpenClipSiglipConfig:
    """Configuration of a dual model with a SigLIP tower."""
    vision_config = tiny_siglip_vit_config(proj_type="mlp", block_type="res_post_norm", use_fc_norm=True)
    text_config = tiny_config(SIGLIP).text_config
    return OpenClipSiglipConfig(vision_config=vision_config, text_config=text_config, projection_dim=28)


def tiny_naflex_vit_config(**fields) -> NaFlexVitConfig:
    """Configuration of a NaFlex tower with every module that owns parameters."""
    options = {
        "hidden_size": 36,
        "intermediate_size": 50,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "patch_size": [8, 6],
        "max_num_patches": 12,
        "image_size": 24,
        "position_grid_size": [5, 4],
        "use_class_token": True,
        "num_register_tokens": 2,
        "qk_norm": True,
        "layer_scale_init_value": 0.1,
        "proj_type": "linear",
        "proj_bias": True,
        "projection_dim": 28,
        "initializer_range": 0.1,
    }
    return NaFlexVitConfig(**{**options, **fields})


def tiny_naflex_vit_dual_config() -> OpenClipSiglipConfig:
    """Configuration of a dual model with a NaFlex tower."""
    vision_config = tiny_naflex_vit_config(proj_type="mlp", block_type="swiglu", use_fc_norm=True, pool_type="avg")
    text_config = tiny_config(SIGLIP).text_config
    return OpenClipSiglipConfig(vision_config=vision_config, text_config=text_config, projection_dim=28)


def tiny_timm_config() -> TimmVisionConfig:
    """A tower of timm whose rotary positions no checkpoint holds."""
    model_args = {"img_size": 24, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
    return TimmVisionConfig(
        architecture="eva02_base_patch16_clip_224",
        model_args=model_args,
        hidden_size=24,
        image_size=24,
        projection_dim=28,
        pool_type="token",
        proj_type=None,
    )


def tiny_timm_dual_config() -> OpenClipConfig:
    """A CLIP with a tower of timm."""
    text_config = tiny_config(CLIP).text_config
    return OpenClipConfig(vision_config=tiny_timm_config(), text_config=text_config, projection_dim=28)


# Name -> class and a function that makes its configuration.
MODELS = {
    "vit": (OpenClipVitModel, lambda: tiny_config(CLIP).vision_config),
    "siglip_vit": (SiglipVitModel, tiny_siglip_vit_config),
    "naflex_vit": (NaFlexVitModel, tiny_naflex_vit_config),
    "resnet": (ModifiedResNetModel, lambda: tiny_config(RESNET).vision_config),
    "timm_vision": (TimmVisionModel, tiny_timm_config),
    "text": (OpenClipTextModel, lambda: tiny_config(CLIP).text_config),
    "text_with_class_token": (OpenClipTextModel, lambda: tiny_config(COCA).text_config),
    "mammut_text": (MaMMUTTextModel, lambda: tiny_config(MAMMUT).text_config),
    "hf_text": (HfTextModel, lambda: tiny_config(HF_TEXT).text_config),
    "modern_text": (ModernTextModel, lambda: tiny_config(MODERN_TEXT).text_config),
    "clip": (OpenClipModel, lambda: tiny_config(CLIP)),
    "clip_resnet": (OpenClipModel, lambda: tiny_config(RESNET)),
    "clip_timm_vision": (OpenClipModel, tiny_timm_dual_config),
    "siglip": (OpenClipSiglipModel, lambda: tiny_config(SIGLIP)),
    "siglip_with_siglip_vit": (OpenClipSiglipModel, tiny_siglip_vit_dual_config),
    "siglip_with_naflex_vit": (OpenClipSiglipModel, tiny_naflex_vit_dual_config),
    "clip_hf_text": (OpenClipModel, lambda: tiny_config(HF_TEXT_WITH_TABLE)),
    "clip_modern_text": (OpenClipModel, lambda: tiny_config(MODERN_TEXT)),
    "coca": (CoCaModel, lambda: tiny_config(COCA)),
    "coca_hf_text": (CoCaModel, lambda: tiny_config(COCA_HF_TEXT)),
    "coca_modern": (CoCaModel, lambda: tiny_config(MODERN_COCA)),
    "coca_for_generation": (CoCaForConditionalGeneration, lambda: tiny_config(COCA)),
    "coca_for_zero_shot": (CoCaForZeroShotImageClassification, lambda: tiny_config(COCA)),
    "mammut": (MaMMUTModel, lambda: tiny_config(MAMMUT)),
    "mammut_modern": (MaMMUTModel, lambda: tiny_config(MODERN_MAMMUT)),
    "mammut_for_generation": (MaMMUTForConditionalGeneration, lambda: tiny_config(MAMMUT)),
    "mammut_for_zero_shot": (MaMMUTForZeroShotImageClassification, lambda: tiny_config(MAMMUT)),
    "vision_with_projection": (OpenClipVisionModelWithProjection, lambda: tiny_config(CLIP)),
    "text_with_projection": (OpenClipTextModelWithProjection, lambda: tiny_config(CLIP)),
    "image_classification": (OpenClipForImageClassification, lambda: tiny_config(CLIP)),
}


def tiny_model(name: str, **fields) -> PreTrainedModel:
    """Model `name` of `MODELS` in eval mode; no weight keeps its default value. `fields` are set in its config."""
    model_class, make_config = MODELS[name]
    config = make_config()
    for field, value in fields.items():
        setattr(config, field, value)
    return randomized(model_class(config).eval())


def randomized(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """`model` with norms, biases and scales moved off their neutral values."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not name.startswith("logit_"):
            neutral = 1.0 if parameter.ndim == 1 and name.endswith(("weight", "gamma")) else 0.0
            parameter.data = neutral + 0.15 * torch.randn(parameter.shape, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.15, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2, generator=generator)
        elif name.endswith("num_batches_tracked"):
            buffer.fill_(7)
    return model


def tiny_inputs(model: PreTrainedModel, batch: int = 3, length: int = 10) -> dict[str, torch.Tensor]:
    """The images and texts that `model` takes; texts end at different places, one fills all positions."""
    generator = torch.Generator().manual_seed(1)
    vision = getattr(model.config, "vision_config", model.config)
    image_size = getattr(vision, "image_size", 24)
    images = {"pixel_values": torch.randn(batch, 3, image_size, image_size, generator=generator)}
    if vision.model_type == NaFlexVitConfig.model_type:
        images = tiny_patches(vision, batch)
    input_ids = torch.randint(1, BOS, (batch, length), generator=generator)
    input_ids[:, 0] = BOS
    for row, end in enumerate(range(length - 1, 0, -3)):
        if row < batch:
            input_ids[row, end] = EOS
            input_ids[row, end + 1 :] = PAD
    inputs = {"input_ids": input_ids, **images}
    return {name: value for name, value in inputs.items() if name in inspect.signature(model.forward).parameters}


def tiny_patches(config: NaFlexVitConfig, batch: int = 3) -> dict[str, torch.Tensor]:
    """Patches of images of several shapes, all but the first with padding behind them."""
    shapes = [(3, 4), (2, 5), (1, 7), (9, 1), (5, 2)]
    spatial_shapes = torch.tensor([shapes[index % len(shapes)] for index in range(batch)])
    height, width = config.patch_size
    generator = torch.Generator().manual_seed(2)
    pixel_values = torch.randn(batch, config.max_num_patches, 3 * height * width, generator=generator)
    mask = (torch.arange(config.max_num_patches) < spatial_shapes.prod(-1, keepdim=True)).int()
    return {"pixel_values": pixel_values, "pixel_attention_mask": mask, "spatial_shapes": spatial_shapes}


def main_outputs(outputs) -> list[torch.Tensor]:
    """The tensors of an output object at its own level, without its scalars."""
    return [value for value in outputs.values() if isinstance(value, torch.Tensor) and value.ndim]
