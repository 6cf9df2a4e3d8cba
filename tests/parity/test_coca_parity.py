"""CoCa, its losses and gradients against open_clip's `CoCa` (open_clip: `coca_model.py`)."""

import pytest
import torch
from model_pairs import (
    BOUND,
    PAD,
    assert_same_gradients,
    model_pair,
    random_images,
    random_texts,
    relative_difference,
)
from tiny_configs import tiny_coca_cfg


CONTEXT_LENGTH = 10
RAW_PATCHES = {"attentional_pool": False, "width": 36, "head_width": 18}

MODELS = {
    # open_clip: `_pool` in `transformer.py`: one pooler, the norm behind it, the first query contrastive.
    "attentional_pool": tiny_coca_cfg(),
    # `coca_base`: the decoder attends to the patch tokens as they are.
    "raw_patches": tiny_coca_cfg(vision_cfg=RAW_PATCHES),
    "raw_patches_avg": tiny_coca_cfg(vision_cfg={**RAW_PATCHES, "pool_type": "avg"}),
    "raw_patches_final_ln_after_pool": tiny_coca_cfg(vision_cfg={**RAW_PATCHES, "final_ln_after_pool": True}),
    "parallel_poolers": tiny_coca_cfg(vision_cfg={**RAW_PATCHES, "attentional_pool": "parallel"}),
    "cascade_poolers": tiny_coca_cfg(vision_cfg={**RAW_PATCHES, "attentional_pool": "cascade"}),
    "two_queries": tiny_coca_cfg(vision_cfg={"attn_pooler_queries": 2}),
    "no_class_token": tiny_coca_cfg(text_cfg={"embed_cls": False}),
    "no_class_token_pool_last": tiny_coca_cfg(text_cfg={"embed_cls": False, "pool_type": "last"}),
    "bidirectional_text": tiny_coca_cfg(text_cfg={"no_causal_mask": True}),
    "quick_gelu": tiny_coca_cfg(quick_gelu=True),
    "layer_scale": tiny_coca_cfg(
        **{part: {"ls_init_value": 0.1} for part in ("vision_cfg", "text_cfg", "multimodal_cfg")}
    ),
    # open_clip hands the decoder neither of these (`_build_text_decoder_tower`).
    "decoder_fields_without_effect": tiny_coca_cfg(
        multimodal_cfg={"mlp_ratio": 2, "norm_kwargs": {"eps": 0.2}, "act_kwargs": {"approximate": "tanh"}}
    ),
    "towers_with_own_options": tiny_coca_cfg(
        vision_cfg={"qk_norm": True, "norm_kwargs": {"eps": 0.2}, "act_kwargs": {"approximate": "tanh"}},
        text_cfg={"scale_heads": True, "scale_fc": True, "norm_kwargs": {"eps": 0.1}},
    ),
    "longer_text_tower": tiny_coca_cfg(text_cfg={"context_length": 13}),
    "deep_decoder": tiny_coca_cfg(text_cfg={"layers": 1}, multimodal_cfg={"layers": 3, "heads": 6}),
    "image_and_patch_not_square": tiny_coca_cfg(vision_cfg={"image_size": [16, 50], "patch_size": [8, 10]}),
    "pad_id": tiny_coca_cfg(text_cfg={"pad_id": 3}, pad_id=3),
    "logit_bias": tiny_coca_cfg(init_logit_bias=-4.0, nonscalar_logit_scale=True),
}
every_model = pytest.mark.parametrize("model_cfg", MODELS.values(), ids=MODELS)


def captions() -> torch.Tensor:
    """A short, a middling and two full-length texts, one of them with the padding id, which is also "!", inside."""
    ids = random_texts([3, 6, CONTEXT_LENGTH, CONTEXT_LENGTH], CONTEXT_LENGTH)
    ids[-1, 4] = PAD
    return ids


@pytest.mark.floor
@every_model
def test_coca_equals_open_clip(model_cfg):
    reference, model = model_pair(model_cfg)
    images, texts = random_images(model_cfg, 4), captions()
    with torch.no_grad():
        expected = reference(images, texts, output_labels=False)
        outputs = model(texts, images)
        squeezed = expected["image_features"].reshape(4, -1)
        assert relative_difference(outputs.image_embeds, squeezed) < BOUND
        assert relative_difference(outputs.text_embeds, expected["text_features"]) < BOUND
        assert relative_difference(outputs.logits, expected["logits"]) < BOUND
        assert relative_difference(model.logit_scale.exp(), expected["logit_scale"]) < BOUND
        logits_per_image = expected["logit_scale"] * squeezed @ expected["text_features"].T
        logits_per_image = logits_per_image + expected.get("logit_bias", 0.0)
        assert relative_difference(outputs.logits_per_image, logits_per_image) < BOUND
        assert relative_difference(outputs.logits_per_text, logits_per_image.T) < BOUND


@pytest.mark.floor
@pytest.mark.parametrize("length", [1, 4], ids=["one_token", "four_tokens"])
def test_coca_equals_open_clip_on_fewer_tokens_than_positions(length):
    model_cfg = tiny_coca_cfg()
    reference, model = model_pair(model_cfg)
    images, texts = random_images(model_cfg, 4), captions()[:, :length]
    with torch.no_grad():
        expected = reference(images, texts, output_labels=False)
        outputs = model(texts, images)
    assert relative_difference(outputs.text_embeds, expected["text_features"]) < BOUND
    assert relative_difference(outputs.logits, expected["logits"]) < BOUND


@pytest.mark.parametrize("model_cfg", [MODELS["attentional_pool"], MODELS["raw_patches"]], ids=["pooled", "raw"])
def test_coca_image_hidden_states_equal_open_clip(model_cfg):
    reference, model = model_pair(model_cfg)
    images = random_images(model_cfg)
    with torch.no_grad():
        expected = reference(images)["image_embs"]
        assert relative_difference(model(pixel_values=images).image_hidden_states, expected) < BOUND


def labels_of(texts: torch.Tensor) -> torch.Tensor:
    return texts.masked_fill(texts == PAD, -100)


def open_clip_losses(reference, images: torch.Tensor, texts: torch.Tensor) -> dict[str, torch.Tensor]:
    # open_clip: `CoCaLoss` in `loss.py`. The logits at t predict token t + 1 (`CoCa.forward`), padding is ignored.
    from open_clip.loss import CoCaLoss

    loss = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=PAD)
    return loss(**reference(images, texts), output_dict=True)


@pytest.mark.floor
@pytest.mark.parametrize(
    "model_cfg",
    [MODELS[name] for name in ("attentional_pool", "raw_patches", "no_class_token")],
    ids=["attentional_pool", "raw_patches", "no_class_token"],
)
def test_coca_losses_and_gradients_equal_open_clip(model_cfg):
    reference, model = model_pair(model_cfg)
    images, texts = random_images(model_cfg, 4), captions()
    expected = open_clip_losses(reference.train(), images, texts)
    model.train()
    loss = model(texts, images, labels=labels_of(texts), return_loss=True).loss
    assert relative_difference(loss, expected["caption_loss"] + expected["contrastive_loss"]) < BOUND
    sum(expected.values()).backward()
    loss.backward()
    assert_same_gradients(model, reference)


def test_coca_single_losses_equal_open_clip_without_weights():
    model_cfg = tiny_coca_cfg()
    reference, model = model_pair(model_cfg)
    images, texts = random_images(model_cfg, 4), captions()
    with torch.no_grad():
        expected = open_clip_losses(reference, images, texts)
        caption_loss = model(texts, images, labels=labels_of(texts)).loss
        contrastive_loss = model(texts, images, return_loss=True).loss
    assert relative_difference(caption_loss, expected["caption_loss"] / 2) < BOUND
    assert relative_difference(contrastive_loss, expected["contrastive_loss"]) < BOUND


def test_coca_loss_weights_come_from_the_configuration():
    model_cfg = tiny_coca_cfg()
    _, model = model_pair(model_cfg)
    images, texts = random_images(model_cfg, 4), captions()
    with torch.no_grad():
        caption_loss = model(texts, images, labels=labels_of(texts)).loss
        contrastive_loss = model(texts, images, return_loss=True).loss
        model.config.caption_loss_weight, model.config.contrastive_loss_weight = 0.3, 5.0
        both = model(texts, images, labels=labels_of(texts), return_loss=True).loss
    assert torch.allclose(both, 0.3 * caption_loss + 5.0 * contrastive_loss)
