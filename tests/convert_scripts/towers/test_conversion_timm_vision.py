"""Conversion of towers of timm: every architecture at full size, Apple's MobileCLIP files, the fused form."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_configs import open_clip_model, save_open_clip_folder
from tiny_timm import FAMILIES, timm_vision_cfgs, tiny_timm_cfg
from transformers import AutoModel, AutoProcessor

from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.convert_to_open_clip import convert_to_open_clip
from open_clip_transformers.convert_scripts.mapping.config import build_config, build_model_cfg
from open_clip_transformers.convert_scripts.mapping.plan import find_layout, plan_conversion
from open_clip_transformers.convert_scripts.mapping.state_dict import resolve
from open_clip_transformers.convert_scripts.sources.architectures import get_architecture
from open_clip_transformers.convert_scripts.sources.mobileclip import mobileclip_table, mobileclip_to_open_clip
from open_clip_transformers.convert_scripts.verify.reference import build_open_clip_model
from open_clip_transformers.modeling.modeling_timm_factory import storage_free_parameters


# One of each kind, and small; the others take a second or two each.
QUICK = {"EVA01-g-14", "EVA02-B-16", "MobileCLIP-B", "PE-Core-B-16", "ViTamin-S", "convnext_base", "convnext_large_d"}
QUICK |= {"swin_base_patch4_window7_224", "vit_medium_patch16_gap_256", "vit_relpos_medium_patch16_cls_224"}
FULL_SIZE = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in timm_vision_cfgs()]


@pytest.mark.parametrize("name", FULL_SIZE)
def test_every_key_and_shape_of_a_full_size_model_has_its_place(name):
    model_cfg = get_architecture(name)
    with storage_free_parameters():  # older releases of timm cannot be built on the meta device
        tensors = build_open_clip_model(model_cfg).state_dict()
    config = build_config(model_cfg)
    plan = plan_conversion(config, tensors)
    assert len(plan.tensors) == len(tensors) and not plan.dropped and not plan.changed
    assert sum(key.startswith("vision_model.timm_model.") for key in plan.layout) == sum(
        key.startswith("visual.trunk.") for key in tensors
    )
    # And back to what open_clip states, less what it states although it is the default.
    assert build_model_cfg(config)["vision_cfg"].items() <= model_cfg["vision_cfg"].items()


@pytest.mark.parametrize("name", ["eva02", "fastvit", "swin"])
def test_converted_folder_agrees_with_open_clip(name, tmp_path):
    save_open_clip_folder(tmp_path / "source", FAMILIES[name])
    report = convert_open_clip_checkpoint(
        tmp_path / "source", tmp_path / "out", with_processor=False, verify="full", dtype="bfloat16"
    )
    assert report.verification.mode == "full"


def test_way_back_to_open_clip_is_exact_and_refuses_the_fused_form(tmp_path):
    source = tmp_path / "source"
    save_open_clip_folder(source, FAMILIES["fastvit"])
    for name, fused in (("out", False), ("fused", True)):
        convert_open_clip_checkpoint(
            source, tmp_path / name, with_processor=False, verify="none", reparameterize=fused
        )
    convert_to_open_clip(tmp_path / "out", tmp_path / "back", with_processor=False)
    expected = load_file(source / "open_clip_model.safetensors")
    back = load_file(tmp_path / "back" / "open_clip_model.safetensors")
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in expected.items())
    with pytest.raises(ConversionError, match="reparameterized = True"):
        convert_to_open_clip(tmp_path / "fused", tmp_path / "none", with_processor=False)


def test_missing_timm_is_said(monkeypatch):
    from open_clip_transformers.convert_scripts.towers import timm_vision as conversion_timm_vision

    def missing(name: str):
        raise ImportError("timm")

    monkeypatch.setattr(conversion_timm_vision, "describe_architecture", missing)
    with pytest.raises(ConversionError, match=r"convnext_base is a model of timm.*pip install timm"):
        build_config(get_architecture("convnext_base"))


def test_unknown_timm_model_is_said():
    model_cfg = get_architecture("convnext_base")
    model_cfg["vision_cfg"]["timm_model_name"] = "convnext_of_tomorrow"
    with pytest.raises(ConversionError, match="convnext_of_tomorrow"):
        build_config(model_cfg)
    model_cfg["vision_cfg"]["timm_model_name"] = "hf-hub:timm/convnext_base"
    with pytest.raises(ConversionError, match="addresses and folders are refused"):
        build_config(model_cfg)


def test_positions_of_another_image_size_are_resized_and_reported(tmp_path):
    model_cfg = tiny_timm_cfg("vit_large_patch14_clip_224", timm_pool="token", timm_proj=None)
    save_open_clip_folder(tmp_path / "source", model_cfg)
    model_cfg["vision_cfg"]["image_size"] = 64
    report = convert_open_clip_checkpoint(
        tmp_path / "source" / "open_clip_model.safetensors",
        tmp_path / "out",
        config=model_cfg,
        with_processor=False,
        verify="structure",
    )
    assert report.changed == {"visual.trunk.pos_embed": "resized from (1, 10, 24) to (1, 17, 24)"}
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert model.get_image_features(torch.zeros(1, 3, 64, 64)).last_hidden_state.shape == (1, 17, 24)


# The parts of Apple's FastViT with three rounds of downsampling, positions before the last stage.
FASTVIT_PARTS = [
    *(f"image_encoder.model.network.{part}.0.x" for part in (0, 2, 4, 7)),
    *(f"image_encoder.model.network.{part}.proj.0.x" for part in (1, 3, 5)),
    "image_encoder.model.network.6.pe.weight",
]
APPLE = {
    "fastvit": (tiny_timm_cfg("fastvit_mci1", timm_pool="avg", timm_proj=None, timm_drop_path=0.0), FASTVIT_PARTS),
    "vit": (tiny_timm_cfg("vit_base_mci_224", timm_pool="token", timm_proj=None), ["image_encoder.model.patch_emb.0"]),
}


def apple_tensors(model: torch.nn.Module, parts: list[str]) -> dict[str, torch.Tensor]:
    """The tensors of open_clip's model as Apple publishes them, without the bias that Apple's projection has not."""
    own = {
        key: tensor for key, tensor in model.state_dict().items() if not key.endswith(("head.bias", "head.fc.bias"))
    }
    steps, unmatched = resolve(own, mobileclip_table(parts), "targets")
    assert not unmatched
    tensors: dict[str, torch.Tensor] = {}
    for step in steps:
        tensors |= zip(step.sources, step.operation.invert(tuple(own[key] for key in step.targets)))
    return tensors


def apple_model(model_cfg: dict) -> torch.nn.Module:
    """open_clip's model with a projection of the image that has no bias, as Apple trains it."""
    model = open_clip_model(model_cfg)
    for name, parameter in model.named_parameters():
        if name.endswith(("head.bias", "head.fc.bias")):
            parameter.data.zero_()
    return model


@pytest.mark.parametrize(("model_cfg", "parts"), APPLE.values(), ids=APPLE)
def test_apples_names_become_open_clips_as_open_clip_converts_them(model_cfg, parts):
    from open_clip.convert import convert_state_dict

    model = apple_model(model_cfg)
    tensors = apple_tensors(model, parts)
    assert find_layout(tensors.keys()).name == "Apple's MobileCLIP"
    ours, theirs = mobileclip_to_open_clip(tensors, None), convert_state_dict(model, dict(tensors))
    assert ours.keys() == theirs.keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(ours[key], tensor) and torch.equal(theirs[key], tensor), key


def test_apples_names_are_those_of_its_files():
    # A sample of the keys that Apple's own code loads (github.com/apple/ml-mobileclip).
    fastvit = apple_tensors(apple_model(APPLE["fastvit"][0]), FASTVIT_PARTS)
    vit = apple_tensors(apple_model(APPLE["vit"][0]), APPLE["vit"][1])
    assert {
        "image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight",
        "image_encoder.model.patch_embed.2.rbr_skip.running_mean",
        "image_encoder.model.network.0.1.token_mixer.norm.rbr_skip.weight",
        "image_encoder.model.network.0.1.token_mixer.layer_scale",
        "image_encoder.model.network.0.1.convffn.conv.bn.num_batches_tracked",
        "image_encoder.model.network.0.1.layer_scale",
        "image_encoder.model.network.5.proj.0.lkb_origin.conv.weight",
        "image_encoder.model.network.5.proj.0.small_conv.bn.bias",
        "image_encoder.model.network.5.proj.0.se.fc1.weight",
        "image_encoder.model.network.6.pe.bias",
        "image_encoder.model.network.7.0.token_mixer.qkv.weight",
        "image_encoder.model.network.7.0.layer_scale_2",
        "image_encoder.model.conv_exp.se.reduce.weight",
        "image_encoder.model.head.proj",
        "text_encoder.embedding_layer.weight",
        "text_encoder.projection_layer",
        "logit_scale",
    } <= fastvit.keys()
    assert {
        "image_encoder.model.patch_emb.0.block.norm.running_var",
        "image_encoder.model.cls_token",
        "image_encoder.model.transformer.0.pre_norm_mha.1.qkv_proj.bias",
        "image_encoder.model.transformer.0.pre_norm_ffn.4.weight",
        "image_encoder.model.post_transformer_norm.weight",
        "image_encoder.model.classifier.proj",
        "text_encoder.transformer.1.pre_norm_mha.0.weight",
        "text_encoder.final_layer_norm.bias",
    } <= vit.keys()
    assert fastvit["text_encoder.positional_embedding.pos_embed.pos_embed"].shape == (1, 1, 11, 36)
    assert vit["image_encoder.model.pos_embed.pos_embed.pos_embed"].shape == (1, 1, 9, 768)


def test_apples_file_converts_with_its_image_settings(tmp_path):
    model_cfg, parts = APPLE["fastvit"]
    model_cfg = {**model_cfg, "text_cfg": {**model_cfg["text_cfg"], "vocab_size": 49408}}
    torch.save(apple_tensors(apple_model(model_cfg), parts), tmp_path / "mobileclip.pt")
    report = convert_open_clip_checkpoint(
        tmp_path / "mobileclip.pt", tmp_path / "out", config=model_cfg, verify="full"
    )
    assert "the checkpoint has the layout of Apple's MobileCLIP" in report.notes
    image_processor = AutoProcessor.from_pretrained(tmp_path / "out").image_processor
    assert list(image_processor.image_mean) == [0, 0, 0] and list(image_processor.image_std) == [1, 1, 1]
    assert int(image_processor.resample) == 2  # bilinear


def test_convolutional_text_encoder_of_mobileclip_s0_is_refused():
    tensors = apple_tensors(apple_model(APPLE["fastvit"][0]), FASTVIT_PARTS)
    tensors["text_encoder.transformer.0.token_mixer.layer_scale"] = torch.ones(36, 1, 1)
    with pytest.raises(ConversionError, match=r"MobileCLIP-S0.*open_clip has no such tower"):
        mobileclip_to_open_clip(tensors, None)


def test_unknown_keys_of_apples_files_are_listed():
    tensors = apple_tensors(apple_model(APPLE["fastvit"][0]), FASTVIT_PARTS)
    with pytest.raises(ConversionError, match=r"image_encoder.model.extra.weight"):
        mobileclip_to_open_clip({**tensors, "image_encoder.model.extra.weight": torch.ones(1)}, None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reparameterize_writes_the_fused_form_with_the_same_outputs(dtype, tmp_path):
    save_open_clip_folder(tmp_path / "source", APPLE["fastvit"][0])
    # In fp32 compared with open_clip's model as it was trained.
    report = convert_open_clip_checkpoint(
        tmp_path / "source",
        tmp_path / "out",
        with_processor=False,
        verify="full",
        dtype=dtype,
        reparameterize=True,
    )
    assert max(report.verification.differences.values()) < 1e-5
    assert list(report.changed) == ["visual.trunk.*"]
    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert model.config.vision_config.reparameterized
    assert not any("conv_kxk" in name for name in model.state_dict())


@pytest.mark.parametrize("layout", ["open_clip", "apple"])
def test_checkpoint_in_the_fused_form_is_taken_as_it_is(layout, tmp_path):
    from timm.utils import reparameterize_model

    model_cfg = APPLE["fastvit"][0]
    model = apple_model(model_cfg)
    with torch.no_grad():
        reparameterize_model(model.visual.trunk, inplace=True)
    parts = [key.replace("network.6.pe", "network.6.reparam_conv") for key in FASTVIT_PARTS]
    tensors = model.state_dict() if layout == "open_clip" else apple_tensors(model, parts)
    if layout == "apple":
        assert "image_encoder.model.network.1.proj.0.lkb_reparam.weight" in tensors
    torch.save(tensors, tmp_path / "model.pt")
    report = convert_open_clip_checkpoint(
        tmp_path / "model.pt", tmp_path / "out", config=model_cfg, with_processor=False, verify="full"
    )
    assert not report.changed
    assert AutoModel.from_pretrained(tmp_path / "out").config.vision_config.reparameterized


def test_reparameterize_is_refused_for_other_towers(tmp_path):
    from tiny_configs import tiny_clip_cfg

    save_open_clip_folder(tmp_path / "source", tiny_clip_cfg())
    with pytest.raises(ConversionError, match=r"reparameterize fuses the branches.*Leave it out"):
        convert_open_clip_checkpoint(tmp_path / "source", tmp_path / "out", with_processor=False, reparameterize=True)
    assert not (tmp_path / "out").exists()
