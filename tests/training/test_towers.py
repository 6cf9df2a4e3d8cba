"""Locked towers: the same parameters as open_clip's `lock`, and batch norms that stay frozen."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from model_pairs import converted_tensors, model_pair
from open_clip.timm_model import TimmModel
from open_clip.transformer import lock_text_tower as lock_text_of_open_clip
from siglip_vit_pairs import converted as converted_siglip
from siglip_vit_pairs import tower_pair
from tiny_configs import tiny_clip_cfg, tiny_coca_cfg, tiny_hf_text_cfg, tiny_resnet_cfg, tiny_siglip_cfg
from tiny_models import tiny_inputs, tiny_model
from tiny_timm import FAMILIES, tiny_timm_cfg

from open_clip_transformers.training.batch_norms import batch_norms, keep_running_statistics
from open_clip_transformers.training.towers import depth_groups, lock_image_tower, lock_text_tower


pytestmark = pytest.mark.floor
POOLED = {"attentional_pool": "parallel", "width": 36, "head_width": 18}
CFGS = {
    "clip": tiny_clip_cfg(),
    "siglip": tiny_siglip_cfg(),
    "no_projection": tiny_siglip_cfg(text_cfg={"proj_type": "none", "width": 28, "heads": 2}),
    "coca": tiny_coca_cfg(),
    "coca_with_poolers": tiny_coca_cfg(vision_cfg=POOLED),
    "one_layer": tiny_clip_cfg(vision_cfg={"layers": 1}, text_cfg={"layers": 1}),
}
TIMM = {"eva02": FAMILIES["eva02"], "convnext": tiny_timm_cfg("convnext_base", timm_proj="mlp", timm_pool="avg")}


def locked_by_open_clip(reference: torch.nn.Module, config) -> dict[str, bool]:
    """Our names of open_clip's parameters -> whether they are locked."""
    marks = {name: torch.zeros_like(value) for name, value in reference.state_dict().items()}
    marks |= {name: torch.full_like(value, value.requires_grad) for name, value in reference.named_parameters()}
    return {name: not mark.any() for name, mark in converted_tensors(config, marks).items()}


def locked(model: torch.nn.Module, prefix: str = "") -> dict[str, bool]:
    return {prefix + name: not parameter.requires_grad for name, parameter in model.named_parameters()}


def assert_locked_alike(model, expected: dict[str, bool], prefix: str = ""):
    found = locked(model, prefix)
    assert found == {name: expected[name] for name in found}


@pytest.mark.parametrize("unlocked", [0, 1, 2, 4, 99])
@pytest.mark.parametrize("name", CFGS)
def test_vision_transformer_locks_as_in_open_clip(name, unlocked):
    reference, model = model_pair(CFGS[name])
    reference.visual.lock(unlocked_groups=unlocked)
    lock_image_tower(model, unlocked_groups=unlocked)
    assert_locked_alike(model, locked_by_open_clip(reference, model.config))


@pytest.mark.parametrize("unlocked", [0, 1, 2, 3, 99])
@pytest.mark.parametrize("name", CFGS)
def test_text_transformer_locks_as_in_open_clip(name, unlocked):
    reference, model = model_pair(CFGS[name])
    lock_text_of_open_clip(reference, unlocked)
    lock_text_tower(model, unlocked_layers=unlocked)
    assert_locked_alike(model, locked_by_open_clip(reference, model.config))


@pytest.mark.parametrize("unlocked", [0, 1, 2, 99])
@pytest.mark.parametrize(
    ("model_type", "freeze_layer_norm"),
    [("roberta", True), ("roberta", False), ("mt5", True)],
    ids=["roberta", "roberta_with_free_norms", "mt5"],
)
def test_encoder_of_transformers_locks_as_in_open_clip(model_type, freeze_layer_norm, unlocked):
    reference, model = model_pair(tiny_hf_text_cfg(model_type))
    reference.text.lock(unlocked, freeze_layer_norm)
    lock_text_tower(model, unlocked_layers=unlocked, freeze_layer_norm=freeze_layer_norm)
    assert_locked_alike(model, locked_by_open_clip(reference, model.config))


@pytest.mark.parametrize("model_type", ["bert", "m2m_100"])
def test_encoder_that_open_clip_cannot_lock_in_part_locks_alike(model_type):
    _, model = model_pair(tiny_hf_text_cfg(model_type))
    lock_text_tower(model, unlocked_layers=1)
    text_model = model.text_model
    layers = text_model.hf_model.encoder.layer if model_type == "bert" else text_model.hf_model.layers
    assert [any(p.requires_grad for p in layer.parameters()) for layer in layers] == [False, True]
    assert not text_model.get_input_embeddings().weight.requires_grad
    assert all(p.requires_grad for p in text_model.projection.parameters())


@pytest.mark.parametrize("unlocked", [0, 1, 2, 3, 99])
@pytest.mark.parametrize("name", TIMM)
def test_tower_of_timm_locks_as_in_open_clip(name, unlocked):
    reference, model = model_pair(TIMM[name])
    reference.visual.lock(unlocked_groups=unlocked)
    lock_image_tower(model, unlocked_groups=unlocked)
    assert_locked_alike(model, locked_by_open_clip(reference, model.config))


@pytest.mark.parametrize("unlocked", [0, 1, 2, 4, 99])
@pytest.mark.parametrize(
    ("timm_args", "fields"),
    [
        ({}, {}),
        (
            {"class_token": True, "reg_tokens": 2, "pre_norm": True, "global_pool": "token"},
            {"use_class_token": True, "num_register_tokens": 2, "use_pre_layer_norm": True, "pool_type": "token"},
        ),
        ({"global_pool": "avg", "fc_norm": True}, {"pool_type": "avg", "use_fc_norm": True}),
    ],
    ids=["map", "tokens", "fc_norm"],
)
def test_siglip_tower_locks_as_in_open_clip(timm_args, fields, unlocked):
    reference, tower = tower_pair(timm_args, {**fields, "proj_type": "none"})
    model = SimpleNamespace(vision_model=tower)
    TimmModel.lock(SimpleNamespace(trunk=reference), unlocked_groups=unlocked)
    lock_image_tower(model, unlocked_groups=unlocked)
    marks = {name: torch.full_like(value, value.requires_grad) for name, value in reference.named_parameters()}
    expected = {name: not mark.any() for name, mark in converted_siglip(reference, marks).items()}
    assert_locked_alike(tower, expected)


def test_resnet_locks_whole_and_its_batch_norms_stay_frozen():
    reference, model = model_pair(tiny_resnet_cfg())
    reference.visual.lock(freeze_bn_stats=True)
    lock_image_tower(model, freeze_bn_stats=True)
    assert all(locked(model.vision_model).values()) and not any(locked(model.text_model).values())
    before = copy.deepcopy(model.vision_model.state_dict())
    inputs = tiny_inputs(model)
    expected = model.eval()(**inputs).image_embeds
    embeds = model.train()(**inputs).image_embeds
    assert torch.equal(embeds, expected)
    reference.train()
    with torch.no_grad():
        theirs = torch.nn.functional.normalize(reference.encode_image(inputs["pixel_values"]), dim=-1)
    assert torch.allclose(embeds, theirs, atol=1e-5)
    after = model.vision_model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in after)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_frozen_batch_norms_stay_so_in_copies(copied):
    model = tiny_model("resnet")
    lock_image_tower(SimpleNamespace(vision_model=model), freeze_bn_stats=True)
    twin = copied(model).train()
    norms = batch_norms(twin)
    assert norms and not any(norm.training for norm in norms)
    assert all(isinstance(norm, torch.nn.BatchNorm2d) for norm in norms)


def test_frozen_batch_norms_stay_so_with_gradient_checkpointing():
    # Layers that are computed anew take back what the first pass counted, which here is nothing.
    model = tiny_model("clip_resnet")
    lock_image_tower(model, freeze_bn_stats=True)
    model.vision_model.attn_pool.requires_grad_(True)
    model.vision_model.embeddings.conv1.convolution.requires_grad_(True)
    before = copy.deepcopy(model.vision_model.state_dict())
    model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model(**tiny_inputs(model), return_loss=True).loss.backward()
    after = model.vision_model.state_dict()
    assert [name for name in after if not torch.equal(after[name], before[name])] == []


def test_batch_norms_of_unlocked_groups_of_timm_still_move():
    _, model = model_pair(tiny_timm_cfg("fastvit_mci0", timm_proj="linear", timm_pool="avg"))
    lock_image_tower(model, unlocked_groups=2, freeze_bn_stats=True)
    norms = batch_norms(model.train().vision_model)
    can_learn = [any(parameter.requires_grad for parameter in norm.parameters()) for norm in norms]
    assert [norm.training for norm in norms] == can_learn and set(can_learn) == {True, False}


def test_keep_running_statistics_leaves_them_alone():
    model = tiny_model("resnet").train()
    inputs, before = tiny_inputs(model), copy.deepcopy(model.state_dict())
    with keep_running_statistics(model):
        first = model(**inputs).pooler_output
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(**inputs).pooler_output, first)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_groups_by_depth_hold_each_parameter_once():
    for name in (
        "clip",
        "siglip_with_siglip_vit",
        "clip_resnet",
        "clip_timm_vision",
        "clip_hf_text",
        "clip_modern_text",
        "coca",
    ):
        model = tiny_model(name)
        for tower in (model.vision_model, model.text_model):
            names = [name for group in depth_groups(tower) for name in group]
            assert len(names) == len(set(names))
            assert set(names) <= dict(tower.named_parameters()).keys()


@pytest.mark.parametrize(
    ("name", "lock", "arguments", "message"),
    [
        ("clip", lock_image_tower, {"unlocked_groups": -1}, "unlocked_groups is the number of groups .* got -1"),
        ("clip", lock_text_tower, {"unlocked_layers": -2}, "unlocked_layers is the number of groups .* got -2"),
        ("clip_resnet", lock_image_tower, {"unlocked_groups": 1}, "ModifiedResNetModel is locked whole"),
        ("clip", lock_image_tower, {"freeze_bn_stats": True}, "OpenClipVitModel has no batch norms"),
        ("clip", lock_text_tower, {"freeze_layer_norm": False}, "freeze_layer_norm=False"),
        ("vit", lock_image_tower, {}, "OpenClipVitModel has no vision_model: pass a dual model"),
    ],
    ids=["negative_groups", "negative_layers", "part_of_resnet", "no_batch_norms", "no_layer_norms", "no_dual_model"],
)
def test_locks_that_mean_nothing_are_refused(name, lock, arguments, message):
    model = tiny_model(name)
    with pytest.raises(ValueError, match=message):
        lock(model, **arguments)
    assert not any(locked(model).values())
