"""A CoCa that looks at nothing but bright patches: what its attention maps show is known beforehand."""

import torch
from tiny_configs import tiny_coca_cfg
from tiny_folders import COCA_CLIP_VOCABULARY

from open_clip_transformers.convert_scripts.mapping.config import build_config
from open_clip_transformers.modeling.modeling_coca import CoCaForConditionalGeneration


@torch.no_grad()
def bright_patch_coca() -> CoCaForConditionalGeneration:
    """A tiny CoCa on images of 24 x 24 pixels with patches of 8 x 8; pixels must not be below zero."""
    vision_cfg = {"no_ln_pre": True, "layers": 1}
    config = build_config(tiny_coca_cfg(**COCA_CLIP_VOCABULARY, vision_cfg=vision_cfg))
    model = CoCaForConditionalGeneration(config).eval()
    tower = model.vision_model
    # Tokens: brightness in the first feature, nothing else, whatever the layers.
    for weight in (*tower.embeddings.parameters(), *tower.encoder.parameters()):
        weight.zero_()
    tower.embeddings.patch_embedding.weight[0] = 1.0
    # All queries are the same, and the brighter a token the longer is its key.
    pooler = tower.attn_pool
    for norm in (pooler.layer_norm_q, pooler.layer_norm_k):
        norm.weight.fill_(1.0)
        norm.bias.zero_()
    pooler.layer_norm_q.weight.zero_()
    pooler.layer_norm_q.bias.fill_(1.0)
    for projection in (pooler.attention.q_proj, pooler.attention.k_proj):
        projection.weight.zero_()
        projection.bias.zero_()
    pooler.attention.q_proj.bias.fill_(10.0)
    pooler.attention.k_proj.weight[:, 0] = 1.0
    model.generation_config.max_length = 6
    return model
