"""Reading weights files: every format and wrapper, and nothing that runs code."""

import hashlib
import json
import os
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.sources.weights import file_sha256, read_weights


TENSORS = {"visual.proj": torch.randn(3, 5), "logit_scale": torch.tensor(2.5)}


class RunsCode:
    """An object whose pickle creates a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def assert_equals_tensors(checkpoint):
    assert checkpoint.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(checkpoint.tensors[key], TENSORS[key]) for key in TENSORS)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_read_checkpoint_reads_a_state_dict(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    save_file(TENSORS, path) if suffix == ".safetensors" else torch.save(TENSORS, path)
    assert_equals_tensors(read_weights(path))


def test_read_checkpoint_reads_the_format_before_torch_1_6(tmp_path):
    torch.save(TENSORS, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_equals_tensors(read_weights(tmp_path / "old.pt"))


# What DistributedDataParallel, torch.compile and FSDP make of `visual.proj`.
WRAPPED = {
    "ddp": "module.visual.proj",
    "compile": "_orig_mod.visual.proj",
    "ddp_of_compile": "module._orig_mod.visual.proj",
    "compile_of_ddp": "_orig_mod.module.visual.proj",
    "ddp_twice": "module.module.visual.proj",
    "compiled_tower": "visual._orig_mod.proj",
    "fsdp": "_fsdp_wrapped_module.visual._fsdp_wrapped_module.proj",
    "all_at_once": "module.visual._fsdp_wrapped_module._orig_mod._checkpoint_wrapped_module.proj",
}


@pytest.mark.parametrize("name", WRAPPED.values(), ids=WRAPPED)
def test_read_checkpoint_removes_wrappers(tmp_path, name):
    prefix = name.split("visual.")[0]
    tensors = {name: TENSORS["visual.proj"], f"{prefix}logit_scale": TENSORS["logit_scale"]}
    torch.save({"state_dict": tensors}, tmp_path / "wrapped.pt")
    assert_equals_tensors(read_weights(tmp_path / "wrapped.pt"))


def test_read_checkpoint_refuses_a_tensor_with_and_without_its_wrapper(tmp_path):
    torch.save({"visual._orig_mod.proj": torch.zeros(2), "visual.proj": torch.ones(2)}, tmp_path / "both.pt")
    with pytest.raises(ConversionError, match=r"twice.*\n  visual\._orig_mod\.proj\n  visual\.proj"):
        read_weights(tmp_path / "both.pt")


def test_read_checkpoint_leaves_names_that_end_like_a_wrapper(tmp_path):
    tensors = {"visual.my_orig_mod.weight": torch.zeros(2), "submodule.bias": torch.zeros(2)}
    torch.save(tensors, tmp_path / "weights.pt")
    assert read_weights(tmp_path / "weights.pt").tensors.keys() == tensors.keys()


AVERAGED = {key: tensor + 1 for key, tensor in TENSORS.items()}


# open_clip: `task/checkpoint.py` of 4.x; timm: `load_state_dict` in `models/_helpers.py`.
@pytest.mark.parametrize("entry", ["state_dict_ema", "model_ema"])
def test_read_checkpoint_takes_averaged_weights_on_demand(tmp_path, entry):
    averaged = {f"module._orig_mod.{key}": tensor for key, tensor in AVERAGED.items()}
    torch.save({"state_dict": TENSORS, entry: averaged, "epoch": 3}, tmp_path / "epoch_3.pt")
    checkpoint = read_weights(tmp_path / "epoch_3.pt")
    assert_equals_tensors(checkpoint)
    assert checkpoint.notes == (f"{entry} holds averaged weights, which were left: ema=True takes them",)
    averaged = read_weights(tmp_path / "epoch_3.pt", ema=True)
    assert all(torch.equal(averaged.tensors[key], AVERAGED[key]) for key in TENSORS)
    assert averaged.notes == (f"averaged weights, from {entry}",)


@pytest.mark.parametrize(
    ("content", "found"),
    [({"state_dict": TENSORS, "optimizer": {}}, "state_dict, optimizer"), (TENSORS, "a state dict alone")],
    ids=["training_checkpoint", "state_dict"],
)
def test_read_checkpoint_refuses_ema_where_there_is_none(tmp_path, content, found):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ConversionError, match=f"expected an entry state_dict_ema or model_ema, found {found}.*ema"):
        read_weights(tmp_path / "weights.pt", ema=True)


def test_read_checkpoint_reads_what_torch_makes_of_a_distributed_checkpoint(tmp_path):
    # open_clip 4.x: `save_sharded_checkpoint` in `task/checkpoint.py`, through torch's `dcp_to_torch`.
    torch.save({"model": TENSORS, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}, tmp_path / "one.pt")
    assert_equals_tensors(read_weights(tmp_path / "one.pt"))


def test_read_checkpoint_reads_arrays_of_numpy(tmp_path):
    np.savez(tmp_path / "weights.npz", **{key: tensor.numpy() for key, tensor in TENSORS.items()})
    assert_equals_tensors(read_weights(tmp_path / "weights.npz"))


def test_read_checkpoint_reads_no_objects_of_numpy(tmp_path):
    np.savez(tmp_path / "evil.npz", a=np.array([RunsCode(str(tmp_path / "made"))], dtype=object))
    with pytest.raises(ConversionError, match=r"cannot be read.*allow_pickle=False"):
        read_weights(tmp_path / "evil.npz")
    assert not (tmp_path / "made").exists()


def save_shards(folder: Path, suffix: str, files: dict[str, dict], weight_map: dict[str, str] | None = None) -> Path:
    """Writes files of tensors and their index; returns its path."""
    for name, tensors in files.items():
        save_file(tensors, folder / name) if suffix == ".safetensors" else torch.save(tensors, folder / name)
    if weight_map is None:
        weight_map = {key: name for name, tensors in files.items() for key in tensors}
    index = folder / f"model{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def two_shards(suffix: str) -> dict[str, dict]:
    return {f"model-{n}-of-2{suffix}": {key: TENSORS[key]} for n, key in enumerate(TENSORS, start=1)}


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_read_checkpoint_reads_several_files_as_one(tmp_path, suffix):
    index = save_shards(tmp_path, suffix, two_shards(suffix))
    assert_equals_tensors(read_weights(index))


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "model-3-of-2.bin"}, r"not in its folder:\n  model-3-of-2.bin"),
        ({"a": "../model-1-of-2.bin"}, r"not in its folder:\n  ../model-1-of-2.bin"),
        ({"a": "model-1-of-2.bin"}, r"tensors that its files lack:\n  a \(model-1-of-2.bin\)"),
        (["a"], "is not an index of weights files"),
    ],
    ids=["missing_file", "file_elsewhere", "missing_tensor", "not_a_map"],
)
def test_read_checkpoint_refuses_an_index_that_does_not_fit(tmp_path, weight_map, message):
    (tmp_path / "folder").mkdir()
    save_shards(tmp_path, ".bin", two_shards(".bin"))
    index = save_shards(tmp_path / "folder", ".bin", two_shards(".bin"), weight_map)
    with pytest.raises(ConversionError, match=message):
        read_weights(index)


def test_file_sha256_of_an_index_counts_its_files(tmp_path):
    index = save_shards(tmp_path, ".bin", two_shards(".bin"))
    content = b"".join(path.read_bytes() for path in (index, *sorted(tmp_path.glob("*.bin"))))
    assert file_sha256(index) == hashlib.sha256(content).hexdigest()
    first = tmp_path / "model-1-of-2.bin"
    assert file_sha256(first) == hashlib.sha256(first.read_bytes()).hexdigest()


def test_read_checkpoint_keeps_a_prefix_that_not_every_key_has(tmp_path):
    torch.save({"module.a": torch.zeros(3), "b": torch.zeros(3)}, tmp_path / "weights.pt")
    assert read_weights(tmp_path / "weights.pt").tensors.keys() == {"module.a", "b"}


@pytest.mark.floor
def test_read_checkpoint_reads_training_checkpoints_with_numpy_scalars(tmp_path):
    optimizer = {"lr": np.float64(1e-3), "betas": [np.float32(0.9), 0.98], "step": np.int64(7), "amsgrad": np.bool_(0)}
    checkpoint = {"epoch": np.int32(3), "name": "run-1", "state_dict": TENSORS, "optimizer": optimizer}
    torch.save(checkpoint, tmp_path / "epoch_3.pt")
    with pytest.raises(Exception, match="numpy"):
        torch.load(tmp_path / "epoch_3.pt", weights_only=True)
    read = read_weights(tmp_path / "epoch_3.pt")
    assert_equals_tensors(read)
    assert read.run_name == "run-1"


def test_read_checkpoint_reads_numpy_scalars_under_the_name_of_numpy_1(tmp_path):
    torch.save({"state_dict": TENSORS, "lr": np.float64(0.1)}, tmp_path / "new.pt")
    with ZipFile(tmp_path / "new.pt") as new, ZipFile(tmp_path / "old.pt", "w") as old:
        for name in new.namelist():
            data = new.read(name)
            assert name != "new/data.pkl" or b"numpy._core.multiarray" in data
            old.writestr(name, data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert_equals_tensors(read_weights(tmp_path / "old.pt"))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not list mapped files")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
@pytest.mark.parametrize("sharded", [False, True], ids=["one_file", "shards"])
def test_read_checkpoint_maps_files_instead_of_reading_them(tmp_path, suffix, sharded):
    if sharded:
        path = save_shards(tmp_path, suffix, two_shards(suffix))
    else:
        path = tmp_path / f"weights{suffix}"
        save_file(TENSORS, path) if suffix == ".safetensors" else torch.save(TENSORS, path)
    checkpoint = read_weights(path)
    maps = Path("/proc/self/maps").read_text()
    assert all(str(file) in maps for file in tmp_path.glob(f"*{suffix}"))
    assert_equals_tensors(checkpoint)


def test_read_checkpoint_runs_no_code(tmp_path):
    torch.save({"state_dict": TENSORS, "extra": RunsCode(str(tmp_path / "made"))}, tmp_path / "evil.pt")
    with pytest.raises(ConversionError, match=r"Python object \(.*mkdir\).*save its state dict alone"):
        read_weights(tmp_path / "evil.pt")
    assert not (tmp_path / "made").exists()


CONTENTS = {
    "list": ([1, 2], "holds a list; expected a state dict"),
    "empty": ({}, r"holds keys \[\]; expected a state dict"),
    "empty-state-dict": ({"state_dict": {}}, r"holds keys \[\]"),
    "numbers": ({"epoch": 3, "lr": 0.1}, r"not tensors:\n  epoch: int\n  lr: float"),
    "other-wrapper": ({"weights": TENSORS}, r"not tensors:\n  weights: dict"),
    "numbered-keys": ({1: torch.zeros(3)}, r"holds keys \[1\]"),
}


@pytest.mark.parametrize(("content", "message"), CONTENTS.values(), ids=CONTENTS.keys())
def test_read_checkpoint_refuses_other_contents(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ConversionError, match=message):
        read_weights(tmp_path / "other.pt")


@pytest.mark.parametrize("name", ["damaged.pt", "damaged.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all"], ids=["empty", "text"])
def test_read_checkpoint_refuses_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConversionError, match=rf"{name} cannot be read"):
        read_weights(tmp_path / name)


def test_read_checkpoint_passes_on_a_missing_file(tmp_path):
    with pytest.raises(OSError):
        read_weights(tmp_path / "missing.pt")


def test_what_torch_did_not_write_is_refused_without_its_advice(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"garbage")
    with pytest.raises(ConversionError, match=r"w\.pt cannot be read: it is damaged, or no file of weights") as caught:
        read_weights(tmp_path / "w.pt")
    assert "weights_only" not in str(caught.value)
