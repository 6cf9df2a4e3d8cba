"""Reading weights files: every format and wrapper, and nothing that runs code."""

import os
import warnings
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from open_clip_transformers.convert_scripts.errors import ConversionError
from open_clip_transformers.convert_scripts.weights import read_checkpoint


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
    assert_equals_tensors(read_checkpoint(path))


def test_read_checkpoint_reads_the_format_before_torch_1_6(tmp_path):
    torch.save(TENSORS, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_equals_tensors(read_checkpoint(tmp_path / "old.pt"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_read_checkpoint_removes_wrappers(tmp_path, prefix):
    torch.save({prefix + key: tensor for key, tensor in TENSORS.items()}, tmp_path / "wrapped.pt")
    assert_equals_tensors(read_checkpoint(tmp_path / "wrapped.pt"))


def test_read_checkpoint_keeps_a_prefix_that_not_every_key_has(tmp_path):
    torch.save({"module.a": torch.zeros(3), "b": torch.zeros(3)}, tmp_path / "weights.pt")
    assert read_checkpoint(tmp_path / "weights.pt").tensors.keys() == {"module.a", "b"}


@pytest.mark.floor
def test_read_checkpoint_reads_training_checkpoints_with_numpy_scalars(tmp_path):
    optimizer = {"lr": np.float64(1e-3), "betas": [np.float32(0.9), 0.98], "step": np.int64(7), "amsgrad": np.bool_(0)}
    checkpoint = {"epoch": np.int32(3), "name": "run-1", "state_dict": TENSORS, "optimizer": optimizer}
    torch.save(checkpoint, tmp_path / "epoch_3.pt")
    with pytest.raises(Exception, match="numpy"):
        torch.load(tmp_path / "epoch_3.pt", weights_only=True)
    read = read_checkpoint(tmp_path / "epoch_3.pt")
    assert_equals_tensors(read)
    assert read.run_name == "run-1"


def test_read_checkpoint_reads_numpy_scalars_under_the_name_of_numpy_1(tmp_path):
    torch.save({"state_dict": TENSORS, "lr": np.float64(0.1)}, tmp_path / "new.pt")
    with ZipFile(tmp_path / "new.pt") as new, ZipFile(tmp_path / "old.pt", "w") as old:
        for name in new.namelist():
            data = new.read(name)
            assert name != "new/data.pkl" or b"numpy._core.multiarray" in data
            old.writestr(name, data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert_equals_tensors(read_checkpoint(tmp_path / "old.pt"))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not list mapped files")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_read_checkpoint_maps_the_file_instead_of_reading_it(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    save_file(TENSORS, path) if suffix == ".safetensors" else torch.save(TENSORS, path)
    checkpoint = read_checkpoint(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    assert_equals_tensors(checkpoint)


def test_read_checkpoint_runs_no_code(tmp_path):
    torch.save({"state_dict": TENSORS, "extra": RunsCode(str(tmp_path / "made"))}, tmp_path / "evil.pt")
    with pytest.raises(ConversionError, match=r"Python object \(.*mkdir\).*save its state dict alone"):
        read_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "made").exists()


CONTENTS = {
    "list": ([1, 2], "holds a list; expected a state dict"),
    "empty": ({}, r"holds keys \[\]; expected a state dict"),
    "empty-state-dict": ({"state_dict": {}}, r"holds keys \[\]"),
    "numbers": ({"epoch": 3, "lr": 0.1}, r"not tensors:\n  epoch: int\n  lr: float"),
    "other-wrapper": ({"model": TENSORS}, r"not tensors:\n  model: dict"),
    "numbered-keys": ({1: torch.zeros(3)}, r"holds keys \[1\]"),
}


@pytest.mark.parametrize(("content", "message"), CONTENTS.values(), ids=CONTENTS.keys())
def test_read_checkpoint_refuses_other_contents(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ConversionError, match=message):
        read_checkpoint(tmp_path / "other.pt")


@pytest.mark.parametrize("name", ["damaged.pt", "damaged.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all"], ids=["empty", "text"])
def test_read_checkpoint_refuses_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConversionError, match=rf"{name} cannot be read"):
        read_checkpoint(tmp_path / name)


def test_read_checkpoint_refuses_torchscript_archives(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(3, 5)), tmp_path / "archive.pt")
    with pytest.raises(ConversionError, match=r"TorchScript archive.*not supported yet"):
        read_checkpoint(tmp_path / "archive.pt")


def test_read_checkpoint_passes_on_a_missing_file(tmp_path):
    with pytest.raises(OSError):
        read_checkpoint(tmp_path / "missing.pt")
