"""Rename tables: complete for every architecture, and bit-equal there and back."""

import pytest
import torch
from tiny_configs import open_clip_model, tiny_clip_cfg, tiny_coca_cfg, tiny_siglip_cfg

from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.mapping.config import build_config
from open_clip_transformers.convert_scripts.mapping.plan import DROPPED, plan_conversion, rename_table
from open_clip_transformers.convert_scripts.mapping.state_dict import resolve
from open_clip_transformers.convert_scripts.sources.architectures import get_architecture, list_architectures
from open_clip_transformers.convert_scripts.verify.reference import build_open_clip_model


EVERY_BLOCK_OPTION = {
    "qk_norm": True,
    "scale_heads": True,
    "scale_attn_inner": True,
    "scale_attn": True,
    "scale_fc": True,
    "ls_init_value": 0.1,
}
CONFIGS = {
    "clip": tiny_clip_cfg(),
    "clip-block-options": tiny_clip_cfg(vision_cfg=EVERY_BLOCK_OPTION, text_cfg=EVERY_BLOCK_OPTION),
    "clip-cosine-attention": tiny_clip_cfg(text_cfg={"scaled_cosine_attn": True}),
    "clip-no-projection": tiny_clip_cfg(embed_dim=36, text_cfg={"proj_type": "none"}),
    "siglip-biased-projection": tiny_siglip_cfg(),
    "coca": tiny_coca_cfg(),
    "coca-decoder-layer-scale": tiny_coca_cfg(multimodal_cfg={"ls_init_value": 0.1}),
    "coca-packed-pooler": tiny_coca_cfg(vision_cfg={"width": 36, "head_width": 12}),
    "coca-parallel-poolers": tiny_coca_cfg(vision_cfg={"width": 36, "head_width": 12, "attentional_pool": "parallel"}),
    "coca-no-pooler": tiny_coca_cfg(vision_cfg={"width": 36, "head_width": 12, "attentional_pool": False}),
}


@pytest.mark.floor
@pytest.mark.parametrize("model_cfg", CONFIGS.values(), ids=CONFIGS.keys())
def test_rename_table_round_trip_is_bit_equal(model_cfg):
    source = open_clip_model(model_cfg).state_dict()
    config = build_config(model_cfg)
    converted = dict(plan_conversion(config, source).converted())
    text_prefix = "text." if model_cfg.get("custom_text") else ""
    steps, unmatched = resolve(converted, rename_table(config, text_prefix), "targets")
    assert unmatched == []
    restored = {}
    for step in steps:
        tensors = step.operation.invert(tuple(converted[key] for key in step.targets))
        restored.update(zip(step.sources, tensors))
    assert restored.keys() == source.keys()
    assert [key for key in source if not torch.equal(restored[key], source[key])] == []


@pytest.mark.parametrize("name", list_architectures(newer=False))
def test_every_architecture_maps_onto_our_model(name):
    model_cfg = get_architecture(name)
    config = build_config(model_cfg)
    with torch.device("meta"):
        reference = build_open_clip_model(model_cfg, config)
    plan = plan_conversion(config, reference.state_dict())
    assert not plan.dropped and not plan.changed
    converted = {key: tensor.shape for key, tensor in plan.converted()}
    assert converted == {key: tensor.shape for key, tensor in plan.layout.items()}


def test_dropped_keys_are_left_out_with_a_reason():
    model_cfg = tiny_coca_cfg()
    source = open_clip_model(model_cfg).state_dict()
    extra = {key: torch.zeros(3) for key in DROPPED}
    plan = plan_conversion(build_config(model_cfg), {**source, **extra})
    assert plan.dropped == DROPPED
    assert dict(plan.converted()).keys() == plan.layout.keys()


def test_text_tower_is_found_at_top_level_and_under_text():
    model_cfg = tiny_clip_cfg()
    source = open_clip_model(model_cfg).state_dict()
    old = [key for key in source if not key.startswith(("visual.", "logit_"))]
    under_text = {f"text.{key}" if key in old else key: tensor for key, tensor in source.items()}
    config = build_config(model_cfg)
    first, second = (dict(plan_conversion(config, tensors).converted()) for tensors in (source, under_text))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_plan_lists_every_kind_of_misfit_at_once():
    source = open_clip_model(tiny_clip_cfg()).state_dict()
    source["visual.extra"] = torch.zeros(7)
    del source["ln_final.bias"]
    source["visual.class_embedding"] = torch.zeros(41)
    source["visual.ln_post.bias"] = torch.zeros(40, dtype=torch.int8)
    with pytest.raises(ConversionError) as error:
        plan_conversion(build_config(tiny_clip_cfg()), source)
    for line in (
        "has no place for:\n  visual.extra (7,)",
        "lacks:\n  ln_final.bias (36,)",
        "visual.class_embedding: got (41,), expected (40,)",
        "visual.ln_post.bias: got torch.int8, expected floats",
    ):
        assert line in str(error.value)


def test_plan_refuses_a_layer_too_many_and_names_its_keys():
    source = open_clip_model(tiny_clip_cfg()).state_dict()
    with pytest.raises(
        ConversionError, match=r"no place for:\n  visual\.transformer\.resblocks\.2\.ln_1\.weight \(40,\)"
    ):
        plan_conversion(build_config(tiny_clip_cfg(vision_cfg={"layers": 2})), source)


def test_plan_refuses_a_logit_bias_that_the_configuration_lacks():
    source = open_clip_model(tiny_siglip_cfg()).state_dict()
    with pytest.raises(ConversionError, match=r"no place for:\n  logit_bias \(\)"):
        plan_conversion(build_config(tiny_siglip_cfg(init_logit_bias=None)), source)


@pytest.mark.parametrize("nonscalar", [False, True], ids=["scalar", "1d"])
def test_plan_reshapes_the_temperature_as_the_configuration_says(nonscalar):
    source = open_clip_model(tiny_siglip_cfg(nonscalar_logit_scale=not nonscalar)).state_dict()
    plan = plan_conversion(build_config(tiny_siglip_cfg(nonscalar_logit_scale=nonscalar)), source)
    converted = dict(plan.converted())
    assert converted["logit_scale"].shape == converted["logit_bias"].shape == ((1,) if nonscalar else ())
    assert plan.changed.keys() == {"logit_scale", "logit_bias"}
    assert converted["logit_scale"].item() == source["logit_scale"].item()


def test_plan_adds_a_zero_logit_bias_as_open_clip_does():
    source = open_clip_model(tiny_clip_cfg()).state_dict()
    plan = plan_conversion(build_config(tiny_clip_cfg(init_logit_bias=-10.0)), source)
    assert dict(plan.converted())["logit_bias"].item() == 0
    assert plan.changed == {"logit_bias": "not in the checkpoint, set to 0"}


def test_plan_refuses_to_resize_a_grid_that_is_not_square():
    source = open_clip_model(tiny_clip_cfg(vision_cfg={"image_size": [24, 16]})).state_dict()
    with pytest.raises(ConversionError, match=r"6 patch positions.*3 x 3.*only square"):
        plan_conversion(build_config(tiny_clip_cfg()), source)
