"""Writing a model: files, shards and dtypes."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_configs import open_clip_model, tiny_coca_cfg, tiny_resnet_cfg

from open_clip_transformers.convert_scripts.mapping.config import build_config
from open_clip_transformers.convert_scripts.mapping.plan import plan_conversion
from open_clip_transformers.convert_scripts.write import safetensors as write_safetensors
from open_clip_transformers.convert_scripts.write.folder import write_model


@pytest.fixture
def plan():
    cfg = tiny_coca_cfg()
    return plan_conversion(build_config(cfg), open_clip_model(cfg).state_dict())


@pytest.mark.parametrize("block_size", [100, 2**24], ids=["small-blocks", "whole-tensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_write_model_casts_every_tensor(tmp_path, monkeypatch, plan, dtype, block_size):
    monkeypatch.setattr(write_safetensors, "BLOCK_SIZE", block_size)
    write_model(tmp_path, plan, dtype, "5GB")
    written = load_file(tmp_path / "model.safetensors")
    expected = {key: tensor.detach().to(dtype) for key, tensor in plan.converted()}
    assert written.keys() == expected.keys()
    assert all(tensor.dtype == dtype and torch.equal(tensor, expected[key]) for key, tensor in written.items())


def test_write_model_divides_the_tensors_of_a_step_among_shards(tmp_path, plan):
    write_model(tmp_path, plan, torch.float32, 7000)  # less than queries, keys and values of a layer
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    expected = dict(plan.converted())
    assert index["weight_map"].keys() == expected.keys()
    layer = "vision_model.encoder.layers.0.self_attn.{}_proj.weight"
    assert len({index["weight_map"][layer.format(x)] for x in "qkv"}) > 1
    for name in set(index["weight_map"].values()):
        tensors = load_file(tmp_path / name)
        assert tensors.keys() == {key for key, filename in index["weight_map"].items() if filename == name}
        assert all(torch.equal(tensor, expected[key]) for key, tensor in tensors.items())


def test_write_model_keeps_integers(tmp_path):
    cfg = tiny_resnet_cfg()
    source = open_clip_model(cfg).state_dict()
    source["visual.bn1.num_batches_tracked"].fill_(2**40 + 1)
    write_model(tmp_path, plan_conversion(build_config(cfg), source), torch.float16, "5GB")
    tensors = load_file(tmp_path / "model.safetensors")
    counts = {key: tensor for key, tensor in tensors.items() if key.endswith("num_batches_tracked")}
    assert {tensor.dtype for tensor in counts.values()} == {torch.int64}
    assert max(counts.values()) == 2**40 + 1
    assert {tensor.dtype for key, tensor in tensors.items() if key not in counts} == {torch.float16}
