"""Tensors that are more than plain arrays of numbers, files that are larger in memory, and weights in other places."""

import warnings

import pytest
import torch

from open_clip_transformers.convert_scripts.common import ConversionError, options_in_messages
from open_clip_transformers.convert_scripts.sources.weights import read_weights


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch calls some of these new
    ODD = {
        "sparse_coo": torch.eye(3).to_sparse(),
        "sparse_csr": torch.eye(3).to_sparse_csr(),
        "meta device": torch.empty(3, device="meta"),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "complex": torch.ones(3, dtype=torch.complex64),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "packed": torch.zeros(3, dtype=torch.uint8).view(torch.float8_e8m0fnu),
        "bytes in a file of": torch.zeros(1, 4).expand(40000**2, 4),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
def test_read_weights_refuses_tensors_that_are_no_plain_arrays(tmp_path, kind):
    torch.save({"visual.proj": torch.ones(3), "positional_embedding": ODD[kind]}, tmp_path / "odd.pt")
    with pytest.raises(ConversionError, match=rf"no?t? plain arrays of numbers:\n  positional_embedding: .*{kind}"):
        read_weights(tmp_path / "odd.pt")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float64], ids=str)
def test_read_weights_takes_every_dtype_of_floats(tmp_path, dtype):
    torch.save({"a": torch.ones(3).to(dtype), "b": torch.ones(1, 2).expand(2, 2)}, tmp_path / "weights.pt")
    assert read_weights(tmp_path / "weights.pt").tensors["a"].dtype == dtype


@pytest.mark.parametrize(
    ("content", "places"),
    [
        ({"module": {"a": torch.ones(1)}}, r"\['module'\]"),
        ({"epoch": 3, "net": {"model": {"a": torch.ones(1)}}}, r"\['net'\]\['model'\]"),
        ({"state_dict": {"module": {"a": torch.ones(1)}}}, r"\['state_dict'\]\['module'\]"),
        ({"teacher": {"a": torch.ones(1)}, "student": {"a": torch.ones(1)}}, r"\['teacher'\] and under \['student'\]"),
    ],
    ids=["deepspeed", "nested", "below_state_dict", "two"],
)
def test_read_weights_says_under_which_entry_they_lie(tmp_path, content, places):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ConversionError, match=rf"Weights lie under {places}\. Save those that you want alone"):
        read_weights(tmp_path / "weights.pt")


def test_notes_name_options_on_the_command_line(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1)}, "model_ema": {}}, tmp_path / "weights.pt")
    with options_in_messages():
        assert read_weights(tmp_path / "weights.pt").notes[0].endswith("--ema takes them")
    assert read_weights(tmp_path / "weights.pt").notes[0].endswith("ema=True takes them")
