"""Feature maps and embedded patches against open_clip's and timm's `forward_intermediates`, option by option."""

import pytest
import torch
from model_pairs import BOUND, model_pair, random_images, relative_difference
from siglip_vit_pairs import images_for, tower_pair
from tiny_configs import open_clip_model, tiny_clip_cfg, tiny_resnet_cfg

from open_clip_transformers import ModifiedResNetBackbone, OpenClipVitBackbone, SiglipVitBackbone


SAME_WIDTH = {"width": 28, "head_width": 14}
# Name -> changes to `vision_cfg`.
OPTIONS = {
    "plain": {},
    "patch_dropout": {"patch_dropout": 0.5},
    "pool_avg": {"pool_type": "avg"},
    "final_ln_after_pool": {"final_ln_after_pool": True},
    "no_ln_pre": {"no_ln_pre": True},
    "sin_cos_positions": {"pos_embed_type": "sin_cos_2d"},
    "image_and_patch_not_square": {"image_size": [16, 50], "patch_size": [8, 10]},
    "image_not_a_multiple_of_patches": {"image_size": [23, 30], "patch_size": 7},
    "block_options": {"qk_norm": True, "scale_heads": True, "scale_fc": True, "ls_init_value": 0.1},
    "attentional_pool_same_width": {"attentional_pool": True, **SAME_WIDTH},
    "attentional_pool_cascade": {"attentional_pool": "cascade", **SAME_WIDTH},
}
# `indices` of open_clip, which counts layers: a number for so many of the last.
INDICES = {"last": 1, "last_two": 2, "all": None, "first": [0], "first_and_last": [0, 2], "negative": [-3, -2]}
every_option = pytest.mark.parametrize("vision_cfg", OPTIONS.values(), ids=OPTIONS)
every_indices = pytest.mark.parametrize("indices", INDICES.values(), ids=INDICES)


def backbone(backbone_class, tower, **fields):
    """The backbone of `tower`, with its weights."""
    model = backbone_class(type(tower.config)(**{**tower.config.to_dict(), **fields})).eval()
    missing, _ = model.load_state_dict(tower.state_dict(), strict=False)
    assert not missing
    return model


def out_indices(indices, num_layers: int = 3) -> list[int]:
    """open_clip's `indices` as ours, which count the embeddings."""
    if indices is None or isinstance(indices, int):
        return list(range(num_layers + 1))[-(indices or num_layers) :]
    return [index if index < 0 else index + 1 for index in indices]


def assert_same_maps(outputs, feature_maps, prefix_tokens=None):
    for ours, expected in zip(outputs.feature_maps, feature_maps, strict=True):
        assert relative_difference(ours, expected) < BOUND
    if prefix_tokens is None:
        assert outputs.prefix_tokens is None
        return
    for ours, expected in zip(outputs.prefix_tokens, prefix_tokens, strict=True):
        assert relative_difference(ours, expected) < BOUND


def assert_same_as_open_clip(model_cfg: dict, indices=None, apply_layernorm: bool = False):
    reference, model = model_pair(model_cfg)
    fields = {"out_indices": out_indices(indices), "apply_layernorm": apply_layernorm}
    ours = backbone(OpenClipVitBackbone, model.vision_model, **fields)
    images = random_images(model_cfg)
    with torch.no_grad():
        expected = reference.visual.forward_intermediates(
            images, indices=indices, normalize_intermediates=apply_layernorm, output_extra_tokens=True
        )
        outputs = ours(images)
    assert_same_maps(outputs, expected["image_intermediates"], expected["image_intermediates_prefix"])


@every_option
def test_vit_feature_maps_equal_open_clip(vision_cfg):
    assert_same_as_open_clip(tiny_clip_cfg(vision_cfg=vision_cfg))


@every_option
def test_normalized_vit_feature_maps_equal_open_clip(vision_cfg):
    assert_same_as_open_clip(tiny_clip_cfg(vision_cfg=vision_cfg), apply_layernorm=True)


@every_indices
def test_vit_feature_maps_of_any_layers_equal_open_clip(indices):
    assert_same_as_open_clip(tiny_clip_cfg(), indices)


def test_vit_feature_maps_with_attentional_pooling_equal_open_clip():
    assert_same_as_open_clip(tiny_clip_cfg(vision_cfg={"attentional_pool": True}))


def test_vit_feature_maps_of_another_size_equal_open_clip():
    from open_clip.model import resize_pos_embed

    reference, model = model_pair(tiny_clip_cfg())
    other_cfg = tiny_clip_cfg(vision_cfg={"image_size": [16, 40]})
    other, state_dict = open_clip_model(other_cfg), reference.state_dict()
    resize_pos_embed(state_dict, other)
    other.load_state_dict(state_dict)
    images = random_images(other_cfg)
    with torch.no_grad():
        expected = other.visual.forward_intermediates(images, output_extra_tokens=True)
        outputs = backbone(OpenClipVitBackbone, model.vision_model, out_indices=[1, 2, 3])(images, True)
    assert outputs.feature_maps[0].shape == (3, 40, 2, 5)
    assert_same_maps(outputs, expected["image_intermediates"], expected["image_intermediates_prefix"])


def test_vit_backbone_has_the_gradients_of_open_clip():
    reference, model = model_pair(tiny_clip_cfg())
    ours = backbone(OpenClipVitBackbone, model.vision_model, out_indices=[1, 2])
    images = [random_images(tiny_clip_cfg()).requires_grad_() for _ in range(2)]
    sum(
        (feature_map**2).sum()
        for feature_map in reference.visual.forward_intermediates(images[0], indices=[0, 1])["image_intermediates"]
    ).backward()
    sum((feature_map**2).sum() for feature_map in ours(images[1]).feature_maps).backward()
    assert relative_difference(images[1].grad, images[0].grad) < 1e-4


PREFIX = ({"class_token": True, "reg_tokens": 2}, {"use_class_token": True, "num_register_tokens": 2})
# Name -> timm's arguments and our fields.
TIMM_OPTIONS = {
    "siglip": ({}, {}),
    "class_token": ({"class_token": True}, {"use_class_token": True}),
    "class_and_register_tokens": PREFIX,
    "no_embed_class": ({**PREFIX[0], "no_embed_class": True}, {**PREFIX[1], "no_embed_class": True}),
    "average": ({"global_pool": "avg"}, {"pool_type": "avg"}),
    "map_fc_norm": ({"fc_norm": True}, {"use_fc_norm": True}),
    "pre_norm": ({"pre_norm": True}, {"use_pre_layer_norm": True}),
    "image_not_a_multiple_of_patches": ({"img_size": (23, 34)}, {"image_size": [23, 34]}),
}
# Name -> the same, and an image size that is not the model's.
SIZES = {
    "dynamic": ({"dynamic_img_size": True}, {"dynamic_image_size": True}, (35, 18)),
    "padded": (
        {"dynamic_img_size": True, "dynamic_img_pad": True},
        {"dynamic_image_size": True, "dynamic_image_padding": True},
        (22, 31),
    ),
}
every_timm_option = pytest.mark.parametrize(("timm_args", "fields"), TIMM_OPTIONS.values(), ids=TIMM_OPTIONS)


def assert_same_as_timm(timm_args, fields, indices=None, apply_layernorm=False, size=None):
    reference, model = tower_pair(timm_args, fields)
    ours = backbone(SiglipVitBackbone, model, out_indices=out_indices(indices), apply_layernorm=apply_layernorm)
    images = images_for(model, size)
    with torch.no_grad():
        expected = reference.forward_intermediates(
            images, indices=indices, norm=apply_layernorm, return_prefix_tokens=True, output_dict=True
        )
        outputs = ours(images)
    assert_same_maps(outputs, expected["image_intermediates"], expected.get("image_intermediates_prefix"))


@every_timm_option
@pytest.mark.parametrize("apply_layernorm", [False, True], ids=["raw", "normalized"])
def test_siglip_vit_feature_maps_equal_timm(timm_args, fields, apply_layernorm):
    assert_same_as_timm(timm_args, fields, apply_layernorm=apply_layernorm)


@every_indices
def test_siglip_vit_feature_maps_of_any_layers_equal_timm(indices):
    assert_same_as_timm(*PREFIX, indices)


@pytest.mark.parametrize(("timm_args", "fields", "size"), SIZES.values(), ids=SIZES)
def test_siglip_vit_feature_maps_of_another_size_equal_timm(timm_args, fields, size):
    assert_same_as_timm({**PREFIX[0], **timm_args}, {**PREFIX[1], **fields}, size=size)


@pytest.mark.parametrize("indices", [None, [0, 3], [-1]], ids=["all", "stem_and_third", "last"])
def test_resnet_feature_maps_equal_open_clip(indices):
    model_cfg = tiny_resnet_cfg()
    reference, model = model_pair(model_cfg)
    ours = backbone(ModifiedResNetBackbone, model.vision_model, out_indices=indices or [0, 1, 2, 3, 4])
    images = random_images(model_cfg)
    with torch.no_grad():
        # Without `intermediates_only`, open_clip pools the last map asked for, whatever its width.
        expected = reference.visual.forward_intermediates(images, indices=indices, intermediates_only=True)
        outputs = ours(images)
    assert_same_maps(outputs, expected["image_intermediates"])
    assert ours.channels == [feature_map.shape[1] for feature_map in outputs.feature_maps]


@pytest.mark.parametrize(
    "vision_cfg", [{}, {"pool_type": "avg"}, {"final_ln_after_pool": True}], ids=["tok", "avg", "final_ln_after_pool"]
)
def test_patch_features_are_projected_feature_maps_of_open_clip(vision_cfg):
    model_cfg = tiny_clip_cfg(vision_cfg={"image_size": [16, 40], **vision_cfg})
    reference, model = model_pair(model_cfg)
    images = random_images(model_cfg)
    with torch.no_grad():
        (last,) = reference.visual.forward_intermediates(images, indices=1, normalize_intermediates=True)[
            "image_intermediates"
        ]
        expected = last.permute(0, 2, 3, 1) @ reference.visual.proj
        features = model.get_patch_features(images)
    assert relative_difference(features, expected) < BOUND
