"""Files written piece by piece: what safetensors reads, aligned, and little memory."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.write import safetensors as module
from open_clip_transformers.convert_scripts.write.safetensors import (
    CACHE_LINE,
    DTYPE_NAMES,
    byte_blocks,
    same_bytes,
    write_safetensors,
)


def layout_of(tensors, dtype=None):
    return {name: torch.empty_like(t, dtype=dtype or t.dtype, device="meta") for name, t in tensors.items()}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_SIZE", 64)


def random_tensor(shape, dtype):
    values = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8)
    return values.view(dtype).squeeze(-1) if dtype != torch.bool else values[..., 0] > 127


def mixed():
    dtypes = [*DTYPE_NAMES, *DTYPE_NAMES]
    return {f"{i % 7}.{dtype}": random_tensor((i + 1, 5, 2), dtype) for i, dtype in enumerate(dtypes)}


TENSORS = {
    "dtypes": mixed(),
    "scalars": {"b": torch.tensor(2.5), "a": torch.tensor(3), "c": torch.zeros(0, 3)},
    "names": {"ü.\n\\\"'/": torch.ones(3), "z" * 200: torch.ones(2), "A": torch.ones(1), "ａ𝄞": torch.ones(1)},
    "none": {},
}


@pytest.mark.parametrize("tensors", TENSORS.values(), ids=TENSORS.keys())
def test_safetensors_reads_what_was_written(tmp_path, small_blocks, tensors):
    write_safetensors(tmp_path / "written", layout_of(tensors), reversed(tensors.items()))
    with safe_open(tmp_path / "written", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            written = file.get_tensor(name)
            assert written.dtype == tensor.dtype
            assert same_bytes(written, tensor)


VIEWS = {
    "transposed": torch.randn(23, 41).t(),
    "slice": torch.randn(40, 6)[3:37:2, 1:5],
    "channels-last": torch.randn(9, 3, 5, 7).contiguous(memory_format=torch.channels_last),
    "expanded": torch.randn(1, 19).expand(11, 19),
    "chunk": torch.randn(33, 7).chunk(3)[1],
    "parameter": torch.nn.Parameter(torch.randn(5, 40)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_write_safetensors_casts_and_packs(tmp_path, small_blocks, view, dtype):
    write_safetensors(tmp_path / "written", layout_of({"x": view}, dtype), [("x", view)])
    written = load_file(tmp_path / "written")["x"]
    assert written.dtype == dtype
    assert torch.equal(written, view.detach().to(dtype))


def test_byte_blocks_of_contiguous_tensors_are_views():
    tensor = torch.randn(3, 4)
    (block,) = byte_blocks(tensor, torch.float32)
    assert block.ctypes.data == tensor.data_ptr()


def test_byte_blocks_are_small(small_blocks):
    for tensor in (torch.randn(1, 1000), torch.randn(7, 100).t(), torch.randn(1000)):
        blocks = list(byte_blocks(tensor, torch.bfloat16))
        assert len(blocks) > 10
        assert max(map(len, blocks)) <= 64
        assert np.concatenate(blocks).tobytes() == tensor.bfloat16().contiguous().view(torch.uint8).numpy().tobytes()


def test_write_safetensors_refuses_missing_tensors(tmp_path):
    with pytest.raises(ConversionError, match="no values:\n  b"):
        write_safetensors(tmp_path / "x", layout_of({"a": torch.ones(1), "b": torch.ones(1)}), [("a", torch.ones(1))])


def test_write_safetensors_refuses_other_shapes(tmp_path):
    with pytest.raises(ConversionError, match=r"a has shape \(2, 3\), not \(3, 2\)"):
        write_safetensors(tmp_path / "x", layout_of({"a": torch.ones(3, 2)}), [("a", torch.ones(2, 3))])


def places_of(path):
    """name -> the tensor's first byte in the file, in their order."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__")
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items()}


@pytest.mark.parametrize("count", range(3))
def test_write_safetensors_puts_whole_cache_lines_first(tmp_path, count):
    whole = {f"{'w' * (count + 1)}.weight": torch.ones(32, 16), "half": torch.ones(64, dtype=torch.float16)}
    tensors = {"logit_scale": torch.ones(()), "bias": torch.ones(3), **whole}
    write_safetensors(tmp_path / "x", layout_of(tensors), tensors.items())
    places = places_of(tmp_path / "x")
    assert [name for name, place in places.items() if place % CACHE_LINE == 0][:2] == list(whole)
    assert list(places)[2:] == ["bias", "logit_scale"]


def test_write_safetensors_aligns_numbers(tmp_path):
    tensors = {"a": torch.ones(3, dtype=torch.float16), "b": torch.ones(3), "c": torch.ones(1, dtype=torch.int64)}
    write_safetensors(tmp_path / "x", layout_of(tensors), tensors.items())
    assert list(places_of(tmp_path / "x")) == ["c", "b", "a"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_same_bytes_compares_what_was_written(small_blocks, view, dtype):
    written = view.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
    assert same_bytes(written, view)
    written.view(-1)[-1] += 1
    assert not same_bytes(written, view)


def test_same_bytes_is_exact():
    nan = torch.tensor([1.0, float("nan")])
    assert same_bytes(nan.clone(), nan)
    assert not same_bytes(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bytes(torch.ones(2, 3), torch.ones(3, 2))


def test_one_thread_is_given_back(tmp_path, monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    with pytest.raises(ConversionError):
        write_safetensors(tmp_path / "x", layout_of({"a": torch.ones(1)}), [])
    assert threads == [1, 7]
