"""open_clip's CLIP, CoCa and MaMMUT models as transformers models.

Importing this package registers the models, processors and pipelines with transformers' Auto classes. The public
names, which `__init__.pyi` lists, are loaded when they are first used, so that the import stays cheap.
"""

import ast
import re
from importlib import import_module, metadata
from pathlib import Path


__version__ = "0.1.0"
MIN_TRANSFORMERS = "5.5"  # as in setup.cfg


def _require_transformers():
    """Raise `ImportError` below the oldest supported transformers, before an import of ours fails for it."""
    try:
        found = metadata.version("transformers")
    except metadata.PackageNotFoundError:  # none, or one that is not installed but on the path
        return
    needed, have = (tuple(map(int, re.findall(r"\d+", version)[:2])) for version in (MIN_TRANSFORMERS, found))
    if have < needed:
        raise ImportError(
            f"{__name__} needs transformers >= {MIN_TRANSFORMERS}, found {found}: pip install -U transformers"
        )


_require_transformers()

from .registration import register  # noqa: E402


if not (Path(__file__).parent / "modeling").is_dir():  # a checkout: the sub-packages lie beside this folder
    __path__.append(str(Path(__file__).parents[1]))

# Public name -> module it lives in.
_PUBLIC = {
    alias.name: node.module
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__():
    return sorted([*globals(), *_PUBLIC])


register()
