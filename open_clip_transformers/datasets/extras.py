"""Libraries that only some commands need."""

from importlib import import_module
from types import ModuleType
from typing import IO, Any

from ..configuration.errors import MissingPackageError


def import_extra(module: str, extra: str) -> ModuleType:
    """Import a library that one of this package's extras brings.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingPackageError(
            f"{package} is needed: pip install 'open-clip-transformers[{extra}]'. {error}"
        ) from error


def file_system_of(address: str) -> tuple[Any, str]:
    """fsspec's file system of an address such as `s3://bucket/key`, and the path in it.

    Raises:
        MissingPackageError: fsspec, or what it needs for such addresses, is not installed.
        OSError: there are no such addresses.
    """
    try:
        return import_extra("fsspec", "data").url_to_fs(address)
    except MissingPackageError:
        raise
    except ImportError as error:
        raise MissingPackageError(f"{address} needs a package that is not installed. {error}.") from error
    except ValueError as error:
        raise OSError(f"{address} is no address of a file: {error}.") from error


def open_remote(address: str) -> IO[bytes]:
    """Open a file at an address of fsspec; for what is raised see [`file_system_of`]."""
    file_system, path = file_system_of(address)
    return file_system.open(path, "rb")
