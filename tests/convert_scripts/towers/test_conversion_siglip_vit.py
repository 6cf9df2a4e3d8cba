"""SigLIP towers of open_clip: timm's models as data, every way to pool and to project, other image sizes."""

import json
from functools import cache

import pytest
import timm
import torch
from model_pairs import BOUND, model_pair, relative_difference
from open_clip.timm_model import TimmModel
from safetensors.torch import load_file
from tiny_configs import open_clip_model, randomize_timm, save_open_clip_folder, tiny_siglip_cfg
from transformers import AutoModel
from transformers.initialization import no_init_weights

from open_clip_transformers.configuration.configuration_siglip_vit import SiglipVitConfig
from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.mapping.config import build_config, build_model_cfg
from open_clip_transformers.convert_scripts.mapping.plan import plan_conversion, plan_tensors, rename_table
from open_clip_transformers.convert_scripts.mapping.state_dict import resolve
from open_clip_transformers.convert_scripts.sources.architectures import get_architecture, list_architectures
from open_clip_transformers.convert_scripts.towers import siglip_vit as conversion_siglip_vit
from open_clip_transformers.convert_scripts.towers.siglip_vit import SIGLIP_VIT, TIMM_MODELS
from open_clip_transformers.convert_scripts.verify.values import intermediates_table, recorded
from open_clip_transformers.modeling.modeling_siglip_vit import SiglipVitModel


ARCHITECTURES = {
    name: get_architecture(name)
    for name in list_architectures(newer=False)
    if "_siglip_" in (get_architecture(name)["vision_cfg"].get("timm_model_name") or "")
}
NAME = "vit_base_patch16_siglip_224"
GAP_NAME = "vit_base_patch16_siglip_gap_224"


@cache
def timm_on_meta(name: str) -> torch.nn.Module:
    with torch.device("meta"), no_init_weights():
        return timm.create_model(name, num_classes=0, weight_init="skip")


def test_table_has_the_models_of_timm():
    assert sorted(TIMM_MODELS) == sorted(timm.list_models("vit_*_siglip_*"))


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_table_has_the_sizes_of_timm(name):
    fields, reference = TIMM_MODELS[name], timm_on_meta(name)
    block = reference.blocks[0]
    act = {"none": "gelu", "tanh": "gelu_pytorch_tanh"}[getattr(block.mlp.act, "approximate", "tanh")]
    assert fields == {
        "hidden_size": reference.embed_dim,
        "intermediate_size": block.mlp.fc1.out_features,
        "num_hidden_layers": len(reference.blocks),
        "num_attention_heads": block.attn.num_heads,
        "patch_size": reference.patch_embed.patch_size[0],
        "image_size": reference.patch_embed.img_size[0],
        "hidden_act": act,
        "pool_type": reference.global_pool,
    }
    assert isinstance(reference.fc_norm, torch.nn.Identity)


def test_every_siglip_architecture_is_known():
    assert len(ARCHITECTURES) == 28


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_vision_tower_of_every_architecture_maps_at_full_size(name):
    model_cfg = ARCHITECTURES[name]
    vision_cfg = model_cfg["vision_cfg"]
    assert SIGLIP_VIT.config_table.selects(vision_cfg)
    fields = SIGLIP_VIT.config_table.translate(vision_cfg, embed_dim=model_cfg["embed_dim"], quick_gelu=False)
    with torch.device("meta"), no_init_weights():
        model = SiglipVitModel(SiglipVitConfig(**fields))
    # None of them projects behind timm's model.
    assert (vision_cfg["timm_pool"], vision_cfg["timm_proj"]) == ("map", "none")
    tensors = timm_on_meta(vision_cfg["timm_model_name"]).state_dict(prefix="trunk.")
    # Nothing left over on either side, and equal shapes.
    plan_tensors(model, tensors, tensors, SIGLIP_VIT.rename_table(model.config), {}, {})
    assert model.config.projection_dim == model_cfg["embed_dim"]


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if not name.startswith("nllb")])
def test_configuration_goes_back_to_open_clip(name):
    config = build_config(ARCHITECTURES[name])
    model_cfg = build_model_cfg(config, {"hf_tokenizer_name": ARCHITECTURES[name]["text_cfg"]["hf_tokenizer_name"]})
    assert model_cfg["vision_cfg"]["timm_model_name"] == ARCHITECTURES[name]["vision_cfg"]["timm_model_name"]
    assert build_config(model_cfg).to_dict() == config.to_dict()


@pytest.fixture
def tiny_timm(monkeypatch):
    """timm's SigLIP models, and our table of them, at a tiny size."""
    create_model = timm.create_model
    sizes = {"img_size": 24, "patch_size": 6, "embed_dim": 36, "depth": 2, "num_heads": 3, "mlp_ratio": 2.2}
    monkeypatch.setattr(timm, "create_model", lambda name, **kwargs: create_model(name, **{**sizes, **kwargs}))
    fields = {"image_size": 24, "patch_size": 6, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3}
    models = {name: {**TIMM_MODELS[name], **fields, "intermediate_size": 79} for name in TIMM_MODELS}
    monkeypatch.setattr(conversion_siglip_vit, "TIMM_MODELS", models)


def siglip_cfg(embed_dim: int = 36, **vision_cfg) -> dict:
    """open_clip `model_cfg` with a SigLIP tower, for `tiny_timm`."""
    cfg = tiny_siglip_cfg(embed_dim=embed_dim)
    defaults = {"image_size": 24, "timm_model_name": NAME, "timm_pool": "map", "timm_proj": "none"}
    return {**cfg, "vision_cfg": {**defaults, **vision_cfg}}


# Ways to pool and project, and what our configuration calls them: pool_type, use_fc_norm, proj_type, proj_bias.
CASES = {
    "map": (siglip_cfg(), ("map", False, "none", False)),
    "average": (siglip_cfg(timm_pool="avg"), ("avg", True, "none", False)),
    "average_of_gap": (siglip_cfg(timm_pool="avg", timm_model_name=GAP_NAME), ("avg", False, "none", False)),
    "map_of_gap": (siglip_cfg(timm_model_name=GAP_NAME), ("map", False, "none", False)),
    "no_pool": (siglip_cfg(timm_pool=""), ("none", False, "none", False)),
    "linear": (siglip_cfg(28, timm_proj="linear"), ("map", False, "linear", False)),
    "linear_bias": (siglip_cfg(28, timm_proj="linear", timm_proj_bias=True), ("map", False, "linear", True)),
    "linear_average": (siglip_cfg(28, timm_proj="linear", timm_pool="avg"), ("avg", False, "linear", False)),
    "linear_own_pool": (siglip_cfg(28, timm_proj="linear", timm_pool=""), ("map", False, "linear", False)),
    "linear_own_pool_of_gap": (
        siglip_cfg(28, timm_proj="linear", timm_pool="", timm_model_name=GAP_NAME),
        ("avg", False, "linear", False),
    ),
    "mlp": (siglip_cfg(28, timm_proj="mlp"), ("map", False, "mlp", False)),
    "mlp_bias": (siglip_cfg(28, timm_proj="mlp", timm_proj_bias=True), ("map", False, "mlp", True)),
    "classifier": (siglip_cfg(28, timm_proj=""), ("map", False, "linear", True)),
    "classifier_average": (siglip_cfg(28, timm_proj="", timm_pool="avg"), ("avg", True, "linear", True)),
    "weights_tag": (siglip_cfg(timm_model_name=f"{NAME}.webli"), ("map", False, "none", False)),
    "tanh": (siglip_cfg(timm_model_name="vit_base_patch32_siglip_256"), ("map", False, "none", False)),
    "quick_gelu_is_not_for_timm": ({**siglip_cfg(), "quick_gelu": True}, ("map", False, "none", False)),
    "training": (
        siglip_cfg(28, timm_proj="linear", timm_drop=0.1, timm_drop_path=0.2, patch_dropout=0.3),
        ("map", False, "linear", False),
    ),
}


@pytest.mark.parametrize(("model_cfg", "expected"), CASES.values(), ids=CASES)
def test_every_way_to_pool_and_project_agrees_with_open_clip(model_cfg, expected, tmp_path, tiny_timm):
    save_open_clip_folder(tmp_path / "source", model_cfg)
    report = convert_open_clip_checkpoint(tmp_path / "source", tmp_path / "out", with_processor=False, verify="full")
    assert report.verification.mode == "full"
    config = AutoModel.from_pretrained(tmp_path / "out").config
    assert config.model_type == "open_clip_siglip"
    vision = config.vision_config
    assert vision.model_type == "open_clip_siglip_vit"
    assert (vision.pool_type, vision.use_fc_norm, vision.proj_type, vision.proj_bias) == expected


def test_training_settings_are_kept(tiny_timm):
    model_cfg, _ = CASES["training"]
    config = build_config(model_cfg).vision_config
    assert (config.projection_dropout, config.drop_path_rate, config.patch_dropout) == (0.1, 0.2, 0.3)
    # Without a projection of its own open_clip has no dropout either.
    assert build_config(siglip_cfg(timm_drop=0.1)).vision_config.projection_dropout == 0


# Not what comes back under another name, and what has the norm behind the mean and a projection, which open_clip calls
# timm's classifier.
BACK = CASES.keys() - {"weights_tag", "map_of_gap", "quick_gelu_is_not_for_timm", "classifier_average"}


@pytest.mark.parametrize("name", sorted(BACK))
def test_model_goes_back_to_open_clip(name, tiny_timm):
    model_cfg, _ = CASES[name]
    config = build_config(model_cfg)
    back = build_model_cfg(config)
    assert build_config(back).to_dict() == config.to_dict()
    # open_clip builds the model from what comes back, and takes the tensors.
    reference = open_clip_model(back)
    source = reference.state_dict()
    plan = plan_conversion(config, source)
    converted = dict(plan.converted())
    steps, unmatched = resolve(converted, rename_table(config), "targets")
    restored = {}
    for step in steps:
        restored |= zip(step.sources, step.operation.invert(tuple(converted[key] for key in step.targets)))
    assert unmatched == []
    assert restored.keys() == source.keys()
    assert all(torch.equal(restored[key], source[key]) for key in source)


def test_classifier_behind_a_norm_is_refused_on_the_way_back(tiny_timm):
    with pytest.raises(ConversionError, match=r"cannot express.*\n  vision_config.use_fc_norm = True"):
        build_model_cfg(build_config(CASES["classifier_average"][0]))


def test_tower_that_timm_has_no_name_for_is_refused_on_the_way_back():
    model_cfg = siglip_cfg()
    model_cfg["embed_dim"] = 768
    config = build_config(model_cfg)
    config.vision_config.image_size = 240
    with pytest.raises(ConversionError, match=r"timm has no SigLIP model of hidden_size 768.*image_size 240"):
        build_model_cfg(config)


def test_other_pools_and_models_are_left_to_others():
    selects = SIGLIP_VIT.config_table.selects
    assert selects({"timm_model_name": NAME})
    assert not selects({"timm_model_name": NAME, "timm_pool": "avgmax"})
    assert not selects({"timm_model_name": "vit_base_patch16_clip_224"})
    assert not selects({"timm_model_name": None}) and not selects({})


@pytest.mark.parametrize(
    "image_size", [36, 12, [30, 18], [48, 12]], ids=["larger", "smaller", "aspect", "same_number"]
)
@pytest.mark.parametrize("timm_pool", ["map", "avg"])
def test_positions_are_resized_as_open_clip_does(timm_pool, image_size, tiny_timm):
    # open_clip: `force_image_size` of `create_model`, which calls `set_input_size` of the tower once it is loaded.
    reference = TimmModel(NAME, embed_dim=36, image_size=image_size, pool=timm_pool, proj="none").eval()
    randomize_timm(reference)
    config = build_config(siglip_cfg(timm_pool=timm_pool, image_size=image_size)).vision_config
    model = SiglipVitModel(config).eval()
    tensors, changes = dict(reference.state_dict(prefix="visual.")), {}
    SIGLIP_VIT.fit(tensors, changes, "visual.", config)
    tensors = {key.removeprefix("visual."): tensor for key, tensor in tensors.items()}
    plan = plan_tensors(model, tensors, tensors, SIGLIP_VIT.rename_table(config), {}, changes)
    model.load_state_dict(dict(plan.converted()))
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    reference.set_input_size((height, width))
    images = torch.randn(2, 3, height, width)
    with torch.no_grad():
        assert relative_difference(model(images).pooler_output, reference(images)) < BOUND
    assert changes == {
        "visual.trunk.pos_embed": f"resized from a grid of 4 x 4 patches to {height // 6} x {width // 6}"
    }


def test_converted_positions_keep_fp32_values(tmp_path, tiny_timm):
    model_cfg = siglip_cfg()
    model = open_clip_model(model_cfg).half()
    save_open_clip_folder(tmp_path / "source", {**siglip_cfg(image_size=36)}, model)
    report = convert_open_clip_checkpoint(
        tmp_path / "source", tmp_path / "out", with_processor=False, dtype="float32", verify="structure"
    )
    assert list(report.changed) == ["visual.trunk.pos_embed"]
    table = load_file(tmp_path / "out/model.safetensors")["vision_model.embeddings.position_embedding"]
    assert table.shape == (1, 36, 36)
    assert not torch.equal(table, table.half().float())
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["vision_config"]["image_size"] == 36


def test_positions_that_are_no_square_are_refused(tiny_timm):
    source = open_clip_model(siglip_cfg()).state_dict()
    source["visual.trunk.pos_embed"] = torch.zeros(1, 15, 36)
    with pytest.raises(ConversionError, match=r"15 positions, the model has 4 x 4.*only square"):
        plan_conversion(build_config(siglip_cfg()), source)


def test_misfits_are_listed(tiny_timm):
    source = open_clip_model(siglip_cfg()).state_dict()
    source["visual.trunk.blocks.2.norm1.weight"] = torch.zeros(36)
    del source["visual.trunk.attn_pool.kv.bias"]
    with pytest.raises(ConversionError) as error:
        plan_conversion(build_config(siglip_cfg()), source)
    assert "has no place for:\n  visual.trunk.blocks.2.norm1.weight (36,)" in str(error.value)
    assert "lacks:\n  visual.trunk.attn_pool.kv.bias (72,)" in str(error.value)


@pytest.mark.parametrize("timm_pool", ["map", "avg"])
def test_values_inside_agree_with_open_clip(timm_pool, tiny_timm):
    reference, model = model_pair(siglip_cfg(timm_pool=timm_pool))
    table = intermediates_table(model.config, "text.")
    values = {"ours": {}, "theirs": {}}
    images = torch.randn(2, 3, 24, 24)
    with (
        torch.no_grad(),
        recorded(model, table, "ours", values["ours"].__setitem__),
        recorded(reference, table, "theirs", values["theirs"].__setitem__),
    ):
        model.get_image_features(images)
        reference.encode_image(images)
    assert list(values["ours"]) == list(values["theirs"])
    pooler = {"map": "vision attention pooler", "avg": "vision norm behind the mean"}[timm_pool]
    assert {"vision patches", "vision embeddings", "vision layer 1 attention", "vision layer 1", pooler} <= values[
        "ours"
    ].keys()
    for name, value in values["ours"].items():
        assert relative_difference(value, values["theirs"][name]) < BOUND, name
