"""Reading open_clip weights files (open_clip: `load_state_dict` in `factory.py`), without running code from them."""

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from .errors import ConversionError, listing


# Prefixes that DistributedDataParallel and torch.compile put before every key.
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a weights file.

    Args:
        tensors: open_clip's state dict; the tensors are views of the memory-mapped file where its format allows.
        run_name: name of the training run that wrote it, where it says so.
    """

    tensors: dict[str, torch.Tensor]
    run_name: str | None = None


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a `.safetensors` file, or a file of `torch.save`: a state dict or a training checkpoint around one.

    Raises:
        ConversionError: the file cannot be read, holds more than tensors, or no state dict.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _torch_load(path)
    except (OSError, ConversionError):
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise ConversionError(f"{path} cannot be read: {_reason(error)}") from error
    run_name = None
    if isinstance(content, dict) and "state_dict" in content:
        run_name = content.get("name") if isinstance(content.get("name"), str) else None
        content = content["state_dict"]
    if not isinstance(content, dict) or not content or not all(isinstance(key, str) for key in content):
        kind = f"a {type(content).__name__}" if not isinstance(content, dict) else f"keys {list(content)[:10]}"
        raise ConversionError(
            f'{path} holds {kind}; expected a state dict, or a checkpoint with one under "state_dict".'
        )
    others = [
        f"{key}: {type(value).__name__}" for key, value in content.items() if not isinstance(value, torch.Tensor)
    ]
    if others:
        raise ConversionError(
            f'{path} is not a state dict, nor a checkpoint with one under "state_dict": these entries are not '
            f"tensors:{listing(others)}"
        )
    return Checkpoint(_unwrapped(content), run_name)


def _torch_load(path: Path):
    if _is_torchscript(path):
        raise ConversionError(
            f"{path} is a TorchScript archive, which holds code and is not supported yet. Extract its state dict "
            "where you trust the file, with `torch.save(torch.jit.load(FILE).state_dict(), ...)`, and convert that."
        )
    # Training checkpoints keep learning rates as numpy scalars, which weights_only=True refuses by default.
    with torch.serialization.safe_globals(_numpy_scalars()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6


def _numpy_scalars() -> list:
    """What pickled numpy numbers are made of, under the names that numpy 1 and numpy 2 write."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = (np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.float16, np.float32, np.float64)
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [np.dtype, *{type(np.dtype(kind)) for kind in kinds}, *((scalar, name) for name in names)]


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _reason(error: Exception) -> str:
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if refused:
        return (
            f"it holds a Python object ({refused[1]}), and loading it would run code. If you trust the file, save its "
            "state dict alone with `torch.save(state_dict, ...)` and convert that."
        )
    return f"{type(error).__name__}: {error}"


def _unwrapped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    while prefix := next((p for p in WRAPPER_PREFIXES if all(key.startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors
