"""State dicts of TorchScript archives, such as OpenAI published, without executing or compiling their code.

An archive is a zip file of `data.pkl`, a pickle of the module's attributes; of `data/`, the bytes of its tensors; and
of `code/`, the source of its classes, of which only the lists of parameters and buffers are read here.
"""

import ast
import io
import mmap
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import torch

from ..common import ConversionError


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_CLASS = re.compile(r"^class (\w+)\(Module\):\s+__parameters__ = (\[.*?\])\s+__buffers__ = (\[.*?\])", re.M | re.S)


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of `torch.jit.save`."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, torch.Tensor]:
    """Read parameters and buffers of a TorchScript archive by their paths, as in `state_dict()` of the loaded module.

    The tensors are views of the mapped file.

    Raises:
        ConversionError: the archive holds something else than modules, tensors and plain values.
    """
    with zipfile.ZipFile(path) as archive:
        (pickled,) = [name for name in archive.namelist() if re.fullmatch("[^/]+/data.pkl", name)]
        records = _Records(path, archive, pickled.removesuffix("data.pkl"))
        module = _Unpickler(path, io.BytesIO(archive.read(pickled)), records).load()
        registered = dict(_registered_names(archive))
    return dict(_state_dict(module, registered))


class _Records:
    """The records of an archive's tensors, which are not compressed, as views of the mapped file."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str):
        self._archive, self._root = archive, root
        with path.open("rb") as file:
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def tensor(self, key: str, dtype: torch.dtype, length: int) -> torch.Tensor:
        """(length,), the record `data/{key}`."""
        record = self._archive.getinfo(f"{self._root}data/{key}")
        if record.compress_type != zipfile.ZIP_STORED or length * dtype.itemsize > record.file_size:
            raise ValueError(f"record data/{key} is compressed or too short")
        if length == 0:
            return torch.empty(0, dtype=dtype)
        # A local header: 26 bytes, the lengths of the name and of another field, and these two.
        header = record.header_offset
        lengths = struct.unpack_from("<HH", self._mapped, header + 26)
        return torch.frombuffer(self._mapped, dtype=dtype, count=length, offset=header + 30 + sum(lengths))


class _ScriptObject:
    """An object of a class of the archive: its attributes, and nothing of its code."""

    class_name = ""

    def __setstate__(self, attributes):
        self.attributes = attributes


def _rebuild_tensor(storage: torch.Tensor, offset: int, size: tuple, stride: tuple, *_) -> torch.Tensor:
    return storage.as_strided(size, stride, offset)


# Names allowed in a pickle beside storages and classes of the archive -> their stand-ins.
_ALLOWED = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("collections", "OrderedDict"): OrderedDict,
    **{
        ("torch.jit._pickle", name): lambda values, *_: values
        for name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
    },
}


class _Unpickler(pickle.Unpickler):
    """An unpickler that makes tensors and inert objects; whatever else is named is refused, and never imported."""

    def __init__(self, path: Path, file: io.BytesIO, records: _Records):
        super().__init__(file)
        self._path, self._records = path, records

    def find_class(self, module: str, name: str):
        if module.partition(".")[0] == "__torch__":
            return type(name, (_ScriptObject,), {"class_name": f"{module}.{name}"})
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) not in _ALLOWED:
            raise ConversionError(
                f"{self._path} cannot be read: it is a TorchScript archive that names a Python object "
                f"({module}.{name}) where only tensors and plain values belong, and loading it would run code."
            )
        return _ALLOWED[module, name]

    def persistent_load(self, pid: tuple) -> torch.Tensor:
        kind, dtype, key, _device, length = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError(f"unknown record {pid}")
        return self._records.tensor(key, dtype, length)


def _registered_names(archive: zipfile.ZipFile) -> Iterator[tuple[str, set[str]]]:
    """Name of each class of the archive, and names of its parameters and buffers."""
    for name in archive.namelist():
        found = re.fullmatch(r"[^/]+/code/(__torch__.*)\.py", name)
        if found:
            for class_name, *lists in _CLASS.findall(archive.read(name).decode()):
                registered = {key for names in lists for key in ast.literal_eval(names)}
                yield f"{found[1].replace('/', '.')}.{class_name}", registered


def _state_dict(
    module: _ScriptObject, registered: dict[str, set[str]], prefix: str = ""
) -> Iterator[tuple[str, torch.Tensor]]:
    names = registered.get(module.class_name, ())
    for name, value in module.attributes.items():
        if isinstance(value, _ScriptObject):
            yield from _state_dict(value, registered, f"{prefix}{name}.")
        elif isinstance(value, torch.Tensor) and name in names:
            yield prefix + name, value
