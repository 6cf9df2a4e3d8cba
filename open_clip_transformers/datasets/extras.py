"""Libraries that only some commands need."""

from importlib import import_module
from types import ModuleType

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
