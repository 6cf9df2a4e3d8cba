"""Parts that all of the conversion shares: its error, JSON files, and files and folders written as a whole."""

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any


# The import package that this folder is part of.
PACKAGE = __package__.rpartition(".")[0]
DATA_FOLDER = Path(__file__).with_name("data")


class ConversionError(ValueError):
    """A checkpoint cannot be converted; the message says what was found, what was expected and what to do."""


def listing(items, limit: int = 20) -> str:
    """`items` as an indented list for an error message, cut after `limit` lines."""
    items = [str(item) for item in items]
    rest = [f"... and {len(items) - limit} more"] if len(items) > limit else []
    return "".join(f"\n  {item}" for item in items[:limit] + rest)


def project_address() -> str | None:
    """The address by which `pip install` finds this package, from `url` in setup.cfg; `None` where none is set."""
    try:
        address = metadata(PACKAGE)["Home-page"]
    except PackageNotFoundError:  # a checkout that is not installed
        return None
    return f"git+{address}" if address else None


def dtype_name(dtype) -> str:
    """`"float32"` of `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def plain(value):
    """`value` as JSON has it: a tuple as a list, a mapping as a dict."""
    return list(value) if isinstance(value, tuple) else dict(value) if hasattr(value, "keys") else value


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file. Raises `ConversionError` where it cannot be read or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConversionError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds a {type(content).__name__}; expected a JSON object.")
    return content


@cache
def data_table(name: str) -> dict[str, Any]:
    """The table `data/{name}.json`, shared by all callers: not to be changed."""
    return read_json(DATA_FOLDER / f"{name}.json")


def write_files(folder: Path, files: Mapping[str, str]):
    """Write text files in their order, each so that it is there as a whole or as it was before."""
    for name, content in files.items():
        temporary = _temporary(folder / name)
        try:
            temporary.write_bytes(content.encode())
            temporary.replace(folder / name)
        finally:
            temporary.unlink(missing_ok=True)


def check_output(output: Path):
    """Raise `ConversionError` where `output` is a file, or a folder that holds something."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConversionError(f"{output} exists and is not an empty folder: give another output, or move it away.")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output` that becomes `output` at the end, or vanishes where anything fails.

    Raises:
        ConversionError: `output` is a file, or a folder that holds something.
    """
    check_output(output)
    folder = _temporary(output)
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.mkdir(parents=True)
        yield folder
        if output.exists():
            output.rmdir()
        folder.rename(output)
    except BaseException:  # an interrupt leaves nothing behind either
        shutil.rmtree(folder, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):  # somebody else may have put something there
                parent.rmdir()
        raise


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
