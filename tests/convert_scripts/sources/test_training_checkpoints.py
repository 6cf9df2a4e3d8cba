"""Training checkpoints of open_clip, from its first releases to 4.x: every layout converts to the same tensors."""

import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_configs import open_clip_model, tiny_clip_cfg, tiny_coca_cfg, tiny_resnet_cfg, tiny_siglip_cfg

from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint


Tensors = dict[str, torch.Tensor]
TEXT_KEYS = ("positional_embedding", "text_projection", "token_embedding.", "transformer.", "ln_final.")


def under_text(tensors: Tensors) -> Tensors:
    """The text tower below `text.`, where open_clip's `CustomTextCLIP` has it."""
    return {f"text.{key}" if key.startswith(TEXT_KEYS) else key: tensor for key, tensor in tensors.items()}


def fsdp(tensors: Tensors) -> Tensors:
    """Parameters have one dimension at least (open_clip: `prepare_fsdp` in `task/base_task.py`)."""
    return {key: tensor.reshape(1) if key.startswith("logit_") else tensor for key, tensor in tensors.items()}


def compiled_blocks(tensors: Tensors) -> Tensors:
    """Every block compiled for itself, below `resblocks.0._orig_mod.` (open_clip: `compile_blocks`)."""
    names = {key: key.split(".") for key in tensors}
    for name in names.values():
        if "resblocks" in name:
            name.insert(name.index("resblocks") + 2, "_orig_mod")
    return {".".join(name): tensors[key] for key, name in names.items()}


LAYOUTS = {
    "as_it_is": lambda tensors: tensors,
    "under_text": under_text,
    "distributed": lambda tensors: {f"module.{key}": tensor for key, tensor in tensors.items()},
    "compiled": lambda tensors: {f"_orig_mod.{key}": tensor for key, tensor in tensors.items()},
    "distributed_compiled_under_text": lambda tensors: {
        f"module._orig_mod.{k}": t for k, t in under_text(tensors).items()
    },
    "compiled_blocks": compiled_blocks,
    "fsdp": fsdp,
    "fsdp_compiled_blocks": lambda tensors: fsdp(compiled_blocks(tensors)),
    "with_mask": lambda tensors: {**tensors, "attn_mask": torch.zeros(11, 11)},
}
CONFIGS = {"clip": tiny_clip_cfg(), "resnet": tiny_resnet_cfg()}


def training_checkpoint(tensors: Tensors, **entries) -> dict:
    """A checkpoint as open_clip's training writes it."""
    optimizer = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}},
        "param_groups": [{"lr": np.float64(1e-3), "betas": (0.9, 0.98), "params": [0]}],
    }
    scaler = {"scale": 65536.0, "_growth_tracker": 3}
    checkpoint = {"epoch": 3, "name": "a-run", "state_dict": OrderedDict(tensors), "optimizer": optimizer}
    return {**checkpoint, "scaler": scaler, "global_step": 70, "samples_seen": 999, **entries}


def converted(tmp_path, source, model_cfg: dict, **kwargs) -> Tensors:
    convert_open_clip_checkpoint(
        source, tmp_path / "out", config={"model_cfg": model_cfg}, with_processor=False, verify="structure", **kwargs
    )
    return load_file(tmp_path / "out" / "model.safetensors")


def assert_same_tensors(ours: Tensors, expected: Tensors):
    assert ours.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(ours[key], tensor), key


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, Tensors]:
    """Tensors of each of `CONFIGS`, converted from a plain state dict."""
    folder = tmp_path_factory.mktemp("expected")
    tensors = {}
    for name, model_cfg in CONFIGS.items():
        torch.save(open_clip_model(model_cfg).state_dict(), folder / f"{name}.pt")
        tensors[name] = converted(folder / name, folder / f"{name}.pt", model_cfg)
    return tensors


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_training_checkpoint_converts_whatever_wrapped_the_model(tmp_path, expected, name, layout):
    tensors = layout(open_clip_model(CONFIGS[name]).state_dict())
    torch.save(training_checkpoint(tensors), tmp_path / "epoch_3.pt")
    assert_same_tensors(converted(tmp_path, tmp_path / "epoch_3.pt", CONFIGS[name]), expected[name])


def test_text_tower_of_a_custom_model_may_lie_at_top_level(tmp_path):
    # open_clip: `convert_to_custom_text_state_dict` in `model.py`.
    model_cfg = tiny_siglip_cfg(text_cfg={"proj_bias": False})
    tensors = open_clip_model(model_cfg).state_dict()
    torch.save(training_checkpoint(tensors), tmp_path / "new.pt")
    top_level = {key.removeprefix("text."): tensor for key, tensor in tensors.items()}
    torch.save(training_checkpoint(top_level), tmp_path / "old.pt")
    new, old = (converted(tmp_path / name, tmp_path / f"{name}.pt", model_cfg) for name in ("new", "old"))
    assert_same_tensors(old, new)


@pytest.mark.parametrize("nonscalar", [False, True], ids=["scalar", "1d"])
def test_numbers_of_a_sharded_run_get_the_shape_that_the_model_has(tmp_path, nonscalar):
    # 4.x writes numbers without dimension, whatever the model has (open_clip: `_normalize_scalar_params`).
    model_cfg = tiny_coca_cfg(init_logit_bias=-3.0, nonscalar_logit_scale=nonscalar)
    tensors = open_clip_model(model_cfg).state_dict()
    other = {key: t.squeeze() if nonscalar else t.reshape(1) for key, t in tensors.items() if key.startswith("logit_")}
    torch.save(training_checkpoint({**tensors, **other}), tmp_path / "epoch_3.pt")
    ours = converted(tmp_path, tmp_path / "epoch_3.pt", model_cfg)
    for key in ("logit_scale", "logit_bias"):
        assert torch.equal(ours[key], tensors[key])


def test_averaged_weights_convert_on_demand(tmp_path, expected):
    plain, averaged = (open_clip_model(CONFIGS["clip"], seed).state_dict() for seed in (1, 0))
    torch.save(training_checkpoint(plain, state_dict_ema=averaged), tmp_path / "epoch_3.pt")
    ours = converted(tmp_path / "ema", tmp_path / "epoch_3.pt", CONFIGS["clip"], ema=True)
    assert_same_tensors(ours, expected["clip"])
    others = converted(tmp_path / "plain", tmp_path / "epoch_3.pt", CONFIGS["clip"])
    assert not torch.equal(others["text_model.projection.weight"], ours["text_model.projection.weight"])


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("given", ["folder", "index"])
def test_several_files_convert_as_one(tmp_path, expected, suffix, given):
    folder = tmp_path / "source"
    folder.mkdir()
    tensors = list(open_clip_model(CONFIGS["resnet"]).state_dict().items())
    weight_map = {}
    for part in range(3):
        name = f"open_clip_model-0000{part + 1}-of-00003{suffix}"
        shard = {key: tensor.contiguous() for key, tensor in tensors[part::3]}
        save_file(shard, folder / name) if suffix == ".safetensors" else torch.save(shard, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    stem = "open_clip_model" if suffix == ".safetensors" else "open_clip_pytorch_model"
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    source = folder if given == "folder" else index
    assert_same_tensors(converted(tmp_path, source, CONFIGS["resnet"]), expected["resnet"])


def test_distributed_checkpoint_names_the_way_to_one_file(tmp_path):
    folder = tmp_path / "epoch_3"
    folder.mkdir()
    (folder / "__0_0.distcp").touch()
    (folder / ".metadata").touch()
    with pytest.raises(ConversionError, match=r"distributed checkpoint.*format_utils dcp_to_torch .*epoch_3 FILE"):
        convert_open_clip_checkpoint(folder, tmp_path / "out", model_name="ViT-B-32")
