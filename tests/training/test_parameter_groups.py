"""Weight decay where open_clip has it, and learning rates that fall with depth."""

import pytest
import torch
from model_pairs import converted_tensors, model_pair
from timm.optim import param_groups_weight_decay
from tiny_configs import tiny_clip_cfg, tiny_coca_cfg, tiny_siglip_cfg
from tiny_models import tiny_model
from tiny_timm import FAMILIES

from open_clip_transformers import lock_image_tower, parameter_groups
from open_clip_transformers.training.parameter_groups import decayed_parameter_names, scale_learning_rates


pytestmark = pytest.mark.floor
CFGS = {"clip": tiny_clip_cfg(), "siglip": tiny_siglip_cfg(), "timm": FAMILIES["eva02"]}


@pytest.mark.parametrize("name", CFGS)
def test_weight_decay_is_that_of_open_clip(name):
    reference, model = model_pair(CFGS[name])
    decayed = param_groups_weight_decay(reference, 0.2, no_weight_decay_list=reference.no_weight_decay())[-1]
    assert decayed["weight_decay"] == 0.2
    marks = {key: torch.zeros_like(value) for key, value in reference.state_dict().items()}
    decays = {id(parameter) for parameter in decayed["params"]}
    # timm's own models are asked by timm where they are trained alone.
    decays -= (
        {id(reference.visual.trunk.get_parameter(key)) for key in ("cls_token", "pos_embed")}
        if name == "timm"
        else set()
    )
    for key, parameter in reference.named_parameters():
        marks[key] = torch.full_like(parameter, id(parameter) in decays)
    expected = {key: bool(mark.any()) for key, mark in converted_tensors(model.config, marks).items()}
    found = set(decayed_parameter_names(model))
    assert {key: key in found for key, _ in model.named_parameters()} == {
        key: expected[key] for key, _ in model.named_parameters()
    }


@pytest.mark.parametrize(
    "name",
    ["clip", "siglip_with_siglip_vit", "clip_hf_text", "clip_modern_text", "clip_resnet", "coca", "mammut_modern"],
)
def test_nothing_of_one_dimension_decays_and_no_temperature(name):
    model = tiny_model(name)
    decayed = decayed_parameter_names(model)
    parameters = dict(model.named_parameters())
    assert all(parameters[key].ndim > 1 for key in decayed)
    assert not any(part in key for key in decayed for part in ("bias", "logit_scale", "class_embedding"))
    assert any(name in key for key in decayed for name in ("token_embedding", "embed_tokens"))  # as in open_clip


def test_learning_rates_fall_with_depth():
    model = tiny_model("coca")
    lock_image_tower(model, unlocked_groups=3)
    groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.1, layer_decay=0.5)
    rate = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    decay = {parameter: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert set(rate) == {parameter for parameter in model.parameters() if parameter.requires_grad}
    text, vision = model.text_model, model.vision_model
    assert rate[text.projection.weight] == 1
    assert rate[text.final_layer_norm.weight] == rate[text.encoder.layers[1].mlp.fc1.weight] == 0.5
    assert rate[text.encoder.layers[0].mlp.fc1.weight] == 0.25
    assert rate[text.embeddings.token_embedding.weight] == rate[text.embeddings.class_embedding] == 0.125
    assert rate[vision.projection.weight] == 1 and rate[vision.encoder.layers[1].mlp.fc1.weight] == 0.25
    assert rate[model.lm_head.weight] == rate[model.logit_scale] == 1
    assert (
        decay[model.lm_head.weight] == 0.1 and decay[model.logit_scale] == decay[text.embeddings.class_embedding] == 0
    )
    torch.optim.AdamW(groups).step()


def test_groups_of_an_optimizer_are_split_by_depth():
    model = tiny_model("clip")
    plain = parameter_groups(model, learning_rate=0.4, weight_decay=0.1)
    optimizer = torch.optim.AdamW(plain)
    scale_learning_rates(optimizer, model, 0.5)
    found = {p: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    wanted = parameter_groups(model, learning_rate=0.4, weight_decay=0.1, layer_decay=0.5)
    assert found == {p: (group["lr"], group["weight_decay"]) for group in wanted for p in group["params"]}
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert scheduler.get_last_lr() == [group["initial_lr"] / 2 for group in optimizer.param_groups]


@pytest.mark.parametrize("layer_decay", [0, -0.5, 1.5])
def test_layer_decay_out_of_range_is_refused(layer_decay):
    with pytest.raises(ValueError, match=f"above 0 and at most 1, got {layer_decay}"):
        parameter_groups(tiny_model("clip"), 0.1, 0.1, layer_decay)


def test_decayed_names_are_found_once_for_a_coca():
    _, model = model_pair(tiny_coca_cfg())
    assert len(decayed_parameter_names(model)) == len(set(decayed_parameter_names(model)))
    assert {"vision_model.attn_pool.query", "lm_head.weight"} <= set(decayed_parameter_names(model))
