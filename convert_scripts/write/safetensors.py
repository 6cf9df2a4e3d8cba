"""One safetensors file written piece by piece, for files larger than memory.

`safetensors.torch.save_file` takes tensors that are ready to be written, all at once: the casts and transposes of a
whole file would lie in memory. The format is a length, a JSON header and the tensors' bytes
(https://huggingface.co/docs/safetensors).

Models read their weights where they lie in the file. `save_file` orders them by name, and behind a tensor of 4 bytes,
such as `logit_scale`, all others lie across the cache's lines: on an AMD processor captions take 1 to 6 % longer.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..common import ConversionError, argument, dtype_name, listing


# The format's names, wide numbers first.
DTYPE_NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ORDER = list(DTYPE_NAMES)
CACHE_LINE = 64
# Dtype -> one with larger numbers that models are computed in.
_WIDER = {torch.float16: "bfloat16", torch.bfloat16: "float32"}
# Bytes that are cast, transposed or compared at once: few enough for a processor's cache.
BLOCK_SIZE = 4 * 2**20


def write_safetensors(path: Path, layout: Mapping[str, torch.Tensor], tensors: Iterable[tuple[str, torch.Tensor]]):
    """Write a safetensors file, its tensors at the start of a cache line as far as their sizes let them.

    `BLOCK_SIZE` bytes at a time are in memory beside the tensors given.

    Args:
        path: the new file.
        layout: name -> a tensor of the dtype and shape to write, usually on the meta device.
        tensors: the same names with their values, in any order; cast to the dtype of `layout`.

    Raises:
        ConversionError: names are missing, a value has another shape than in `layout`, or one that is too large for
            the dtype there.
    """
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in sorted(layout.items(), key=_place):
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # The length itself takes 8 bytes.
    text += b" " * (-(8 + len(text)) % CACHE_LINE)
    start = struct.pack("<Q", len(text)) + text
    missing = set(layout)
    with path.open("wb") as file, one_thread():
        file.write(start)
        for name, tensor in tensors:
            if tensor.shape != layout[name].shape:
                raise ConversionError(f"{name} has shape {tuple(tensor.shape)}, not {tuple(layout[name].shape)}.")
            file.seek(len(start) + header[name]["data_offsets"][0])
            for block in byte_blocks(tensor, layout[name].dtype):
                if tensor.dtype != layout[name].dtype and not _is_finite(block, layout[name].dtype):
                    _check_range(name, tensor, layout[name].dtype)
                file.write(block.data)
            missing.discard(name)
    if missing:
        raise ConversionError(f"These tensors have no values:{listing(sorted(missing))}")


def _is_finite(block: np.ndarray, dtype: torch.dtype) -> bool:
    return all_finite(torch.from_numpy(block).view(dtype))


def all_finite(values: torch.Tensor) -> bool:
    """Whether all of a tensor's numbers are finite."""
    if not values.is_floating_point():
        return True
    # The sum of finite numbers is usually finite, and costs less than a look at each.
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def _check_range(name: str, tensor: torch.Tensor, dtype: torch.dtype):
    """Raise `ConversionError` where finite numbers of a tensor are not finite in `dtype`."""
    finite = tensor.double()[tensor.double().isfinite()]
    if not finite.to(dtype).isfinite().all():
        raise ConversionError(
            f"{name} holds {finite.abs().max().item():g}, and {dtype_name(dtype)} ends at {torch.finfo(dtype).max:g}: "
            + (
                f"write {argument('dtype', _WIDER[dtype])} instead."
                if dtype in _WIDER
                else "the checkpoint is damaged."
            )
        )


def _place(item: tuple[str, torch.Tensor]) -> tuple[bool, int, str]:
    """Sort key of tensors: whole lines of the cache first, then wide numbers first, so that all are aligned."""
    name, tensor = item
    return tensor.nbytes % CACHE_LINE != 0, _ORDER.index(tensor.dtype), name


def byte_blocks(tensor: torch.Tensor, dtype: torch.dtype) -> Iterator[np.ndarray]:
    """The bytes of a tensor on the CPU as `dtype`, in the order of its elements: 1-D uint8 arrays, views if possible.

    The arrays have at most `BLOCK_SIZE` bytes, but where one row of a tensor that is not contiguous has more.
    """
    tensor = tensor.detach()
    if tensor.is_contiguous():
        tensor = tensor.view(-1)
    row_size = tensor[:1].numel() * dtype.itemsize
    for block in tensor.split(max(1, BLOCK_SIZE // max(1, row_size))):
        yield block.to(dtype).contiguous().view(-1).view(torch.uint8).numpy()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch cast and copy in one thread, which waits for memory and disks as it is.

    More of them would wait for each other wherever something else, such as the hash of the source, has a core.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def same_bytes(written: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Whether a contiguous tensor holds `tensor`, cast to its dtype, bit for bit; also NaN equals itself."""
    if written.shape != tensor.shape:
        return False
    content, start = written.view(-1).view(torch.uint8).numpy(), 0
    for block in byte_blocks(tensor, written.dtype):
        if not np.array_equal(content[start : start + len(block)], block):
            return False
        start += len(block)
    return True
