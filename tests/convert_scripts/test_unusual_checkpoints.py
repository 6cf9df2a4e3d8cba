"""Checkpoints that are a little unlike those that open_clip publishes: what converts all the same, and what is said
where something does not."""

import json
import time

import pytest
import torch
from safetensors.torch import load_file
from tiny_configs import open_clip_model, tiny_clip_cfg, tiny_coca_cfg, tiny_resnet_cfg
from tiny_timm import tiny_timm_cfg

from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.mapping.config import build_config
from open_clip_transformers.convert_scripts.mapping.plan import plan_conversion


CLIP = tiny_clip_cfg()
TEXT_KEYS = ("positional_embedding", "text_projection", "token_embedding.", "transformer.", "ln_final.")


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return open_clip_model(CLIP).state_dict()


def under_text(tensors):
    """As open_clip's `CustomTextCLIP` has them."""
    return {f"text.{key}" if key.startswith(TEXT_KEYS) else key: tensor for key, tensor in tensors.items()}


def convert(tmp_path, tensors, model_cfg=CLIP, **kwargs):
    torch.save(tensors, tmp_path / "weights.pt")
    kwargs = {"config": model_cfg, "with_processor": False, "verify": "full", **kwargs}
    return convert_open_clip_checkpoint(tmp_path / "weights.pt", tmp_path / "out", **kwargs)


@pytest.mark.parametrize(
    "model_cfg", [tiny_resnet_cfg(), tiny_timm_cfg("fastvit_mci1", timm_pool="avg")], ids=["resnet", "timm"]
)
def test_batch_norms_that_were_frozen_have_counted_no_batches(tmp_path, model_cfg):
    tensors = open_clip_model(model_cfg).state_dict()
    kept = {key: tensor for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")}
    report = convert(tmp_path, kept, model_cfg)
    assert report.verification.mode == "full"
    assert report.changed["*.num_batches_tracked"].endswith(f"for {len(tensors) - len(kept)} batch norms, set to 0")
    written = load_file(tmp_path / "out" / "model.safetensors")
    counts = [tensor for key, tensor in written.items() if key.endswith("num_batches_tracked")]
    assert len(counts) == len(tensors) - len(kept) > 0
    assert all(torch.equal(count, torch.tensor(0)) for count in counts)


@pytest.mark.parametrize("prefix", [lambda tensors: tensors, under_text], ids=["clip", "custom_text"])
def test_clip_with_a_logit_bias_is_a_siglip(tmp_path, tensors, prefix):
    report = convert(tmp_path, {**prefix(tensors), "logit_bias": torch.tensor(-8.5)})
    assert (report.model_type, report.verification.mode) == ("open_clip_siglip", "full")
    assert "the checkpoint holds a logit_bias" in report.notes[0]
    assert load_file(tmp_path / "out" / "model.safetensors")["logit_bias"] == -8.5
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["logit_bias_init_value"] == -10.0


def test_coca_with_a_logit_bias_keeps_it(tmp_path):
    model_cfg = tiny_coca_cfg()
    tensors = {**open_clip_model(model_cfg).state_dict(), "logit_bias": torch.tensor(-8.5)}
    report = convert(tmp_path, tensors, model_cfg)
    assert report.verification.mode == "full"
    assert load_file(tmp_path / "out" / "model.safetensors")["logit_bias"] == -8.5


def test_keys_of_custom_text_clip_are_verified_with_a_plain_configuration(tmp_path, tensors):
    assert convert(tmp_path, under_text(tensors)).verification.mode == "full"


def prefixed(prefix, tensors):
    return {f"{prefix}{key}": tensor for key, tensor in tensors.items()}


ADAPTER = {"base_model.model.visual.proj.lora_A.default.weight": torch.ones(2, 3)}
UNKNOWN = {
    "prefix": (lambda t: prefixed("model.", t), r"All keys begin with 'model\.': save them without it"),
    "peft": (lambda t: prefixed("base_model.model.", under_text(t)), r"All keys begin with 'base_model\.model\.'"),
    "lightning": (lambda t: {**prefixed("net.", t), "loss.w": torch.ones(1)}, r"keys of the model begin with 'net\.'"),
    "lora": (
        lambda t: {**prefixed("base_model.model.", t), **ADAPTER},
        "LoRA's: merge the adapters .*merge_and_unload",
    ),
    "teacher": (lambda t: {**t, **prefixed("teacher.", t)}, r"begin with 'teacher\.' are another model's beside this"),
    "another_teacher": (
        lambda t: {**t, "teacher.blocks.0.w": torch.ones(1)},
        r"begin with 'teacher\.' are another model's beside this",
    ),
    "lora_of_others": (lambda t: {**t, "visual.conv1.lora_down.weight": torch.ones(1)}, "keys are LoRA's"),
    "ia3": (lambda t: {"base_model.model.visual.proj.ia3_l": torch.ones(1)}, r"keys are adapters' \(ia3_\): merge"),
    "oft": (
        lambda t: {**t, "visual.conv1.oft_R.d.weight": torch.ones(1)},
        r"keys are adapters' \(oft_\): merge",
    ),
    "two": (
        lambda t: prefixed("teacher.", t) | prefixed("student.", t),
        r"'teacher\.' and 'student\.' are a model each",
    ),
    "transformers": (
        lambda t: {"vision_model.embeddings.class_embedding": torch.ones(3), "text_model.embeddings.a": torch.ones(1)},
        r"names of transformers' models: give the folder with their config\.json",
    ),
}


@pytest.mark.parametrize(("change", "message"), UNKNOWN.values(), ids=UNKNOWN)
def test_keys_of_other_origin_are_recognised(tmp_path, tensors, change, message):
    with pytest.raises(ConversionError, match=message):
        convert(tmp_path, change(tensors))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["prefix", "peft", "lora", "transformers"])
def test_keys_of_other_origin_are_recognised_without_an_architecture(tmp_path, tensors, name):
    change, message = UNKNOWN[name]
    with pytest.raises(ConversionError, match=rf"(?s)architecture of .* is not known.*{message}"):
        convert(tmp_path, change(tensors), config=None)


def test_keys_of_a_deeper_tower_are_not_taken_for_another_model(tensors):
    config = build_config(tiny_clip_cfg(vision_cfg={"layers": 2}))
    with pytest.raises(ConversionError, match=r"(?s)^((?!begin with|a model each).)*$"):
        plan_conversion(config, tensors)


def test_many_keys_without_a_place_are_refused_quickly(tensors):
    many = {f"extra.{i}.weight": tensors["logit_scale"] for i in range(20000)}
    start = time.perf_counter()
    with pytest.raises(ConversionError, match=r"no place for:\n  extra\.0\.weight \(\)(?s:.*)and 19980 more"):
        plan_conversion(build_config(CLIP), {**tensors, **many})
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("length", [11, 20], ids=["as_it_is", "to_be_resized"])
def test_positions_that_are_integers_are_refused(tensors, length):
    table = torch.ones(length, 36, dtype=torch.int64)
    with pytest.raises(ConversionError, match=r"positional_embedding: got torch\.int64, expected floats"):
        plan_conversion(build_config(CLIP), {**tensors, "positional_embedding": table})


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_float8_is_written_as_fp32_and_noted(tmp_path, tensors, dtype):
    report = convert(tmp_path, {key: tensor.to(dtype) for key, tensor in tensors.items()})
    assert (report.dtype, report.verification.mode) == ("float32", "full")
    assert report.notes[-1] == f"written as float32: models are not loaded in {str(dtype).removeprefix('torch.')}"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8], ids=str)
def test_dtypes_that_are_not_loaded_are_not_written(tmp_path, tensors, dtype):
    with pytest.raises(ConversionError, match="dtype must be a floating point dtype that models are loaded in"):
        convert(tmp_path, tensors, dtype=dtype)


@pytest.mark.parametrize(
    ("value", "dtype", "other"), [(1e5, "float16", "bfloat16"), (3.4e38, "bfloat16", "float32")], ids=["fp16", "bf16"]
)
@pytest.mark.parametrize("verify", ["none", "structure"])
def test_values_that_a_dtype_cannot_hold_are_refused(tmp_path, tensors, value, dtype, other, verify):
    changed = tensors["visual.proj"].clone()
    changed[3, 2] = -value
    with pytest.raises(ConversionError, match=rf"vision_model\.projection\.weight holds .* dtype='{other}' instead"):
        convert(tmp_path, {**tensors, "visual.proj": changed}, dtype=dtype, verify=verify)
    assert not (tmp_path / "out").exists()


def test_values_beyond_every_dtype_are_damage(tmp_path, tensors):
    damaged = {**tensors, "visual.proj": tensors["visual.proj"].double() * 1e300}
    with pytest.raises(ConversionError, match=r"and float32 ends at 3\.40282e\+38: the checkpoint is damaged"):
        convert(tmp_path, damaged)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")], ids=str)
def test_values_that_are_not_finite_are_found_without_outputs(tmp_path, tensors, value):
    changed = tensors["visual.proj"].clone()
    changed[3, 2] = value
    with pytest.raises(ConversionError, match=r"damaged: .* not finite:\n  vision_model\.projection\.weight$"):
        convert(tmp_path, {**tensors, "visual.proj": changed}, verify="structure")
    assert not (tmp_path / "out").exists()
