"""NaFlex towers of open_clip: timm's models as data, at full size, their arguments, and what is refused by name."""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tiny_configs import tiny_clip_cfg
from transformers import AutoImageProcessor, AutoModel
from transformers.initialization import no_init_weights

from open_clip_transformers.configuration.configuration_naflex_vit import NaFlexVitConfig
from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.mapping.config import build_config, build_model_cfg
from open_clip_transformers.convert_scripts.mapping.plan import plan_tensors
from open_clip_transformers.convert_scripts.sources.architectures import get_architecture, list_architectures
from open_clip_transformers.convert_scripts.towers.naflex_vit import _DEFAULTS, NAFLEX_VIT, TIMM_MODELS
from open_clip_transformers.convert_scripts.verify.folder import verify_folder
from open_clip_transformers.modeling.modeling_naflex_vit import NaFlexVitModel
from open_clip_transformers.processing.image_processing_pil_naflex import NaFlexImageProcessorPil


DATA = Path(__file__).parents[2] / "data" / "open_clip_4"
ARCHITECTURES = [
    name
    for name in list_architectures()
    if (get_architecture(name)["vision_cfg"].get("timm_model_name") or "").startswith("naflexvit")
]


def naflex_cfg(timm_model_kwargs: dict | None = None, **vision_cfg) -> dict:
    vision = {"timm_model_name": "naflexvit_base_patch16_gap", "image_size": 224, **vision_cfg}
    vision |= {} if timm_model_kwargs is None else {"timm_model_kwargs": timm_model_kwargs}
    return {**tiny_clip_cfg(custom_text=True), "vision_cfg": vision}


@cache
def timm_on_meta(name: str, **kwargs) -> torch.nn.Module:
    with torch.device("meta"), no_init_weights():
        return timm.create_model(name, num_classes=0, **kwargs)


def test_table_has_the_models_of_timm_but_other_kinds_of_positions():
    others = {name for name in timm.list_models("naflexvit_*") if "radio" in name or "parfac" in name}
    assert set(TIMM_MODELS) == set(timm.list_models("naflexvit_*")) - others


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_table_has_the_fields_of_timm(name):
    fields, reference = {**_DEFAULTS, **TIMM_MODELS[name]}, timm_on_meta(name)
    block, embeds = reference.blocks[0], reference.embeds
    act = {"none": None, "tanh": "gelu_tanh"}[getattr(block.mlp.act, "approximate", "tanh")]
    assert (fields["embed_dim"], fields["depth"]) == (reference.embed_dim, len(reference.blocks))
    assert fields["num_heads"] == block.attn.num_heads
    assert int(fields["embed_dim"] * fields["mlp_ratio"]) == block.mlp.fc1.out_features
    assert (fields["global_pool"], fields["reg_tokens"]) == (reference.global_pool, reference.num_reg_tokens)
    assert fields["act_layer"] == act
    assert fields["qkv_bias"] == (block.attn.qkv.bias is not None)
    assert (fields["init_values"] is None) == isinstance(block.ls1, torch.nn.Identity)
    assert fields["pos_embed_interp_mode"] == embeds.pos_embed_interp_mode
    assert fields["pos_embed_ar_preserving"] == embeds.pos_embed_ar_preserving
    assert tuple(fields["pos_embed_grid_size"]) == embeds.pos_embed_grid_size
    assert bool(fields["fc_norm"]) == (not isinstance(reference.fc_norm, torch.nn.Identity))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_vision_tower_of_every_architecture_maps_at_full_size(name):
    model_cfg = get_architecture(name)
    vision_cfg = model_cfg["vision_cfg"]
    fields = NAFLEX_VIT.config_table.translate(vision_cfg, embed_dim=model_cfg["embed_dim"], quick_gelu=False)
    with torch.device("meta"), no_init_weights():
        model = NaFlexVitModel(NaFlexVitConfig(**fields))
    kwargs = vision_cfg.get("timm_model_kwargs", {})
    with torch.device("meta"), no_init_weights():
        trunk = timm.create_model(vision_cfg["timm_model_name"], num_classes=0, **kwargs)
    tensors = trunk.state_dict(prefix="trunk.")
    if vision_cfg.get("timm_proj") != "none":
        tensors["head.proj.weight"] = torch.empty(model_cfg["embed_dim"], trunk.num_features, device="meta")
    # Nothing left over on either side, and equal shapes.
    plan_tensors(model, tensors, tensors, NAFLEX_VIT.rename_table(model.config), {}, {})


def test_architectures_are_those_of_open_clip_4():
    siglip = {"ViT-B-16-SigLIP2-naflex", "ViT-SO400M-16-SigLIP2-naflex"}
    assert {name for name in ARCHITECTURES if "moderntext" not in name} == siglip | {
        "naflex_ViT-B-16",
        "naflex_ViT-B-32",
    }


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "moderntext" not in name])
def test_configuration_goes_back_to_open_clip(name):
    given = get_architecture(name)
    config = build_config(given)
    tokenizer = {k: v for k, v in given["text_cfg"].items() if k in ("hf_tokenizer_name", "tokenizer_kwargs")}
    model_cfg = build_model_cfg(config, tokenizer)
    for field in ("timm_model_name", "timm_model_kwargs"):
        assert model_cfg["vision_cfg"].get(field) == given["vision_cfg"].get(field)
    assert build_config(model_cfg).to_dict() == config.to_dict()
    assert config.vision_config.max_num_patches == given["vision_cfg"].get("image_seq_len", 1024)


REFUSALS = {
    "other-positions": ({"rope_type": "axial"}, {}, "timm_model_kwargs has arguments.*rope_type = 'axial'"),
    "activation": ({"act_layer": "relu"}, {}, "act_layer must be one of"),
    "filter": ({"pos_embed_interp_mode": "nearest"}, {}, "position_interpolation must be one of"),
    "type": ({"depth": "many"}, {}, "timm_model_kwargs: depth must be a whole number"),
    "null": ({"mlp_ratio": None}, {}, "timm_model_kwargs: mlp_ratio must be .*a number, got None"),
    "no-depth": ({"depth": [2]}, {}, "timm_model_kwargs: depth must be a whole number"),
    "ratio": ({"mlp_ratio": "a"}, {}, "timm_model_kwargs: mlp_ratio must be .*a number"),
    "switch": ({"swiglu_mlp": "no"}, {}, "timm_model_kwargs: swiglu_mlp must be true or false"),
    "patch-size": ({"patch_size": [16, 16, 16]}, {}, "patch_size"),
    "attention-pooling": ({}, {"timm_pool": "map"}, "no attention pooling"),
    "no-pooling": (
        {},
        {"timm_pool": "", "timm_proj": "none", "timm_model_name": "naflexvit_base_patch16_map"},
        "pool",
    ),
    "unknown-name": ({}, {"timm_model_name": "naflexvit_base_patch16_parfac_gap"}, "is not one of the NaFlex models"),
    "use-naflex": ({"use_naflex": True}, {}, "timm_model_kwargs has arguments.*use_naflex = True"),
    "budget": ({}, {"image_seq_len": 0}, "image_seq_len must lie in"),
}


@pytest.mark.parametrize(("kwargs", "vision_cfg", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_cannot_be_honoured_is_refused_by_name(kwargs, vision_cfg, message):
    with pytest.raises(ConversionError, match=rf"(?s){message}") as raised:
        build_config(naflex_cfg(kwargs, **vision_cfg))
    assert "remove" not in str(raised.value)


def test_captioner_over_images_of_any_shape_is_refused():
    model_cfg = naflex_cfg()
    model_cfg["multimodal_cfg"] = {**model_cfg.pop("text_cfg"), "proj_type": "linear"}
    with pytest.raises(ConversionError, match="MaMMUTConfig: a captioner whose vision_config is a NaFlex tower"):
        build_config(model_cfg)


@pytest.mark.parametrize("name", ["naflex_siglip", "naflex_gap", "naflex_map_gated"])
def test_conversion_is_verified_against_the_open_clip_at_hand(name, tmp_path):
    report = convert_open_clip_checkpoint(DATA / name, tmp_path / "out", with_processor=False, verify="full")
    assert report.verification.differences.keys() == {"image features", "text features", "logits"}
    folder = verify_folder(tmp_path / "out", DATA / name, dtypes=["float32"], skip=["pixels", "tokens"])
    assert folder.passed
    assert sum(check.name.startswith("vision layer") for check in folder.checks) >= 10


def test_tower_alone_has_its_image_processor(tmp_path):
    report = convert_open_clip_checkpoint(DATA / "naflex_gap", tmp_path / "out", tower="vision", verify="none")
    assert report.architecture == type(AutoModel.from_pretrained(tmp_path / "out")).__name__ == "NaFlexVitModel"
    image_processor = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    assert type(image_processor) is NaFlexImageProcessorPil
    assert (image_processor.patch_size, image_processor.max_num_patches) == (4, 20)


def test_native_model_is_siglip_2_where_its_table_is_a_square(tmp_path):
    with pytest.raises(ConversionError, match=r"(?s)way of Siglip2Model .*position_grid_size is \[3, 4\]"):
        convert_open_clip_checkpoint(DATA / "naflex_siglip", tmp_path / "out", target="native", with_processor=False)
    source = tmp_path / "source"
    shutil.copytree(DATA / "naflex_siglip", source)
    config = json.loads((source / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["timm_model_kwargs"]["pos_embed_grid_size"] = [4, 4]
    config["model_cfg"]["text_cfg"] |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    (source / "open_clip_config.json").write_text(json.dumps(config))
    tensors = load_file(source / "open_clip_model.safetensors")
    tensors["visual.trunk.embeds.pos_embed"] = torch.randn(1, 4, 4, 12)
    tensors["text.text_projection.weight"] = tensors.pop("text.text_projection").T.contiguous()
    tensors["text.text_projection.bias"] = torch.randn(12)
    save_file(tensors, source / "open_clip_model.safetensors")
    report = convert_open_clip_checkpoint(
        source, tmp_path / "out", target="native", with_processor=False, verify="full"
    )
    assert report.architecture == "Siglip2Model"
