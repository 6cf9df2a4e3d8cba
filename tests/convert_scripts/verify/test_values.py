"""Inputs of verifications, and values inside models: by name on both sides, once, in the order of the forward pass."""

import pytest
import torch
from model_pairs import model_pair, random_images
from tiny_configs import (
    tiny_clip_cfg,
    tiny_coca_cfg,
    tiny_hf_coca_cfg,
    tiny_hf_text_cfg,
    tiny_resnet_cfg,
    tiny_siglip_cfg,
)

from open_clip_transformers.convert_scripts.mapping.config import build_config
from open_clip_transformers.convert_scripts.towers.base import Intermediate
from open_clip_transformers.convert_scripts.verify.compare import OURS, open_clip_library
from open_clip_transformers.convert_scripts.verify.reference import text_prefix
from open_clip_transformers.convert_scripts.verify.values import intermediates_table, recorded, verification_inputs


MODELS = {
    "clip": tiny_clip_cfg(),
    "block-options": tiny_clip_cfg(vision_cfg={"qk_norm": True, "scale_attn": True, "scale_fc": True}),
    "siglip": tiny_siglip_cfg(),
    "resnet": tiny_resnet_cfg(),
    "coca": tiny_coca_cfg(),
    **{model_type: tiny_hf_text_cfg(model_type) for model_type in ("roberta", "mt5", "m2m_100")},
    "coca-roberta": tiny_hf_coca_cfg(),
}


def intermediates(library, model, table, inputs) -> dict[str, torch.Tensor]:
    found = {}
    with (
        torch.no_grad(),
        recorded(model, table, library.side, lambda name, value: found.update({name: value.clone()})),
    ):
        library.outputs(model, inputs)
    return found


@pytest.mark.parametrize("model_cfg", MODELS.values(), ids=MODELS)
def test_intermediates_of_both_libraries_are_the_same_values_in_the_same_order(model_cfg):
    reference, model = model_pair(model_cfg)
    table = intermediates_table(model.config, text_prefix(reference))
    inputs = verification_inputs(model.config)
    theirs = intermediates(open_clip_library(model.config), reference, table, inputs)
    ours = intermediates(OURS, model, table, inputs)
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=2e-5 * value.abs().max().item(), msg=name)
    for part, layers in (("vision_config", "vision"), ("text_config", "text"), ("multimodal_config", "decoder")):
        if part in model.config.sub_configs and hasattr(getattr(model.config, part), "num_hidden_layers"):
            assert sum(name.startswith(layers) for name in ours) >= getattr(model.config, part).num_hidden_layers


def test_intermediates_of_clip_are_named_as_a_report_shows_them():
    model_cfg = tiny_clip_cfg(vision_cfg={"layers": 1}, text_cfg={"layers": 1})
    _, model = model_pair(model_cfg)
    table = intermediates_table(model.config, "")
    layer = ["layer 0 norm 1", "layer 0 attention", "layer 0 norm 2", "layer 0 MLP", "layer 0"]
    vision = ["patches", "embeddings", "pre-norm", *layer, "post-norm"]
    text = ["tokens", "embeddings", *layer, "final norm"]
    expected = [*(f"vision {name}" for name in vision), *(f"text {name}" for name in text)]
    assert list(intermediates(OURS, model, table, verification_inputs(model.config))) == expected


def test_recorded_removes_its_hooks_and_records_a_value_once():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU(inplace=True))
    names = []
    with recorded(model, (Intermediate("module {n}", "{n}", ""),), "ours", lambda name, value: names.append(name)):
        model(torch.ones(2, 3))
        model(torch.ones(2, 3))
    model(torch.ones(2, 3))
    assert names == ["module 0", "module 1"]


def test_recorded_hands_on_values_before_they_are_overwritten():
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU(inplace=True))
    found = {}
    with recorded(model, (Intermediate("{n}", "{n}", ""),), "ours", lambda n, value: found.update({n: value.clone()})):
        model(torch.tensor([-1.0, 2.0]))
    assert found["0"].tolist() == [-1, 2]
    assert found["1"].tolist() == [0, 2]


def test_recorded_finds_blocks_at_any_depth_and_the_first_tensor_of_outputs():
    class Block(torch.nn.Module):
        def forward(self, x):
            return None, (x + 1, x)

    model = torch.nn.ModuleDict({"stages": torch.nn.ModuleList([torch.nn.ModuleList([Block()]), Block()])})
    found = {}
    table = (
        Intermediate("block {blocks}", "{blocks}", ""),
        Intermediate("input", "stages.1", "", is_input=True),
    )
    with recorded(model, table, "ours", lambda name, value: found.update({name: value.item()})):
        model["stages"][0][0](torch.tensor(1.0))
        model["stages"][1](torch.tensor(5.0))
    assert found == {"block stages.0.0": 2, "input": 5, "block stages.1": 6}


def test_patch_dropout_does_not_hide_the_embeddings():
    model_cfg = tiny_clip_cfg(vision_cfg={"patch_dropout": 0.5})
    _, model = model_pair(model_cfg)
    table = intermediates_table(model.config, "")
    found = {}
    with torch.no_grad(), recorded(model, table, "ours", lambda name, value: found.update({name: value})):
        model.vision_model(random_images(model_cfg))
    assert found["vision embeddings"].shape == (3, 10, 40)


@pytest.mark.parametrize(
    "model_cfg",
    [tiny_clip_cfg(), tiny_clip_cfg(text_cfg={"pool_type": "eos", "eos_id": 5, "pad_id": 3}), tiny_coca_cfg()],
    ids=["argmax", "eos", "coca"],
)
def test_verification_inputs_end_texts_where_the_tower_looks(model_cfg):
    config = build_config(model_cfg)
    images, input_ids = verification_inputs(config)
    assert images["pixel_values"].shape == (2, 3, 24, 24)
    assert input_ids.shape == (2, config.text_config.max_position_embeddings)
    end = 5 if config.text_config.pool_type == "eos" else 96
    assert (input_ids == end).sum(dim=1).tolist() == [1, 1]
    assert (input_ids[1] == config.text_config.pad_token_id).any()
    assert input_ids.min() >= 0 and input_ids.max() <= 96
    again = verification_inputs(config)
    assert torch.equal(again[0]["pixel_values"], images["pixel_values"]) and torch.equal(again[1], input_ids)
