"""Backbones: what the Auto class loads, what is saved, and which feature maps come out; and embedded patches."""

import json

import pytest
import torch
from huggingface_hub.errors import HFValidationError
from tiny_configs import tiny_clip_cfg, tiny_coca_cfg
from tiny_models import randomized, tiny_config, tiny_inputs, tiny_model, tiny_siglip_vit_config, tiny_timm_dual_config
from transformers import AutoBackbone, AutoConfig

from open_clip_transformers import (
    ModifiedResNetBackbone,
    OpenClipModel,
    OpenClipVitBackbone,
    OpenClipVitConfig,
    OpenClipVitModel,
    SiglipVitBackbone,
    SiglipVitModel,
)
from open_clip_transformers.convert_scripts.hub.bundle import bundle_folder
from open_clip_transformers.modeling.modeling_coca import CoCaModel


TOWERS = {"vit": OpenClipVitBackbone, "siglip_vit": SiglipVitBackbone, "resnet": ModifiedResNetBackbone}
WHOLE_MODELS = {
    "clip": OpenClipVitBackbone,
    "coca": OpenClipVitBackbone,
    "siglip_with_siglip_vit": SiglipVitBackbone,
    "clip_resnet": ModifiedResNetBackbone,
}
every_tower = pytest.mark.parametrize(("name", "backbone_class"), TOWERS.items(), ids=TOWERS)
every_whole_model = pytest.mark.parametrize(("name", "backbone_class"), WHOLE_MODELS.items(), ids=WHOLE_MODELS)


def last_map(tower, pixel_values: torch.Tensor) -> torch.Tensor:
    """The last feature map of a tower row by row, (batch, places, channels), without the tokens before the patches."""
    with torch.no_grad():
        last = tower(pixel_values, output_hidden_states=True).hidden_states[-1]
    return last.flatten(2).transpose(1, 2) if last.ndim == 4 else last[:, tower.num_prefix_tokens :]


def assert_same_last_map(backbone, tower, pixel_values):
    with torch.no_grad():
        (feature_map,) = backbone(pixel_values).feature_maps
    torch.testing.assert_close(feature_map.flatten(2).transpose(1, 2), last_map(tower, pixel_values))


@every_tower
def test_auto_backbone_loads_the_folder_of_a_tower(name, backbone_class, tmp_path):
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    loaded, info = AutoBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is backbone_class
    assert not any(info.values()), info
    assert_same_last_map(loaded, model, **tiny_inputs(model))


@every_tower
def test_backbone_keeps_its_stages_when_saved(name, backbone_class, tmp_path):
    model = tiny_model(name)
    model.save_pretrained(tmp_path / "tower")
    backbone = AutoBackbone.from_pretrained(tmp_path / "tower", out_features=["stem", "stage2"])
    assert (backbone.out_indices, len(backbone.channels)) == ([0, 2], 2)
    backbone.save_pretrained(tmp_path / "backbone")
    loaded, info = AutoBackbone.from_pretrained(tmp_path / "backbone", output_loading_info=True)
    assert not any(info.values()), info
    assert loaded.out_features == ["stem", "stage2"]
    inputs = tiny_inputs(model)
    for ours, expected in zip(loaded(**inputs).feature_maps, backbone(**inputs).feature_maps, strict=True):
        torch.testing.assert_close(ours, expected)


@every_whole_model
def test_backbone_loads_the_folder_of_a_whole_model(name, backbone_class, tmp_path):
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    vision_config = AutoConfig.from_pretrained(tmp_path).vision_config
    by_class, by_config = (
        loader.from_pretrained(tmp_path, output_loading_info=True, **kwargs)
        for loader, kwargs in ((backbone_class, {}), (AutoBackbone, {"config": vision_config}))
    )
    for loaded, info in (by_class, by_config):
        assert type(loaded) is backbone_class
        assert not any(info.values()), info
        assert_same_last_map(loaded, model.vision_model, tiny_inputs(model)["pixel_values"])
    with pytest.raises(ValueError, match="AutoBackbone"):
        AutoBackbone.from_pretrained(tmp_path)


@every_tower
def test_configuration_says_nothing_of_feature_maps_unless_chosen(name, backbone_class, tmp_path):
    fields = {"out_features", "out_indices", "apply_layernorm", "stage_names"}
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    assert not fields & json.loads((tmp_path / "config.json").read_text()).keys()
    backbone_class(model.config).save_pretrained(tmp_path)
    assert not fields & json.loads((tmp_path / "config.json").read_text()).keys()


def test_configuration_follows_its_number_of_layers():
    config = OpenClipVitConfig(num_hidden_layers=3)
    assert (config.out_features, config.out_indices) == (["stage3"], [3])
    config.num_hidden_layers = 2
    assert (config.out_features, config.out_indices) == (["stage2"], [2])
    assert tiny_siglip_vit_config(select_layer=-2).stage_names == ["stem", "stage1", "stage2"]


def test_configuration_refuses_stages_that_are_not_there():
    with pytest.raises(ValueError, match="stage_names"):
        OpenClipVitConfig(num_hidden_layers=3, out_features=["stage4"])


def test_backbone_refuses_a_norm_of_another_width():
    config = tiny_config(tiny_clip_cfg(vision_cfg={"attentional_pool": True})).vision_config
    config.apply_layernorm = True
    with pytest.raises(ValueError, match="apply_layernorm=False"):
        OpenClipVitBackbone(config)


@every_tower
def test_backbone_runs_and_records_no_more_than_is_wanted(name, backbone_class):
    config = tiny_model(name).config
    config.out_indices = [1]
    config._attn_implementation = "eager"
    backbone = backbone_class(config).eval()
    called = []
    for index, stage in enumerate(backbone.stages(), start=1):
        stage.register_forward_hook(lambda *_, index=index: called.append(index))
    pixel_values = tiny_inputs(tiny_model(name))["pixel_values"]
    outputs = backbone(pixel_values, output_hidden_states=True, output_attentions=True)
    assert called == [1]
    assert len(outputs.hidden_states) == 2
    assert len(outputs.attentions) == backbone.has_attentions
    assert isinstance(backbone(pixel_values, return_dict=False), tuple)


def test_backbone_has_no_weights_without_a_gradient():
    backbone = OpenClipVitBackbone(tiny_model("vit").config)
    sum(feature_map.sum() for feature_map in backbone(torch.randn(2, 3, 24, 24)).feature_maps).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters() if parameter.requires_grad)


def test_backbone_keeps_every_patch_in_training():
    config = tiny_config(tiny_clip_cfg(vision_cfg={"patch_dropout": 0.5})).vision_config
    backbone = OpenClipVitBackbone(config).train()
    assert backbone(torch.randn(2, 3, 24, 24)).feature_maps[0].shape == (2, 40, 3, 3)


# How a tower pools -> changes to a tiny CLIP's `vision_cfg`.
POOLING = {
    "tok": {},
    "avg": {"pool_type": "avg"},
    "final_ln_after_pool": {"final_ln_after_pool": True},
    "attentional": {"attentional_pool": True},
    "attentional_avg": {"attentional_pool": True, "pool_type": "avg"},
    "parallel": {"attentional_pool": "parallel", "width": 28, "head_width": 14},
    "cascade": {"attentional_pool": "cascade", "width": 28, "head_width": 14},
}


@pytest.mark.parametrize("vision_cfg", POOLING.values(), ids=POOLING)
def test_patch_features_are_what_the_tower_makes_of_each_patch_alone(vision_cfg):
    tower = randomized(OpenClipVitModel(tiny_config(tiny_clip_cfg(vision_cfg=vision_cfg)).vision_config).eval())
    pixel_values = torch.randn(2, 3, 24, 40)
    with torch.no_grad():
        features = tower.get_patch_features(pixel_values, interpolate_pos_encoding=True)
        hidden_states = tower.encoder(tower.embed(pixel_values, True))[:, 1:]
    assert features.shape == (2, 3, 5, 28)
    for row, column in ((0, 0), (1, 3), (2, 4)):
        patch = hidden_states[:, row * 5 + column]
        # A class token and patches that are all the same: whatever is pooled is that patch.
        with torch.no_grad():
            expected = tower.projection(tower.pool(patch.unsqueeze(1).expand(-1, 4, -1))[0])
        torch.testing.assert_close(features[:, row, column], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool_type", ["map", "avg", "token"])
def test_siglip_patch_features_are_what_the_tower_makes_of_each_patch_alone(pool_type):
    tower = randomized(SiglipVitModel(tiny_siglip_vit_config(pool_type=pool_type)).eval())
    pixel_values = torch.randn(2, 3, 24, 30)
    with torch.no_grad():
        features = tower.get_patch_features(pixel_values, interpolate_pos_encoding=True)
        tokens = tower.post_layernorm(tower.encoder(tower.embed(pixel_values, True)))
        alone = tokens[:, 3 + 2 * 5 + 4].unsqueeze(1).expand(-1, 7, -1)
        expected = tower.projection(tower.fc_norm(tower.pool(alone)))
    assert features.shape == (2, 3, 5, 28)
    torch.testing.assert_close(features[:, 2, 4], expected, rtol=1e-4, atol=1e-5)


def test_mean_of_patch_features_is_the_embedding_of_an_averaging_tower():
    model = randomized(OpenClipModel(tiny_config(tiny_clip_cfg(vision_cfg={"pool_type": "avg"}))).eval())
    pixel_values = tiny_inputs(model)["pixel_values"]
    with torch.no_grad():
        features = model.get_patch_features(pixel_values)
        expected = model.get_image_features(pixel_values).pooler_output
    torch.testing.assert_close(features.mean(dim=(1, 2)), expected, rtol=1e-4, atol=1e-5)


def test_patch_features_without_the_last_attention_see_their_values_alone():
    tower = randomized(OpenClipVitModel(tiny_config(tiny_clip_cfg()).vision_config).eval())
    pixel_values = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        features = tower.get_patch_features(pixel_values, last_attention=False)
        hidden_states = tower.embed(pixel_values)
        for layer in tower.encoder.layers[:-1]:
            hidden_states = layer(hidden_states)
        last = tower.encoder.layers[-1]
        values = last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(hidden_states)))
        hidden_states = hidden_states + values
        hidden_states = hidden_states + last.mlp(last.layer_norm2(hidden_states))
        expected = tower.projection(tower.post_layernorm(hidden_states[:, 1:]))
    torch.testing.assert_close(features.flatten(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_patch_features_of_a_resnet_are_its_pooling_on_each_place():
    model = tiny_model("clip_resnet")
    pixel_values = tiny_inputs(model)["pixel_values"]
    tower = model.vision_model
    with torch.no_grad():
        features = model.get_patch_features(pixel_values)
        feature_map = tower(pixel_values).last_hidden_state
        attention = tower.attn_pool.attention
        token = feature_map[:, 4:5] + tower.attn_pool.position_embedding[5]
        key, value = attention.project_key_value(token)
        expected = attention(torch.randn_like(token), key, value)[0]
    assert features.shape == (3, 3, 3, 28)
    torch.testing.assert_close(features[:, 1, 1], expected[:, 0], rtol=1e-4, atol=1e-5)


def test_patch_features_of_coca_are_those_of_its_tower():
    model = randomized(CoCaModel(tiny_config(tiny_coca_cfg())).eval())
    features = model.get_patch_features(torch.randn(2, 3, 16, 32), interpolate_pos_encoding=True)
    assert features.shape == (2, 2, 4, 36)


def test_patch_features_are_refused_where_the_pooling_is_not_known():
    model = OpenClipModel(tiny_timm_dual_config())
    with pytest.raises(ValueError, match="open_clip_timm_vision"):
        model.get_patch_features(torch.randn(1, 3, 24, 24))
    tower = SiglipVitModel(tiny_siglip_vit_config(ignore_head=True))
    with pytest.raises(ValueError, match="ignore_head"):
        tower.get_patch_features(torch.randn(1, 3, 24, 24))


@every_tower
def test_bundle_of_a_tower_names_its_backbone(name, backbone_class, tmp_path):
    tiny_model(name).save_pretrained(tmp_path)
    files = bundle_folder(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoBackbone"] == f"open_clip_entry.{backbone_class.__name__}"
    assert {"modeling_backbones.py", "configuration_backbones.py"} <= set(files)


def test_backbone_compiles_whole():
    backbone = OpenClipVitBackbone(tiny_model("vit").config).eval()
    pixel_values = torch.randn(2, 3, 24, 24)
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixel_values).feature_maps, backbone(pixel_values).feature_maps)


def test_auto_backbone_leaves_other_folders_to_transformers(tmp_path):
    for config in ({"model_type": "dinov2"}, {"model_type": None}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(HFValidationError):
            AutoBackbone.from_pretrained(str(tmp_path))
