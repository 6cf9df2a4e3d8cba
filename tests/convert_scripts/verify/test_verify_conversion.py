"""Verification: what it accepts, and that wrong conversions do not pass."""

import sys
from functools import partial

import pytest
import torch
from tiny_configs import open_clip_model, tiny_clip_cfg, tiny_coca_cfg
from tiny_folders import change_weights

from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.mapping.config import build_config
from open_clip_transformers.convert_scripts.mapping.plan import plan_conversion
from open_clip_transformers.convert_scripts.verify import conversion as verification
from open_clip_transformers.convert_scripts.verify.conversion import reference_outputs, verify_conversion
from open_clip_transformers.convert_scripts.write.folder import write_model


MODEL_CFG = tiny_coca_cfg()
REFERENCE = partial(reference_outputs, MODEL_CFG)


@pytest.fixture
def converted(tmp_path):
    """A converted folder and its plan."""
    plan = plan_conversion(build_config(MODEL_CFG), open_clip_model(MODEL_CFG).state_dict())
    write_model(tmp_path, plan, torch.float32, "5GB")
    return tmp_path, plan


def test_verify_auto_compares_every_output_with_open_clip(converted):
    result = verify_conversion(*converted, REFERENCE, "auto")
    assert (result.mode, result.detail) == ("full", "open_clip 3.3.0")
    assert result.differences.keys() == {"image features", "text features", "caption logits", "logits"}
    # On some processors an output is the same to the last bit.
    assert 0 < max(result.differences.values()) <= verification.BOUND


def test_verify_none_compares_nothing(tmp_path, converted):
    assert verify_conversion(tmp_path / "missing", converted[1], REFERENCE, "none").mode == "none"


def add_one(name):
    def change(tensors):
        tensors[name].view(-1)[-1] += 1

    return change


def remove(name):
    return lambda tensors: tensors.pop(name)


def add_tensor(tensors):
    tensors["extra"] = torch.zeros(3)


def transpose(tensors):
    tensors["lm_head.weight"] = tensors["lm_head.weight"].T.contiguous()


NAME = "text_model.encoder.layers.1.mlp.fc2.bias"
CHANGES = {
    "one-number": (add_one(NAME), NAME),
    "missing": (remove(NAME), NAME),
    "extra": (add_tensor, "extra"),
    "transposed": (transpose, "lm_head.weight"),
}


@pytest.mark.parametrize("mode", ["auto", "full", "structure"])
@pytest.mark.parametrize(("change", "name"), CHANGES.values(), ids=CHANGES.keys())
def test_verify_finds_tensors_that_are_not_the_checkpoints(converted, change, name, mode):
    folder, plan = converted
    change_weights(folder, change)
    with pytest.raises(ConversionError, match=rf"not written as they should be:\n  {name}$"):
        verify_conversion(folder, plan, REFERENCE, mode)


WRONG_CONFIGS = {
    "activation": ({"quick_gelu": True}, "image features"),
    "epsilon": ({"text_cfg": {"norm_kwargs": {"eps": 1e-3}}}, "text features"),
    "heads": ({"multimodal_cfg": {"heads": 3}}, "caption logits"),
    "pooling": ({"vision_cfg": {"pool_type": "avg"}}, "image features"),
    "padding": ({"text_cfg": {"pad_id": 5}}, "text features"),
}


@pytest.mark.parametrize(("changes", "output"), WRONG_CONFIGS.values(), ids=WRONG_CONFIGS.keys())
def test_verify_finds_settings_that_no_shape_gives_away(tmp_path, changes, output):
    plan = plan_conversion(build_config(tiny_coca_cfg(**changes)), open_clip_model(MODEL_CFG).state_dict())
    write_model(tmp_path, plan, torch.float32, "5GB")
    assert verify_conversion(tmp_path, plan, REFERENCE, "structure").mode == "structure"
    with pytest.raises(ConversionError, match=rf"(?s)differs from open_clip 3.3.0 by more than 2e-05.*{output}: "):
        verify_conversion(tmp_path, plan, REFERENCE, "auto")


def test_verify_does_not_take_nan_for_agreement(converted, monkeypatch):
    monkeypatch.setattr(verification, "our_outputs", lambda *args: {"logits": torch.full((2, 2), float("nan"))})
    monkeypatch.setattr(verification, "open_clip_outputs", lambda *args: {"logits": torch.ones(2, 2)})
    with pytest.raises(ConversionError, match="logits: inf"):
        verify_conversion(*converted, REFERENCE, "full")


def test_verify_tells_a_damaged_checkpoint_from_a_wrong_conversion(tmp_path):
    source = open_clip_model(MODEL_CFG).state_dict()
    source["text_decoder.ln_final.bias"][3] = float("inf")
    plan = plan_conversion(build_config(MODEL_CFG), source)
    write_model(tmp_path, plan, torch.float32, "5GB")
    with pytest.raises(ConversionError, match=r"checkpoint is damaged.*not finite:\n  caption logits$"):
        verify_conversion(tmp_path, plan, REFERENCE, "auto")


def test_verify_does_not_take_another_shape_for_agreement(converted, monkeypatch):
    monkeypatch.setattr(verification, "our_outputs", lambda *args: {"logits": torch.ones(2, 1)})
    monkeypatch.setattr(verification, "open_clip_outputs", lambda *args: {"logits": torch.ones(2, 2)})
    with pytest.raises(ConversionError, match="logits: inf"):
        verify_conversion(*converted, REFERENCE, "full")


def test_verify_without_open_clip_compares_tensors(converted, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "open_clip"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    monkeypatch.setattr(verification, "find_spec", lambda name: None)
    result = verify_conversion(*converted, REFERENCE, "auto")
    assert result.mode == "structure"
    assert "open_clip is not installed" in result.detail
    with pytest.raises(ConversionError, match="open_clip is not installed: verify='structure'"):
        verify_conversion(*converted, REFERENCE, "full")


def test_verify_full_demands_that_open_clip_runs_the_model(tmp_path):
    model_cfg = tiny_clip_cfg(text_cfg={"use_pad_mask": True, "no_causal_mask": True})
    source = open_clip_model(tiny_clip_cfg(text_cfg={"no_causal_mask": True})).state_dict()
    plan = plan_conversion(build_config(model_cfg), source)
    write_model(tmp_path, plan, torch.float32, "5GB")
    with pytest.raises(ConversionError, match=r"open_clip cannot run this model.*use_pad_mask"):
        verify_conversion(tmp_path, plan, partial(reference_outputs, model_cfg), "full")
