"""Weights files, found and read without running code from them (open_clip: `_find_checkpoint_in_dir` and
`load_state_dict` in `factory.py`)."""

import hashlib
import math
import pickle
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from ..common import ConversionError, argument, check_no_pointer, listing, read_json
from .torchscript import is_torchscript, read_torchscript


WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".npz")
INDEX_SUFFIX = ".index.json"
CONFIG_FILE = "open_clip_config.json"
# open_clip's order of preference.
WEIGHTS_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
INDEX_FILES = tuple(name + INDEX_SUFFIX for name in WEIGHTS_FILES)

# Where checkpoints keep weights: `state_dict` in open_clip's and timm's, `model` where a distributed checkpoint of
# open_clip was made one file; and the averaged weights of open_clip (`task/checkpoint.py` of 4.x) and timm.
ENTRIES = ("state_dict", "model")
EMA_ENTRIES = ("state_dict_ema", "model_ema")

# Dtypes of floats whose tensors hold a number in each element.
FLOATS = {
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
}

# open_clip's image settings that a training checkpoint may state.
_IMAGE_SETTINGS = ("mean", "std", "interpolation", "resize_mode")

# DistributedDataParallel puts this before every key, and torch.compile, FSDP and its activation checkpointing
# wherever they wrap a module.
_WRAPPER_PREFIX = "module."
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


@dataclass(frozen=True)
class Weights:
    """Contents of a weights file.

    Args:
        tensors: open_clip's state dict; the tensors are views of the memory-mapped file where its format allows.
        run_name: name of the training run that wrote it, where it says so.
        preprocess_cfg: open_clip's image settings that it states.
        notes: what was found beside the weights, for the report.
    """

    tensors: Mapping[str, torch.Tensor]
    run_name: str | None = None
    preprocess_cfg: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_weights(path: Path, *, ema: bool = False) -> Weights:
    """Read the weights of a file.

    Args:
        path: a `.safetensors` file; a file of `torch.save`, a state dict or a training checkpoint around one; a
            TorchScript archive; an `.npz` file of arrays; or the index of several such files
            (`model.safetensors.index.json`), which become one state dict.
        ema: take the exponential moving average of the weights that a training checkpoint keeps beside them.

    Raises:
        ConversionError: the file cannot be read, holds more than tensors, no state dict, or no moving average, or
            tensors that are more than plain arrays of values.
        OSError: there is no such file.
    """
    if path.name.endswith(INDEX_SUFFIX):
        content = _read_shards(path)
    else:
        content = _read_file(path)
    run_name: str | None = None
    preprocess_cfg: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    entry = _entry(path, content, ema)
    if entry is not None:
        preprocess_cfg = _image_settings(content)
        if preprocess_cfg:
            notes += (f"image settings of the checkpoint: {', '.join(f'{k} {v}' for k, v in preprocess_cfg.items())}",)
        run_name = content.get("name") if isinstance(content.get("name"), str) else None
        others = [key for key in EMA_ENTRIES if not ema and key in content]
        notes += tuple(
            f"{key} holds averaged weights, which were left: {argument('ema', True)} takes them" for key in others
        )
        notes += (f"averaged weights, from {entry}",) if ema else ()
        content = content[entry]
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
            f"tensors:{listing(others)}{_other_entries(path, content, '' if entry is None else f'[{entry!r}]')}"
        )
    _check_tensors(path, content)
    return Weights(_unwrapped(path, content), run_name, preprocess_cfg, notes)


def find_weights(folder: Path) -> Path:
    """Find the weights file of a folder, in open_clip's order of preference.

    Raises:
        ConversionError: there is none, or several and none of open_clip's usual names.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS_SUFFIXES and path.is_file())
    preferred = [folder / name for name in WEIGHTS_FILES + INDEX_FILES if (folder / name).is_file()]
    if preferred:
        return preferred[0]
    if list(folder.glob("*.distcp")):
        raise ConversionError(
            f"{folder} is a distributed checkpoint, whose index is a pickle. Where you trust it, make it one file "
            f"with `python -m torch.distributed.checkpoint.format_utils dcp_to_torch {quote(str(folder))} FILE`, and "
            "convert that."
        )
    if len(found) == 1:
        return found[0]
    if found:
        raise ConversionError(
            f"{folder} holds several weights files, none with one of open_clip's "
            f"names:{listing(p.name for p in found)}\nGive one of them as the source, with "
            f"{argument('config', str(folder / CONFIG_FILE))}."
        )
    raise ConversionError(
        f"{folder} holds no weights: expected {', '.join(WEIGHTS_FILES[:3])} or another {WEIGHTS_SUFFIXES}."
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a weights file in hexadecimal; of an index, that of itself and its files in order, end to end."""
    digest = hashlib.sha256()
    for part in (path, *(_shards_of(path) if path.name.endswith(INDEX_SUFFIX) else ())):
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _entry(path: Path, content, ema: bool) -> str | None:
    """The entry of a checkpoint that holds the weights asked for; `None` for a state dict."""
    entries = [key for key, value in content.items() if isinstance(value, dict)] if isinstance(content, dict) else []
    found = next((key for key in (EMA_ENTRIES if ema else ENTRIES) if key in entries), None)
    if ema and found is None:
        raise ConversionError(
            f"{path} holds no averaged weights: expected an entry {' or '.join(EMA_ENTRIES)}, found "
            f"{', '.join(map(str, entries)) or 'a state dict alone'}. Leave out {argument('ema')}."
        )
    return found


def _image_settings(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's image settings that a training checkpoint states, itself or in its `args` or `preprocess_cfg`.

    open_clip's training calls them `image_mean` and so on.
    """
    parts = (checkpoint.get("args"), checkpoint.get("preprocess_cfg"))
    args, cfg = (part if isinstance(part, dict) else {} for part in parts)
    stated = {key: checkpoint.get(f"image_{key}", args.get(f"image_{key}")) for key in _IMAGE_SETTINGS}
    stated |= {key: checkpoint[key] for key in ("mean", "std") if key in checkpoint}
    stated |= {key: cfg[key] for key in _IMAGE_SETTINGS if key in cfg}
    return {
        key: value.tolist() if isinstance(value, torch.Tensor) else value
        for key, value in stated.items()
        if value is not None
    }


def _other_entries(path: Path, content: Mapping[str, Any], place: str) -> str:
    """The next step where weights lie under other entries of a file, below `place`: to save those of one alone."""
    places = {f"{place}[{key!r}]": value for key, value in content.items() if isinstance(value, dict)}
    for place, value in list(places.items()):
        places |= {f"{place}[{key!r}]": inner for key, inner in value.items() if isinstance(inner, dict)}
    found = {place: value for place, value in places.items() if _is_state_dict(value)}
    if not found:
        return ""
    place = next(iter(found))
    return (
        f"\nWeights lie under {' and under '.join(found)}. Save those that you want alone, such as with "
        f"`torch.save(torch.load({str(path)!r}, weights_only=True){place}, FILE)`, and convert that."
    )


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())
    )


def _shards_of(index: Path) -> list[Path]:
    """The files that an index names, in order.

    Raises:
        ConversionError: the index is damaged, or a file of it is not beside it.
    """
    names = sorted({*_weight_map(index).values()})
    missing = [name for name in names if Path(name).name != name or not index.with_name(name).is_file()]
    if missing:
        raise ConversionError(f"{index} names files that are not in its folder:{listing(missing)}")
    return [index.with_name(name) for name in names]


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) and name for name in weight_map.values()):
        raise ConversionError(
            f"{index} is not an index of weights files: it has no weight_map of keys and file names."
        )
    return weight_map


def _check_tensors(path: Path, tensors: Mapping[str, torch.Tensor]):
    """Raise `ConversionError` for tensors that are not plain arrays of values, or larger than their file."""
    # The values of an expanded tensor lie in the file once, and in memory as often as they are read.
    files = _shards_of(path) if path.name.endswith(INDEX_SUFFIX) else [path]
    compressed = any(file.suffix == ".npz" for file in files)
    largest = math.inf if compressed else sum(file.stat().st_size for file in files)
    wrong = [f"{key}: {kind}" for key, tensor in tensors.items() if (kind := _unusual_kind(tensor, largest))]
    if wrong:
        raise ConversionError(
            f"{path} holds tensors that are not plain arrays of numbers:{listing(wrong)}\n"
            "Save the state dict with dense real tensors on the CPU (`.to_dense()`, `.dequantize()`, "
            "`.contiguous()`), and convert that."
        )


def _unusual_kind(tensor: torch.Tensor, largest: float) -> str | None:
    """The reason why a tensor cannot be converted; `None` for a plain one."""
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    if tensor.is_meta:
        return "on the meta device, without values"
    if tensor.is_quantized:
        return f"quantized, {tensor.dtype}"
    if tensor.is_complex():
        return f"complex, {tensor.dtype}"
    if tensor.is_floating_point() and tensor.dtype not in FLOATS:
        return f"packed, {tensor.dtype}"
    if tensor.nbytes > largest:
        return f"{tuple(tensor.shape)}, {tensor.nbytes:,} bytes in a file of {largest:,}"
    return None


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    shards = {path.name: _read_file(path) for path in _shards_of(index)}
    weight_map = _weight_map(index)
    missing = [f"{key} ({name})" for key, name in weight_map.items() if key not in shards[name]]
    if missing:
        raise ConversionError(f"{index} names tensors that its files lack:{listing(missing)}")
    return {key: shards[name][key] for key, name in weight_map.items()}


def _read_file(path: Path):
    # Also says of a file that may not be read that it may not; safetensors would say that there is none.
    check_no_pointer(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        return read_torchscript(path) if is_torchscript(path) else _torch_load(path)
    except (OSError, ConversionError):
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise ConversionError(f"{path} cannot be read: {_reason(error)}") from error


def _torch_load(path: Path):
    # Training checkpoints keep learning rates as numpy scalars, which weights_only=True refuses by default.
    with torch.serialization.safe_globals(_numpy_scalars()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6


def _numpy_scalars() -> list:
    """Classes and functions in pickled numpy numbers, under the names that numpy 1 and numpy 2 write."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = (np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.float16, np.float32, np.float64)
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [np.dtype, *{type(np.dtype(kind)) for kind in kinds}, *((scalar, name) for name in names)]


def _reason(error: Exception) -> str:
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if refused:
        return (
            f"it holds a Python object ({refused[1]}), and loading it would run code. If you trust the file, save its "
            "state dict alone with `torch.save(state_dict, ...)` and convert that."
        )
    if isinstance(error, pickle.UnpicklingError):  # torch's advice is to load without weights_only
        detail = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
        return f"it is damaged, or no file of weights that torch wrote ({detail[1] if detail else 'UnpicklingError'})."
    return f"{type(error).__name__}: {error}"


def _unwrapped(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under the names of the module that was wrapped."""
    names = {key: _WRAPPERS.sub("", key) for key in tensors}
    while all(name.startswith(_WRAPPER_PREFIX) for name in names.values()):
        names = {key: name.removeprefix(_WRAPPER_PREFIX) for key, name in names.items()}
    twice = {name for name, count in Counter(names.values()).items() if count > 1}
    if twice:
        both = [key for key, name in names.items() if name in twice]
        raise ConversionError(f"{path} holds these tensors twice, with and without wrappers:{listing(both)}")
    return {names[key]: tensor for key, tensor in tensors.items()}
