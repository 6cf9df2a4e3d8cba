"""Fused models hold their weights once: what lies in a file goes back to it, and what lies elsewhere stays."""

import copy
from mmap import PAGESIZE
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import main_outputs, tiny_siglip_vit_config

from open_clip_transformers.modeling import linear_kernels
from open_clip_transformers.modeling.mapped_memory import PAGEMAP, give_back
from open_clip_transformers.modeling.modeling_linear import Linear
from open_clip_transformers.modeling.modeling_siglip_vit import SiglipVitModel


pytestmark = pytest.mark.skipif(not PAGEMAP.exists(), reason="the system does not say what its pages hold")

MEGABYTE = 2**20


def bytes_in_memory(path: Path) -> int:
    """Bytes of a mapped file that this process holds."""
    total, is_of_file = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            is_of_file = line.endswith(str(path))
        elif name == "Rss:" and is_of_file:
            total += int(values[0]) * 1024
    return total


@pytest.fixture
def mapped(tmp_path) -> tuple[Path, torch.Tensor]:
    """A file, and the tensor of a megabyte that it holds behind an odd number of bytes."""
    path = tmp_path / "model.safetensors"
    torch.manual_seed(0)
    save_file({"first": torch.randn(1001), "weight": torch.randn(512, 512)}, path)
    weight = load_file(path)["weight"]
    weight.sum()
    assert bytes_in_memory(path) >= MEGABYTE
    return path, weight


def test_memory_of_a_file_is_given_back_and_read_again(mapped):
    path, weight = mapped
    expected = weight.clone()
    give_back(weight)
    assert bytes_in_memory(path) < MEGABYTE / 4
    assert torch.equal(weight, expected)
    assert bytes_in_memory(path) >= MEGABYTE


@pytest.mark.parametrize("place", [0, 3, 512 * 256, 512 * 512 - 1])
def test_what_was_written_to_is_kept(mapped, place):
    weight = mapped[1]
    weight.view(-1)[place] = 7.0
    expected = weight.clone()
    give_back(weight)
    assert torch.equal(weight, expected)


@pytest.mark.parametrize("size", [0, 1, 1000, 512 * 512])
def test_memory_of_no_file_is_kept(size):
    weight = torch.full((size,), 7.0)
    give_back(weight)
    assert torch.equal(weight, torch.full((size,), 7.0))


def test_memory_that_a_view_skips_is_kept(mapped):
    path, weight = mapped
    give_back(weight[:, :256])
    assert bytes_in_memory(path) >= MEGABYTE


@pytest.mark.parametrize("entries", [b"", bytes(8), bytes(8 * 1024)], ids=["none", "few", "absent"])
def test_pages_of_which_nothing_is_known_are_kept(mapped, entries, monkeypatch, tmp_path):
    (tmp_path / "pagemap").write_bytes(b"")
    with (tmp_path / "pagemap").open("r+b") as pagemap:
        # As sparse as the addresses are high.
        pagemap.seek(-(-mapped[1].data_ptr() // PAGESIZE) * 8)
        pagemap.write(entries)
    monkeypatch.setattr("open_clip_transformers.modeling.mapped_memory.PAGEMAP", tmp_path / "pagemap")
    give_back(mapped[1])
    assert bytes_in_memory(mapped[0]) >= MEGABYTE


def test_system_that_says_nothing_of_its_pages_keeps_them(mapped, monkeypatch):
    path, weight = mapped
    monkeypatch.setattr("open_clip_transformers.modeling.mapped_memory.PAGEMAP", path.parent / "pagemap")
    give_back(weight)
    assert bytes_in_memory(path) >= MEGABYTE


@pytest.mark.skipif(not linear_kernels.ONEDNN_DTYPES, reason="fusing on this processor has no use")
@torch.no_grad()
def test_fused_model_leaves_its_weights_in_the_file(tmp_path):
    config = tiny_siglip_vit_config(hidden_size=256, intermediate_size=1024, num_attention_heads=4)
    SiglipVitModel(config).save_pretrained(tmp_path)
    path, pixel_values = tmp_path / "model.safetensors", torch.rand(4, 3, 24, 24)

    model = SiglipVitModel.from_pretrained(tmp_path)
    # A private copy of the page that it is written to.
    next(module for module in model.modules() if isinstance(module, Linear)).weight[0] = 1.0
    expected, weights = main_outputs(model(pixel_values)), copy.deepcopy(model.state_dict())
    before = bytes_in_memory(path)
    outputs = main_outputs(model.fuse()(pixel_values))

    assert bytes_in_memory(path) < before / 2
    torch.testing.assert_close(outputs, expected, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(dict(model.state_dict()), dict(weights), atol=0, rtol=0)
    torch.testing.assert_close(main_outputs(model.unfuse()(pixel_values)), expected, atol=0, rtol=0)
