"""Parts that all of the conversion shares: its errors, checks of arguments, text for people, and JSON files."""

import inspect
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ..configuration.errors import UserError, printable


# The import package that this folder is part of.
PACKAGE = __package__.rpartition(".")[0]
# Most patches of a NaFlex model's images where none is stated: open_clip evaluates with the longest of the lengths
# that it trains with.
MAX_NUM_PATCHES = 1024
DATA_FOLDER = Path(__file__).with_name("data")
# How the file begins that Git LFS leaves in place of another.
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
Function = TypeVar("Function", bound=Callable)


class ConversionError(UserError):
    """A checkpoint cannot be converted; the message says what was found, what was expected and what to do."""


@contextmanager
def failing_as(message: str, kind: type[UserError] = ConversionError) -> Iterator[None]:
    """Turn whatever goes wrong in here into a `kind` that begins with `message`: damaged files fail in many ways."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # These carry messages; others need their names to make sense.
        name = "" if isinstance(error, ValueError | OSError) and str(error) else f"{type(error).__name__}: "
        raise kind(f"{message}{' ' if message.endswith('.') else ': '}{name}{error}") from error


def checks_types(function: Function) -> Function:
    """Have `function` raise `TypeError` for arguments of another type than they are annotated with."""
    signature = inspect.signature(function)

    @wraps(function)
    def checked(*args, **kwargs):
        hints = get_type_hints(function)
        arguments = signature.bind(*args, **kwargs).arguments
        for name, value in ((name, value) for name, value in arguments.items() if hints[name] is not Any):
            is_union = get_origin(hints[name]) in (Union, UnionType)
            types = tuple(get_origin(hint) or hint for hint in (get_args(hints[name]) if is_union else [hints[name]]))
            # A bool is an int to Python.
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                expected = " or ".join("None" if kind is NoneType else kind.__name__ for kind in types)
                raise TypeError(f"{function.__name__}: {name} must be {expected}, got {value!r}.")
        return function(*args, **kwargs)

    return checked  # type: ignore[return-value]


_names_options: ContextVar[bool] = ContextVar("names_options", default=False)
# Options of the command line that are not called like the argument.
_OPTIONS = {"model_name": "--model", "with_processor": "--processor"}


@contextmanager
def options_in_messages() -> Iterator[None]:
    """Let messages name the options of the command line instead of the arguments of Python."""
    token = _names_options.set(True)
    try:
        yield
    finally:
        _names_options.reset(token)


def argument(name: str, value: Any = None) -> str:
    """An argument as a message names it: `ema=True`, or `--ema` within `options_in_messages`.

    Args:
        name: of the argument in Python.
        value: to give, by default none in particular.
    """
    if not _names_options.get():
        return name if value is None else f"{name}={value!r}"
    option = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
    if value is None or value is True:
        return option
    return f"--no-{option.removeprefix('--')}" if value is False else f"{option} {shlex.quote(str(value))}"


def listing(items, limit: int = 20) -> str:
    """`items` as an indented list for an error message, cut after `limit` lines."""
    items = [printable(str(item), keep="") for item in items]
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


def user_path(name: str | os.PathLike) -> Path:
    """`name` as a path, `~` at its beginning replaced by the home folder, where there is one."""
    return Path(os.path.expanduser(name))


def hub_id_of_address(name: str) -> str | None:
    """`"org/name"`, or `"org/name@revision"`, of the address of a repository's page on the Hub; `None` of others."""
    page = re.match(r"(?:https?://)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/\w+/([^/?#]+))?", name)
    return page and page[1] + (f"@{page[2]}" if page[2] not in (None, "main") else "")


def check_no_pointer(path: Path):
    """Raise `ConversionError` where a file is what Git leaves in place of one that Git LFS keeps."""
    with path.open("rb") as file:
        is_pointer = file.read(len(_LFS_POINTER)) == _LFS_POINTER
    if is_pointer:
        raise ConversionError(
            f"{path} is a Git LFS pointer, which stands for the file: run `git lfs pull` in its folder, or download "
            "the repository with `hf download`."
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file. Raises `ConversionError` where it cannot be read or holds something else."""
    if path.exists() and not path.is_file():
        raise ConversionError(f"{path} cannot be read as JSON: it is no file, but a folder, a pipe or a device.")
    try:
        check_no_pointer(path)
        content = json.loads(path.read_text(encoding="utf-8"))
    except ConversionError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # a number of 5000 digits is a ValueError
        raise ConversionError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds a {type(content).__name__}; expected a JSON object.")
    return content


@cache
def data_table(name: str) -> dict[str, Any]:
    """The table `data/{name}.json`, shared by all callers: not to be changed."""
    return read_json(DATA_FOLDER / f"{name}.json")
