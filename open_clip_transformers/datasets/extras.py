"""Libraries that only some commands need."""

from importlib import import_module
from types import ModuleType


def import_extra(module: str, extra: str) -> ModuleType:
    """Import a library that one of this package's extras brings.

    Raises:
        OSError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise OSError(
            f"This needs {module.partition('.')[0]}: pip install 'open-clip-transformers[{extra}]'. {error}"
        ) from error
