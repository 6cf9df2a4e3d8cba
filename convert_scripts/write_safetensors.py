"""One safetensors file written tensor by tensor; `safetensors.torch.save_file` needs all of them in memory at once."""

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from .errors import ConversionError, listing


# The format's names (https://huggingface.co/docs/safetensors).
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8


def write_safetensors(path: Path, layout: Mapping[str, torch.Tensor], tensors: Iterable[tuple[str, torch.Tensor]]):
    """Writes a safetensors file; one tensor at a time is in memory.

    Args:
        path: the new file.
        layout: name -> a tensor of the dtype and shape to write, usually on the meta device.
        tensors: the same names with their values, in any order; cast to the dtype of `layout`.

    Raises:
        ConversionError: names are missing, or a value has another shape than in `layout`.
    """
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    # Wide numbers first, so that every tensor is aligned where the file is mapped.
    for name, tensor in sorted(layout.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        end = offset + tensor.numel() * tensor.dtype.itemsize
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    missing = set(layout)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors:
            if tensor.shape != layout[name].shape:
                raise ConversionError(f"{name} has shape {tuple(tensor.shape)}, not {tuple(layout[name].shape)}.")
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            content = tensor.detach().cpu().to(layout[name].dtype).contiguous().reshape(-1).view(torch.uint8)
            file.write(content.numpy())
            missing.discard(name)
    if missing:
        raise ConversionError(f"These tensors have no values:{listing(sorted(missing))}")
