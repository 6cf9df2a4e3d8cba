"""The vision tower of DeepSeek-VL2: synthetic checkpoints whose tower is timm's, with which ours is compared."""

import json

import numpy as np
import pytest
import torch
from model_pairs import BOUND, relative_difference
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from tiny_configs import randomize_timm
from transformers import AutoImageProcessor, AutoModel

from open_clip_transformers.configuration.configuration_siglip_vit import SiglipVitConfig
from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.convert_deepseek_vl2 import build_vision_config, convert_deepseek_vl2, main
from open_clip_transformers.modeling.modeling_siglip_vit import SiglipVitModel


VISION_CONFIG = {
    "model_type": "vision",
    "model_name": "siglip_so400m_patch14_384",
    "image_size": 24,
    "patch_size": 6,
    "width": 36,
    "layers": 3,
    "heads": 3,
    "mlp_ratio": 2.2,
}


def deepseek_tower(**vision_config) -> VisionTransformer:
    """The tower that DeepSeek-VL2 builds, in timm of today: tanh in the layers alone, pooling over every token."""
    cfg = {"class_token": False, "global_pool": "map", **VISION_CONFIG, **vision_config}
    tower = VisionTransformer(
        img_size=cfg["image_size"],
        patch_size=cfg["patch_size"],
        embed_dim=cfg["width"],
        depth=cfg["layers"],
        num_heads=cfg["heads"],
        mlp_ratio=cfg["mlp_ratio"],
        class_token=cfg["class_token"],
        global_pool=cfg["global_pool"],
        num_classes=0,
        act_layer="gelu_tanh",
        pool_include_prefix=cfg["global_pool"] == "map",
    )
    if tower.attn_pool is not None:
        tower.attn_pool.mlp.act = torch.nn.GELU()
    return randomize_timm(tower.eval())


def save_checkpoint(folder, tower: VisionTransformer, dtype=torch.float32, shards: int = 3, **vision_config):
    """A folder like DeepSeek-VL2's: the tower under `vision.` in the first shards, other things in the last."""
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "deepseek_vl_v2", "vision_config": {**VISION_CONFIG, **vision_config}})
    )
    vision = {f"vision.{key}": tensor.to(dtype).contiguous() for key, tensor in tower.state_dict().items()}
    others = {"language.model.norm.weight": torch.ones(5), "projector.layers.0.bias": torch.ones(7)}
    others["image_newline"] = torch.ones(2)
    if shards == 1:
        save_file(vision | others, folder / "model.safetensors")
        return
    keys = sorted(vision)
    parts = [{key: vision[key] for key in keys[i :: shards - 1]} for i in range(shards - 1)] + [others]
    names = [f"model-{i + 1:05}-of-{shards:06}.safetensors" for i in range(shards)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name)
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 24, 24, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("shards", [1, 3], ids=["one_file", "shards"])
def test_tower_equals_timm(tmp_path, shards):
    tower = deepseek_tower()
    save_checkpoint(tmp_path / "source", tower, shards=shards)
    convert_deepseek_vl2(tmp_path / "source", tmp_path / "out")
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert type(model) is SiglipVitModel
    with torch.no_grad():
        outputs = model(images())
        assert relative_difference(outputs.last_hidden_state, tower.forward_features(images())) < BOUND
        assert outputs.pooler_output is None
        # The original's checkpoint has the pooler too, though its model does not use it.
        whole, info = SiglipVitModel.from_pretrained(tmp_path / "out", ignore_head=False, output_loading_info=True)
        assert not any(info.values())
        assert relative_difference(whole(images()).pooler_output, tower(images())) < BOUND


POOLS = {
    "class_token_map": {"class_token": True},
    "average": {"global_pool": "avg"},
    "class_token_average": {"global_pool": "avg", "class_token": True},
    "token": {"global_pool": "token", "class_token": True},
}


@pytest.mark.parametrize("vision_config", POOLS.values(), ids=POOLS)
def test_every_pooling_equals_timm(tmp_path, vision_config):
    tower = deepseek_tower(**vision_config)
    save_checkpoint(tmp_path / "source", tower, ignore_head=False, **vision_config)
    convert_deepseek_vl2(tmp_path / "source", tmp_path / "out")
    model = SiglipVitModel.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        outputs = model(images())
        assert relative_difference(outputs.last_hidden_state, tower.forward_features(images())) < BOUND
        assert relative_difference(outputs.pooler_output, tower(images())) < BOUND


def test_no_pooling_gives_every_token(tmp_path):
    tower = deepseek_tower(global_pool="")
    save_checkpoint(tmp_path / "source", tower, ignore_head=False, global_pool="")
    convert_deepseek_vl2(tmp_path / "source", tmp_path / "out")
    with torch.no_grad():
        pooled = SiglipVitModel.from_pretrained(tmp_path / "out")(images()).pooler_output
        assert relative_difference(pooled, tower(images())) < BOUND


@pytest.mark.parametrize("dtype", [None, "float32"], ids=["as_it_is", "fp32"])
def test_dtype_is_the_checkpoints_or_the_one_asked_for(tmp_path, dtype):
    tower = deepseek_tower()
    save_checkpoint(tmp_path / "source", tower, torch.bfloat16)
    convert_deepseek_vl2(tmp_path / "source", tmp_path / "out", dtype=dtype)
    expected = torch.float32 if dtype else torch.bfloat16
    weights = load_file(tmp_path / "out/model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {expected}
    key = weights["encoder.layers.1.self_attn.k_proj.weight"]
    assert torch.equal(key, tower.state_dict()["blocks.1.attn.qkv.weight"][36:72].bfloat16().to(expected))
    assert AutoModel.from_pretrained(tmp_path / "out").dtype == expected


def test_shards_of_the_language_model_are_not_needed(tmp_path):
    save_checkpoint(tmp_path / "source", deepseek_tower())
    (tmp_path / "source/model-00003-of-000003.safetensors").unlink()
    convert_deepseek_vl2(tmp_path / "source", tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").is_file()


def test_one_file_is_a_source_and_output_may_be_sharded(tmp_path):
    save_checkpoint(tmp_path / "source", deepseek_tower(), shards=1)
    source = tmp_path / "source/model.safetensors"
    convert_deepseek_vl2(source, tmp_path / "out", max_shard_size="50KB")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    assert AutoModel.from_pretrained(tmp_path / "out").config.hidden_size == 36


def test_source_is_not_changed(tmp_path):
    save_checkpoint(tmp_path / "source", deepseek_tower())
    before = {path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()}
    convert_deepseek_vl2(tmp_path / "source", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()} == before


# `vision_config` of the three released checkpoints.
RELEASED = {"layers": 27, "mlp_ratio": 3.7362, "model_type": "vision", "patch_size": 14, "width": 1152}


def test_vision_config_of_released_checkpoints_is_the_named_one():
    config = build_vision_config({**RELEASED, "model_name": "siglip_so400m_patch14_384"})
    assert config.to_dict() == SiglipVitConfig.from_name("siglip_so400m_patch14_384").to_dict()
    # The model is built from the numbers, whatever its name is.
    assert build_vision_config({**RELEASED, "model_name": "other"}).to_dict() == config.to_dict()


@pytest.mark.parametrize("name", ["siglip_so400m_patch14_224", "siglip_large_patch16_384"])
def test_vision_config_may_be_a_name_alone(name):
    config = build_vision_config({"model_name": name})
    assert config.to_dict() == SiglipVitConfig.from_name(name).to_dict()
    assert build_vision_config({}).hidden_size == 1024


def test_vision_config_hands_on_what_training_needs():
    config = build_vision_config({**VISION_CONFIG, "deterministic": True, "num_recomputing_layers": 2})
    assert (config.deterministic, config.num_recomputing_layers) == (True, 2)
    config = build_vision_config({**VISION_CONFIG, "use_checkpoint": True, "weight_init": "jax", "num_classes": 3})
    assert (config.deterministic, config.num_recomputing_layers) == (False, None)


REFUSED_CONFIGS = {
    "none": (None, "has no vision_config of DeepSeek-VL2: got None"),
    "pool": ({"global_pool": "max"}, r"global_pool must be one of \['map', 'avg', 'token', ''\], got 'max'"),
    "heads": ({"heads": 7}, "must be a multiple of num_attention_heads"),
    "type": ({"width": "wide"}, "does not describe a model that can be built"),
    "ratio": ({"mlp_ratio": None}, "does not describe a model that can be built"),
    "token": ({"global_pool": "token"}, "needs use_class_token=True"),
}


@pytest.mark.parametrize(("vision_config", "message"), REFUSED_CONFIGS.values(), ids=REFUSED_CONFIGS)
def test_vision_config_refuses(vision_config, message):
    with pytest.raises(ConversionError, match=message):
        build_vision_config(vision_config)


def test_misfits_are_listed_and_nothing_is_left(tmp_path):
    tower = deepseek_tower(layers=2)
    save_checkpoint(tmp_path / "source", tower, class_token=True)
    with pytest.raises(ConversionError) as error:
        convert_deepseek_vl2(tmp_path / "source", tmp_path / "new/out")
    assert "lacks:" in str(error.value) and "cls_token (1, 1, 36)" in str(error.value)
    assert "blocks.2.attn.qkv.weight (108, 36)" in str(error.value)
    assert "pos_embed: got (1, 16, 36), expected (1, 17, 36)" in str(error.value)
    save_checkpoint(tmp_path / "deeper", deepseek_tower(layers=4))
    with pytest.raises(ConversionError, match=r"has no place for:\n  blocks\.3\."):
        convert_deepseek_vl2(tmp_path / "deeper", tmp_path / "new/out")
    assert not (tmp_path / "new").exists()


def _without_config(source):
    (source / "config.json").unlink()


def _without_shard(source):
    (source / "model-00002-of-000003.safetensors").unlink()


def _damaged_shard(source):
    (source / "model-00001-of-000003.safetensors").write_bytes(b"nothing")


def _without_vision_keys(source):
    index = source / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    others = {key: name for key, name in weight_map.items() if not key.startswith("vision.")}
    index.write_text(json.dumps({"weight_map": others}))


def _without_index(source):
    (source / "model.safetensors.index.json").unlink()


BROKEN = {
    "no_config": (_without_config, r"config\.json cannot be read as JSON"),
    "missing_shard": (_without_shard, r"lacks these files.*:\n  model-00002-of-000003"),
    "damaged_shard": (_damaged_shard, r"model-00001-of-000003\.safetensors cannot be read"),
    "no_vision_keys": (_without_vision_keys, "no keys that begin with 'vision.'.*\n  image_newline\n  language"),
    "no_index": (_without_index, r"no model\.safetensors\.index\.json, and not just one safetensors file but model"),
}


@pytest.mark.parametrize(("breaks", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_sources_are_refused(tmp_path, breaks, message):
    save_checkpoint(tmp_path / "source", deepseek_tower())
    breaks(tmp_path / "source")
    with pytest.raises(ConversionError, match=message):
        convert_deepseek_vl2(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_file_without_vision_keys_and_missing_source_are_refused(tmp_path):
    save_checkpoint(tmp_path / "source", deepseek_tower())
    with pytest.raises(ConversionError, match="no keys that begin with 'vision"):
        convert_deepseek_vl2(tmp_path / "source/model-00003-of-000003.safetensors", tmp_path / "out")
    with pytest.raises(ConversionError, match="there is no such file or folder"):
        convert_deepseek_vl2(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ConversionError, match="is not an empty folder"):
        convert_deepseek_vl2(tmp_path / "source", tmp_path / "source")


def test_image_processor_makes_the_global_view_of_deepseek_vl2(tmp_path):
    save_checkpoint(tmp_path / "source", deepseek_tower())
    (tmp_path / "source/processor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "patch_size": 6}')
    convert_deepseek_vl2(tmp_path / "source", tmp_path / "out")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    for size in ((48, 32), (32, 48), (96, 8), (24, 24)):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
        # DeepSeek-VL2: `DeepseekVLV2Processor.tokenize_with_images` and `ImageTransform`.
        view = ImageOps.pad(image, (24, 24), color=(127, 127, 127))
        expected = (torch.from_numpy(np.asarray(view).copy()).permute(2, 0, 1) / 255 - 0.5) / 0.5
        torch.testing.assert_close(processor(image, return_tensors="pt").pixel_values[0], expected)


def test_image_processor_takes_mean_and_deviation_from_the_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "source", deepseek_tower())
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "source/preprocessor_config.json").write_text(json.dumps(settings))
    convert_deepseek_vl2(tmp_path / "source", tmp_path / "out")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert (list(processor.image_mean), list(processor.image_std)) == (settings["image_mean"], settings["image_std"])
    assert processor.size["height"] == 24


def test_image_processor_with_other_settings_is_refused(tmp_path):
    save_checkpoint(tmp_path / "source", deepseek_tower())
    (tmp_path / "source/processor_config.json").write_text('{"image_mean": 0.5}')
    with pytest.raises(ConversionError, match=r"image_mean must be a list of three numbers, got 0\.5"):
        convert_deepseek_vl2(tmp_path / "source", tmp_path / "out")


def test_command_line_converts_and_says_so(tmp_path, capsys):
    save_checkpoint(tmp_path / "source", deepseek_tower())
    main([str(tmp_path / "source"), str(tmp_path / "out"), "--dtype", "bf16"])
    parameters = sum(p.numel() for p in AutoModel.from_pretrained(tmp_path / "out").parameters())
    assert f"SiglipVitModel of {parameters:,} parameters in bfloat16" in capsys.readouterr().out


def test_command_line_explains_failures(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        main([str(tmp_path / "nowhere"), str(tmp_path / "out")])
    assert error.value.code == 1
    assert "there is no such file or folder" in capsys.readouterr().err
