"""The vision tower against open_clip's `VisionTransformer`, option by option (open_clip: `transformer.py`)."""

import math

import pytest
import torch
from model_pairs import BOUND, model_pair, random_images, relative_difference
from tiny_configs import open_clip_model, tiny_clip_cfg


# The residual stream is as wide as the embedding: what `parallel` and `cascade` poolers need.
SAME_WIDTH = {"width": 28, "head_width": 14}
EVERY_BLOCK_OPTION = {
    "qk_norm": True,
    "scale_heads": True,
    "scale_attn_inner": True,
    "scale_attn": True,
    "scale_fc": True,
}

# Name -> changes to `vision_cfg` (open_clip: `CLIPVisionCfg` in `model.py`).
OPTIONS = {
    "plain": {},
    "layer_scale": {"ls_init_value": 0.1},
    "patch_dropout": {"patch_dropout": 0.5},
    "pool_avg": {"pool_type": "avg"},
    "pool_none": {"pool_type": "none"},
    "final_ln_after_pool": {"final_ln_after_pool": True},
    "final_ln_after_avg_pool": {"final_ln_after_pool": True, "pool_type": "avg"},
    "final_ln_after_no_pool": {"final_ln_after_pool": True, "pool_type": "none"},
    "no_ln_pre": {"no_ln_pre": True},
    "sin_cos_positions": {"pos_embed_type": "sin_cos_2d"},
    "gelu_tanh": {"act_kwargs": {"approximate": "tanh"}},
    "norm_eps": {"norm_kwargs": {"eps": 0.2}},
    "image_and_patch_not_square": {"image_size": [16, 50], "patch_size": [8, 10]},
    "image_not_a_multiple_of_patches": {"image_size": [23, 30], "patch_size": 7},
    "one_head": {"head_width": 40},
    "one_layer": {"layers": 1},
    "mlp_ratio": {"mlp_ratio": 0.77},
    "attentional_pool": {"attentional_pool": True},
    "attentional_pool_avg": {"attentional_pool": True, "pool_type": "avg"},
    "attentional_pool_none": {"attentional_pool": True, "pool_type": "none"},
    "attentional_pool_heads_and_queries": {
        "attentional_pool": True,
        "attn_pooler_heads": 7,
        "attn_pooler_queries": 3,
    },
    "attentional_pool_same_width": {"attentional_pool": True, **SAME_WIDTH},
    "attentional_pool_parallel": {"attentional_pool": "parallel", **SAME_WIDTH},
    "attentional_pool_cascade": {"attentional_pool": "cascade", **SAME_WIDTH},
    # `attentional_pool` overrides these two (open_clip: `VisionTransformer.__init__`, `_pool`).
    "attentional_pool_cascade_over_pool_type": {"attentional_pool": "cascade", "pool_type": "avg", **SAME_WIDTH},
    "attentional_pool_over_final_ln": {"attentional_pool": True, "final_ln_after_pool": True},
    # The poolers keep the default epsilon (open_clip: `VisionTransformer.__init__` passes them no `norm_layer`).
    "attentional_pool_norm_eps": {"attentional_pool": True, "norm_kwargs": {"eps": 0.2}},
    "qk_norm": {"qk_norm": True},
    "qk_norm_eps": {"qk_norm": True, "norm_kwargs": {"eps": 0.2}},
    "scale_heads": {"scale_heads": True},
    "scale_attn_inner": {"scale_attn_inner": True},
    "scale_attn": {"scale_attn": True},
    "scale_fc": {"scale_fc": True},
    "block_type_custom": {"block_type": "custom"},
    # Any other block type is the plain block, which has no options (open_clip: `Transformer.__init__`).
    "block_type_default_without_options": {"block_type": "default", "qk_norm": True, "scale_fc": True},
    "every_block_option": {**EVERY_BLOCK_OPTION, "ls_init_value": 0.1, "norm_kwargs": {"eps": 0.02}},
    "every_block_option_attentional_pool": {
        **EVERY_BLOCK_OPTION,
        "attentional_pool": True,
        "pos_embed_type": "sin_cos_2d",
        "no_ln_pre": True,
        "act_kwargs": {"approximate": "tanh"},
    },
}

every_option = pytest.mark.parametrize("vision_cfg", OPTIONS.values(), ids=OPTIONS)


def assert_same_outputs(
    model_cfg: dict,
    reference: torch.nn.Module | None = None,
    dtype: torch.dtype = torch.float32,
    bound: float = BOUND,
):
    reference, model = model_pair(model_cfg, reference)
    reference.to(dtype).visual.output_tokens = True
    model.to(dtype)
    images = random_images(model_cfg).to(dtype)
    with torch.no_grad():
        pooled, tokens = reference.visual(images)
        outputs = model.vision_model(images)
    if model_cfg["vision_cfg"].get("attentional_pool") in ("parallel", "cascade"):
        # open_clip leaves the contrastive pooler's one query as a dimension: (images, 1, embed_dim).
        pooled = pooled.squeeze(1)
    assert relative_difference(outputs.pooler_output, pooled) < bound
    assert relative_difference(outputs.last_hidden_state, tokens) < bound


@pytest.mark.floor
@every_option
def test_vit_equals_open_clip(vision_cfg):
    assert_same_outputs(tiny_clip_cfg(vision_cfg=vision_cfg))


@pytest.mark.floor
def test_vit_equals_open_clip_with_quick_gelu():
    # open_clip: `_build_vision_tower` in `model.py`; OpenAI's, DFN's and MetaCLIP's weights need it.
    assert_same_outputs(tiny_clip_cfg(quick_gelu=True))


def test_open_clip_scaled_cosine_attention_raises():
    # The reason why the next test repairs it: the day this fails, the repair can go.
    model_cfg = tiny_clip_cfg(vision_cfg={"scaled_cosine_attn": True})
    with pytest.raises(RuntimeError, match="3D tensor"):
        open_clip_model(model_cfg).visual(random_images(model_cfg))


@pytest.mark.floor
@pytest.mark.parametrize("others", [{}, {"scale_heads": True, "scale_attn_inner": True}], ids=["alone", "with_others"])
# The first head's temperature is a new model's, then one that is clamped at log(100): in fp64, as that makes the last
# bits of fp32 large.
@pytest.mark.parametrize(
    ("temperature", "dtype", "bound"),
    [(math.log(10), torch.float32, BOUND), (math.log(100) + 1.7, torch.float64, 1e-12)],
    ids=["new", "clamped"],
)
def test_vit_equals_open_clip_with_scaled_cosine_attention(others, temperature, dtype, bound, monkeypatch):
    # open_clip: `Attention.forward` in `transformer.py` calls `torch.bmm` on (batch, heads, length, dim).
    monkeypatch.setattr(torch, "bmm", torch.matmul)
    model_cfg = tiny_clip_cfg(vision_cfg={"scaled_cosine_attn": True, **others})
    reference = open_clip_model(model_cfg)
    for block in reference.visual.transformer.resblocks:
        block.attn.logit_scale.data = torch.tensor([temperature, 0.6]).view(2, 1, 1)
    assert_same_outputs(model_cfg, reference, dtype, bound)


def test_vit_patch_dropout_keeps_as_many_tokens_as_open_clip():
    # open_clip: `PatchDropout` in `transformer.py`.
    model_cfg = tiny_clip_cfg(vision_cfg={"patch_dropout": 0.4, "pool_type": "none"})
    reference, model = model_pair(model_cfg)
    images = random_images(model_cfg)
    expected = reference.train().visual(images)
    pooled = model.train().vision_model(images).pooler_output
    assert pooled.shape == expected.shape == (3, 1 + 5, 28)


def test_vit_sin_cos_table_equals_open_clip_and_is_not_trained():
    # open_clip: `get_2d_sincos_pos_embed` in `pos_embed.py`, a parameter with `requires_grad=False`.
    from open_clip.model import CLIP

    from open_clip_transformers.modeling.modeling_vit import OpenClipVitEmbeddings, OpenClipVitModel

    model_cfg = tiny_clip_cfg(vision_cfg={"pos_embed_type": "sin_cos_2d", "image_size": 40})
    expected = CLIP(**model_cfg).visual.positional_embedding
    # New weights, not converted ones.
    config = model_pair(model_cfg)[1].config.vision_config
    for embeddings in (OpenClipVitModel(config).embeddings, OpenClipVitEmbeddings(config)):
        assert torch.equal(embeddings.position_embedding, expected)
        assert not embeddings.position_embedding.requires_grad and not expected.requires_grad
