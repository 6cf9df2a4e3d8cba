"""Saved models come back, whole or in part, and nothing uninitialised is left in a loaded model."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CLIP, COCA, MODELS, SIGLIP, main_outputs, tiny_config, tiny_inputs, tiny_model
from transformers import AutoConfig, AutoModel

from open_clip_transformers.modeling.modeling_coca import CoCaForZeroShotImageClassification, CoCaModel
from open_clip_transformers.modeling.modeling_open_clip import (
    OpenClipForImageClassification,
    OpenClipModel,
    OpenClipTextModelWithProjection,
    OpenClipVisionModelWithProjection,
)
from open_clip_transformers.modeling.modeling_text import OpenClipTextModel
from open_clip_transformers.modeling.modeling_vit import OpenClipVitModel


every_model = pytest.mark.parametrize("name", MODELS)


def assert_equal_weights(model, reference, prefix: str = ""):
    weights = reference.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[prefix + name]), name


def settings(config: dict) -> dict:
    """A configuration without what depends on where and as what it was loaded."""
    config = {name: value for name, value in config.items() if name not in ("_name_or_path", "dtype", "architectures")}
    return {name: settings(value) if isinstance(value, dict) else value for name, value in config.items()}


@pytest.mark.floor
@every_model
def test_model_round_trip_is_exact_and_silent(name, tmp_path, warnings_of_transformers):
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert not warnings_of_transformers.records
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert_equal_weights(loaded, model)
    assert settings(loaded.config.to_dict()) == settings(model.config.to_dict())
    with torch.no_grad():
        for ours, expected in zip(
            main_outputs(loaded(**tiny_inputs(model))), main_outputs(model(**tiny_inputs(model))), strict=True
        ):
            # Weights read from a file are aligned differently in memory, which moves the last bits.
            assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-6)


# Encoders of transformers hold tables that no file has; `from_pretrained` makes them.
@pytest.mark.floor
@pytest.mark.parametrize("name", [name for name in MODELS if "hf_text" not in name])
def test_model_built_on_the_meta_device_loads_whole(name, tmp_path):
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    with torch.device("meta"):
        empty = type(model)(model.config)
    assert {weight.device.type for weight in empty.state_dict().values()} == {"meta"}
    empty.load_state_dict(load_file(tmp_path / "model.safetensors"), assign=True)
    # Anything that is not in the file would stay on the meta device, or come back as garbage.
    assert {tensor.device.type for tensor in (*empty.parameters(), *empty.buffers())} == {"cpu"}
    assert_equal_weights(empty, model)
    with torch.no_grad():
        for ours, expected in zip(
            main_outputs(empty.eval()(**tiny_inputs(model))), main_outputs(model(**tiny_inputs(model))), strict=True
        ):
            assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.floor
@pytest.mark.parametrize("part", ["vision_model", "text_model", "multimodal_decoder", "lm_head", "logit"])
def test_model_initialises_what_a_file_lacks(part, tmp_path, memory_of_nans):
    model = tiny_model("coca")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith(part)}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = CoCaModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == weights.keys() - kept.keys()
    fresh = CoCaModel(model.config).state_dict()
    for name, weight in loaded.state_dict().items():
        if name in kept:
            assert torch.equal(weight, kept[name]), name
        else:
            # As a new model: constants are equal, random weights have its spread.
            assert weight.isfinite().all(), name
            assert torch.equal(weight, fresh[name]) or abs(weight.std() / fresh[name].std() - 1) < 0.6, name


def test_sin_cos_table_is_right_and_stays_fixed_after_loading(tmp_path):
    model = tiny_model("clip")
    table = model.vision_model.embeddings.position_embedding.clone()
    model.save_pretrained(tmp_path)
    loaded = OpenClipModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.vision_model.embeddings.position_embedding, table)
    assert "vision_model.embeddings.position_embedding" not in dict(loaded.named_parameters())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["vision_model.embeddings.position_embedding"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    made_anew = OpenClipModel.from_pretrained(tmp_path).vision_model.embeddings.position_embedding
    assert torch.equal(made_anew, table)


FOLDERS = {"clip": "clip", "siglip": "siglip", "coca": "coca_for_generation"}
PARTS = {
    "vit": (OpenClipVitModel, "vision_model."),
    "text": (OpenClipTextModel, "text_model."),
    "vision_with_projection": (OpenClipVisionModelWithProjection, ""),
    "text_with_projection": (OpenClipTextModelWithProjection, ""),
}


@pytest.mark.floor
@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
@pytest.mark.parametrize(("part", "prefix"), PARTS.values(), ids=PARTS)
def test_part_loads_from_the_folder_of_a_whole_model(part, prefix, folder, tmp_path, warnings_of_transformers):
    model = tiny_model(folder)
    model.save_pretrained(tmp_path)
    loaded, info = part.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert_equal_weights(loaded, model, prefix)
    # transformers remarks that the folder was made by another model type, to which the head's configuration belongs.
    remarks = [record.getMessage() for record in warnings_of_transformers.records]
    assert all("You are using a model of type" in remark for remark in remarks), remarks
    assert not remarks or not prefix


@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
def test_classifier_loads_from_the_folder_of_a_whole_model(folder, tmp_path):
    model = tiny_model(folder)
    model.save_pretrained(tmp_path)
    loaded, info = OpenClipForImageClassification.from_pretrained(tmp_path, num_labels=5, output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_equal_weights(loaded.vision_model, model.vision_model)
    assert loaded(**tiny_inputs(loaded)).logits.shape == (3, 5)


@pytest.mark.floor
def test_coca_for_zero_shot_loads_from_the_folder_of_coca(tmp_path):
    model = tiny_model("coca_for_generation")
    model.save_pretrained(tmp_path)
    loaded, info = CoCaForZeroShotImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert_equal_weights(loaded, model)


def test_whole_model_reports_keys_that_its_towers_have_no_place_for(tmp_path):
    # A tower loaded alone ignores foreign keys; within a whole model nothing may go unnoticed.
    model = tiny_model("clip")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    extra = {"text_model.extra.weight", "vision_model.extra.weight", "logit_extra"}
    save_file(weights | {name: torch.ones(2) for name in extra}, tmp_path / "model.safetensors", {"format": "pt"})
    _, info = OpenClipModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info["unexpected_keys"] == extra


def test_tower_saved_alone_can_be_put_into_a_whole_model(tmp_path):
    tower = tiny_model("vit")
    tower.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == tower.state_dict().keys()
    model = OpenClipModel(tiny_config(CLIP))
    model.vision_model.load_state_dict(AutoModel.from_pretrained(tmp_path).state_dict())
    assert_equal_weights(model.vision_model, tower)


@pytest.mark.floor
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["clip", "siglip", "coca"])
def test_model_loads_in_half_precision(name, dtype, tmp_path):
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    low = type(model).from_pretrained(tmp_path, dtype=dtype)
    assert {weight.dtype for weight in low.state_dict().values()} == {dtype}
    inputs = tiny_inputs(model)
    with torch.no_grad():
        for ours, expected in zip(main_outputs(low(**inputs)), main_outputs(model(**inputs)), strict=True):
            assert ours.dtype == dtype
            assert torch.allclose(ours.float(), expected, atol=0.1 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["clip", "coca"])
def test_saved_shards_load(name, tmp_path):
    model = tiny_model(name)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_equal_weights(type(model).from_pretrained(tmp_path), model)


@every_model
def test_model_can_be_copied_and_pickled(name):
    model = tiny_model(name)
    inputs = tiny_inputs(model)
    with torch.no_grad():
        expected = main_outputs(model(**inputs))
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert all(torch.equal(a, b) for a, b in zip(main_outputs(twin(**inputs)), expected, strict=True))


@pytest.mark.parametrize(
    ("model_cfg", "name"),
    [(CLIP, "OpenClipModel"), (SIGLIP, "OpenClipSiglipModel"), (COCA, "CoCaModel")],
    ids=["clip", "siglip", "coca"],
)
def test_auto_model_builds_the_class_of_a_configuration(model_cfg, name):
    assert type(AutoModel.from_config(tiny_config(model_cfg))).__name__ == name


BOTH_WAYS = pytest.mark.parametrize("nonscalar", [True, False], ids=["scalar_to_vector", "vector_to_scalar"])


def model_with_scale(nonscalar: bool):
    model = OpenClipModel(tiny_config({**SIGLIP, "nonscalar_logit_scale": nonscalar}))
    for name, value in (("logit_scale", 1.7), ("logit_bias", -2.3)):
        getattr(model, name).data.fill_(value)
    return model


@pytest.mark.floor
@BOTH_WAYS
@pytest.mark.parametrize("form", ["safetensors", "shards", "bin", "state_dict"])
def test_logit_scale_loads_from_either_shape(nonscalar, form, tmp_path):
    model = model_with_scale(not nonscalar)
    model.save_pretrained(tmp_path, max_shard_size="20KB" if form == "shards" else "5GB")
    arguments = {"nonscalar_logit_scale": nonscalar, "output_loading_info": True}
    if form == "bin":
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    if form == "state_dict":
        config = AutoConfig.from_pretrained(tmp_path, nonscalar_logit_scale=nonscalar)
        arguments = {"config": config, "state_dict": model.state_dict(), "output_loading_info": True}
    loaded, info = OpenClipModel.from_pretrained(None if form == "state_dict" else tmp_path, **arguments)
    assert not any(info.values()), info
    for name, parameter in (("logit_scale", model.logit_scale), ("logit_bias", model.logit_bias)):
        value = getattr(loaded, name)
        assert value.shape == ((1,) if nonscalar else ()) and value.requires_grad
        assert value.item() == parameter.item()
    assert loaded.config.nonscalar_logit_scale == nonscalar
    with torch.no_grad():
        inputs = tiny_inputs(model)
        assert torch.allclose(loaded(**inputs).logits_per_image, model.eval()(**inputs).logits_per_image, atol=1e-5)


@BOTH_WAYS
def test_state_dict_with_the_other_shape_of_logit_scale_loads(nonscalar):
    model = model_with_scale(nonscalar)
    state_dict = model_with_scale(not nonscalar).state_dict()
    shape = state_dict["logit_scale"].shape
    model.load_state_dict(state_dict)
    assert model.logit_scale.item() == pytest.approx(1.7)
    assert model.logit_scale.shape == ((1,) if nonscalar else ())
    assert state_dict["logit_scale"].shape == shape  # the caller's


@pytest.mark.floor
@every_model
def test_modules_that_are_not_split_are_there(name):
    # accelerate looks for each, and refuses to wrap a model that lacks one.
    model = tiny_model(name)
    assert model._no_split_modules
    assert set(model._no_split_modules) <= {type(module).__name__ for module in model.modules()}
