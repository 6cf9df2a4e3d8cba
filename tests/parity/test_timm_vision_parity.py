"""Towers of timm against open_clip's `TimmModel`: every architecture, pooling and projection (`timm_model.py`)."""

import pytest
import torch
from model_pairs import BOUND, assert_same_gradients, converted, model_pair, random_images, relative_difference
from tiny_configs import open_clip_model
from tiny_timm import FAMILIES, timm_vision_cfgs, tiny_cfg_of, tiny_timm_cfg

from open_clip_transformers.convert_scripts.verify.values import intermediates_table, recorded


every_family = pytest.mark.parametrize("model_cfg", FAMILIES.values(), ids=FAMILIES)
VISION_CFGS = timm_vision_cfgs()


def assert_same_embeddings(model_cfg: dict, reference=None, **fields):
    reference, model = model_pair(model_cfg, reference, **fields)
    images = random_images(model_cfg)
    with torch.no_grad():
        expected = reference.visual(images)
        assert relative_difference(model.vision_model(images).pooler_output, expected) < BOUND
    assert expected.std() > 0.01


@pytest.mark.parametrize("vision_cfg", VISION_CFGS.values(), ids=VISION_CFGS)
def test_timm_tower_of_every_architecture_equals_open_clip(vision_cfg):
    assert_same_embeddings(tiny_cfg_of(vision_cfg))


CONVNEXT, EVA, VIT = "convnext_tiny", "eva02_base_patch16_clip_224", "vit_base_patch16_224"
HEADS = {
    "avg_linear": (CONVNEXT, {"timm_pool": "avg", "timm_proj": "linear"}),
    "max_linear_bias": (CONVNEXT, {"timm_pool": "max", "timm_proj": "linear", "timm_proj_bias": True}),
    "own_pool_mlp": (CONVNEXT, {"timm_pool": "", "timm_proj": "mlp"}),
    "own_pool_mlp_bias": (CONVNEXT, {"timm_pool": "", "timm_proj": "mlp", "timm_proj_bias": True, "timm_drop": 0.3}),
    "own_classifier": (CONVNEXT, {"timm_pool": "avg", "timm_proj": None}),
    "own_classifier_empty": (CONVNEXT, {"timm_pool": "avg", "timm_proj": ""}),
    "no_projection": (CONVNEXT, {"timm_pool": "avg", "timm_proj": "none"}),
    "abs_attn": (CONVNEXT, {"timm_pool": "abs_attn", "timm_proj": None}),
    "abs_attn_none": (CONVNEXT, {"timm_pool": "abs_attn", "timm_proj": "none"}),
    "abs_attn_linear": (CONVNEXT, {"timm_pool": "abs_attn", "timm_proj": "linear"}),
    "rot_attn": (CONVNEXT, {"timm_pool": "rot_attn", "timm_proj": ""}),
    "rot_attn_mlp": (CONVNEXT, {"timm_pool": "rot_attn", "timm_proj": "mlp"}),
    "token_classifier": (EVA, {"timm_pool": "token", "timm_proj": None}),
    "token_linear": (EVA, {"timm_pool": "token", "timm_proj": "linear"}),
    "tokens_avg": (EVA, {"timm_pool": "avg", "timm_proj": "linear"}),
    "tokens_map": (VIT, {"timm_pool": "map", "timm_proj": None}),
    "all_tokens": (VIT, {"timm_pool": "", "timm_proj": None}),
    "patch_dropout": (VIT, {"timm_pool": "token", "timm_proj": "linear", "patch_dropout": 0.5}),
}


@pytest.mark.parametrize(("name", "vision_cfg"), HEADS.values(), ids=HEADS)
def test_pooling_and_projection_equal_open_clip(name, vision_cfg):
    # Attention pooling has positions for the features of images of timm's own size.
    size = {"image_size": 224} if "_attn" in vision_cfg["timm_pool"] else {}
    assert_same_embeddings(tiny_timm_cfg(name, **size, **vision_cfg))


@pytest.mark.parametrize("model_cfg", [FAMILIES["eva02"], FAMILIES["fastvit"]], ids=["eva02", "fastvit"])
def test_gradients_equal_open_clip(model_cfg):
    reference, model = model_pair(model_cfg)
    images = random_images(model_cfg)
    input_ids = torch.randint(1, 90, (len(images), 11))
    (reference.visual(images) ** 2).mean().backward()
    (reference.text(input_ids) ** 2).mean().backward()
    (model.get_image_features(images).pooler_output ** 2).mean().backward()
    (model.get_text_features(input_ids).pooler_output ** 2).mean().backward()
    for part in (reference, model):
        part.logit_scale.grad = torch.zeros(())
    assert_same_gradients(model, reference)


@every_family
def test_half_precision_is_as_good_as_open_clips(model_cfg):
    # open_clip casts timm's towers as a whole (`_set_model_device_and_precision` in `factory.py`).
    reference, model = model_pair(model_cfg)
    images = random_images(model_cfg)
    with torch.no_grad():
        expected = reference.visual(images)
        theirs = reference.to(torch.bfloat16).visual(images.bfloat16())
        ours = model.to(torch.bfloat16).vision_model(images).pooler_output
    assert ours.dtype == torch.bfloat16
    assert relative_difference(ours, expected) <= 2 * relative_difference(theirs, expected)


@every_family
def test_hidden_states_equal_open_clips_intermediates(model_cfg):
    # open_clip: `TimmModel.forward_intermediates`.
    reference, model = model_pair(model_cfg)
    images = random_images(model_cfg)
    with torch.no_grad():
        expected = reference.visual.forward_intermediates(images)
        outputs = model.vision_model(images, output_hidden_states=True)
        plain = model.vision_model(images)
    assert len(outputs.hidden_states) == len(expected["image_intermediates"])
    for ours, theirs in zip(outputs.hidden_states, expected["image_intermediates"]):
        assert relative_difference(ours, theirs) < BOUND
    assert torch.equal(outputs.pooler_output, plain.pooler_output)
    assert torch.equal(outputs.last_hidden_state, plain.last_hidden_state)
    assert plain.hidden_states is None


@every_family
def test_layers_are_found_by_name_and_equal(model_cfg):
    reference, model = model_pair(model_cfg)
    table, images = intermediates_table(model.config, "text."), random_images(model_cfg)
    ours: dict[str, torch.Tensor] = {}
    theirs: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        with recorded(model, table, "ours", lambda name, value: ours.update({name: value.clone()})):
            model.vision_model(images)
        with recorded(reference, table, "theirs", lambda name, value: theirs.update({name: value.clone()})):
            reference.visual(images)
    assert list(ours) == list(theirs) and len(ours) > 4
    for name, value in theirs.items():
        assert relative_difference(ours[name], value) < BOUND, name


RESIZED = {
    "eva02": ("eva02_large_patch14_clip_224", {"timm_pool": "token", "timm_proj": None}, [56, 42]),
    "pe_core": ("vit_pe_core_base_patch16_224", {"timm_pool": "map", "timm_proj": None}, 64),
    "relpos": ("vit_relpos_medium_patch16_cls_224", {"timm_pool": ""}, 64),
    "swin": ("swin_base_patch4_window7_224", {"timm_pool": ""}, 160),
    "mci": ("vit_base_mci_224", {"timm_pool": "token", "timm_proj": None}, 64),
    "vitamin": ("vitamin_large_224", {"timm_pool": ""}, 96),
    "convnext": ("convnext_base", {"timm_pool": ""}, [40, 72]),
}


@pytest.mark.filterwarnings("ignore:.*(searchsorted|non-tuple sequence):UserWarning")  # within timm
@pytest.mark.parametrize(("name", "vision_cfg", "image_size"), RESIZED.values(), ids=RESIZED)
def test_other_image_size_equals_open_clips_forced_one(name, vision_cfg, image_size):
    # open_clip: `force_image_size` of `create_model`, which calls `set_input_size` after loading.
    model_cfg = tiny_timm_cfg(name, **vision_cfg)
    reference = open_clip_model(model_cfg)
    if name != "convnext_base" and not hasattr(reference.visual.trunk, "set_input_size"):
        pytest.skip("this release of timm cannot set the model to another size")
    model_cfg["vision_cfg"]["image_size"] = image_size
    model = converted(model_cfg, reference)
    reference.visual.set_input_size(image_size)
    images = random_images(model_cfg)
    with torch.no_grad():
        expected = reference.visual(images)
        assert relative_difference(model.vision_model(images).pooler_output, expected) < BOUND
    # A checkpoint that was trained at this size is taken as it is.
    again = converted(model_cfg, reference)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key


def test_dual_model_with_a_timm_tower_equals_open_clip():
    model_cfg = FAMILIES["vitamin"]
    reference, model = model_pair(model_cfg)
    images, input_ids = random_images(model_cfg), torch.randint(1, 90, (2, 11))
    with torch.no_grad():
        expected, _ = reference.get_logits(images, input_ids)
        assert relative_difference(model(input_ids, images).logits_per_image, expected) < BOUND
