"""Pairs of timm's vision transformer and our SigLIP tower with the same weights, and images for them."""

import torch
from timm.models.vision_transformer import VisionTransformer
from tiny_configs import TINY_SIGLIP_VIT, randomize_timm

from open_clip_transformers.configuration.configuration_siglip_vit import SiglipVitConfig
from open_clip_transformers.convert_scripts.mapping.state_dict import resolve
from open_clip_transformers.convert_scripts.towers.siglip_vit import TIMM_VIT
from open_clip_transformers.modeling.modeling_siglip_vit import SiglipVitModel


def converted(reference: VisionTransformer, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's tensors under our names: weights, or gradients of them."""
    tensors = {
        key.replace("head.", "projection.") if key.startswith("head.") else key: v for key, v in tensors.items()
    }
    steps, unmatched = resolve(tensors, TIMM_VIT, "sources")
    ours = {key: tensors[key] for key in unmatched}
    for step in steps:
        ours |= zip(step.targets, step.operation.apply(tuple(tensors[key] for key in step.sources)))
    return ours


def tower_pair(timm_args: dict, fields: dict) -> tuple[VisionTransformer, SiglipVitModel]:
    """timm's model with random weights and ours with the same, in eval mode."""
    reference = randomize_timm(VisionTransformer(**{**TINY_SIGLIP_VIT["timm"], **timm_args}).eval())
    model = SiglipVitModel(SiglipVitConfig(**{**TINY_SIGLIP_VIT["ours"], **fields})).eval()
    model.load_state_dict(converted(reference, reference.state_dict()))
    return reference, model


def images_for(model: SiglipVitModel, size: tuple[int, int] | None = None, batch: int = 2) -> torch.Tensor:
    config = model.config
    size = config.image_size if size is None else size
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(batch, config.num_channels, height, width, generator=torch.Generator().manual_seed(3))
