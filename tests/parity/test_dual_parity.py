"""Dual models, their losses and gradients against open_clip's `CLIP` and `CustomTextCLIP` (open_clip: `model.py`)."""

import pytest
import torch
from model_pairs import (
    BOUND,
    assert_same_gradients,
    model_pair,
    random_images,
    random_texts,
    relative_difference,
)
from tiny_configs import tiny_clip_cfg, tiny_siglip_cfg

from open_clip_transformers.modeling.modeling_open_clip import OpenClipModel, OpenClipSiglipModel


CONTEXT_LENGTH = 11

MODELS = {
    "clip": tiny_clip_cfg(),
    "custom_text_clip": tiny_clip_cfg(custom_text=True),
    "clip_quick_gelu": tiny_clip_cfg(quick_gelu=True),
    "clip_no_projection": tiny_clip_cfg(
        embed_dim=36, vision_cfg={"attn_pooler_heads": 3}, text_cfg={"proj_type": "none"}
    ),
    "clip_projection_bias": tiny_clip_cfg(text_cfg={"proj_bias": True}),
    "clip_pool_eos": tiny_clip_cfg(text_cfg={"pool_type": "eos", "eos_id": 96}),
    "clip_nonscalar_scale": tiny_clip_cfg(nonscalar_logit_scale=True),
    "siglip": tiny_siglip_cfg(),
    "siglip_nonscalar_scale": tiny_siglip_cfg(nonscalar_logit_scale=True),
}
every_model = pytest.mark.parametrize("model_cfg", MODELS.values(), ids=MODELS)


@pytest.mark.floor
@every_model
def test_dual_model_equals_open_clip(model_cfg):
    reference, model = model_pair(model_cfg)
    images, texts = random_images(model_cfg, 3), random_texts([4, 7, 11, 2], CONTEXT_LENGTH)
    with torch.no_grad():
        outputs = model(texts, images)
        logits_per_image, logits_per_text = reference.get_logits(images, texts)
        image_features = reference.encode_image(images)
        text_features = reference.encode_text(texts)
        assert relative_difference(model.get_image_features(images).pooler_output, image_features) < BOUND
        assert relative_difference(model.get_text_features(texts).pooler_output, text_features) < BOUND
        assert relative_difference(outputs.image_embeds, reference.encode_image(images, normalize=True)) < BOUND
        assert relative_difference(outputs.text_embeds, reference.encode_text(texts, normalize=True)) < BOUND
    assert outputs.logits_per_image.shape == (3, 4)
    assert relative_difference(outputs.logits_per_image, logits_per_image) < BOUND
    assert relative_difference(outputs.logits_per_text, logits_per_text) < BOUND
    assert model.logit_scale.shape == reference.logit_scale.shape


@pytest.mark.parametrize(
    ("model_cfg", "model_class"),
    [
        (tiny_clip_cfg(), OpenClipModel),
        (tiny_clip_cfg(init_logit_bias=-3.0), OpenClipSiglipModel),
        (tiny_siglip_cfg(), OpenClipSiglipModel),
    ],
    ids=["clip", "clip_with_a_bias", "siglip"],
)
def test_dual_model_class_follows_the_logit_bias(model_cfg, model_class):
    assert type(model_pair(model_cfg)[1]) is model_class


def open_clip_loss(reference, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    # open_clip: `ClipLoss` and `SigLipLoss` in `loss.py`.
    from open_clip.loss import ClipLoss, SigLipLoss

    features = reference.encode_image(images, normalize=True), reference.encode_text(texts, normalize=True)
    if reference.logit_bias is None:
        return ClipLoss()(*features, reference.logit_scale.exp())
    return SigLipLoss()(*features, reference.logit_scale.exp(), reference.logit_bias)


@pytest.mark.floor
@every_model
def test_dual_model_loss_and_gradients_equal_open_clip(model_cfg):
    reference, model = model_pair(model_cfg)
    images, texts = random_images(model_cfg, 4), random_texts([4, 7, 11, 2], CONTEXT_LENGTH)
    expected = open_clip_loss(reference.train(), images, texts)
    loss = model.train()(texts, images, return_loss=True).loss
    assert relative_difference(loss, expected.reshape(loss.shape)) < BOUND
    expected.backward()
    loss.backward()
    assert_same_gradients(model, reference)
