"""The code that a Hub repository carries: our source files that a model needs, flat and importing each other.

transformers loads `file.Class` of a repository and copies what the file imports with lines of the form `from .name
import ...`, which it finds with a regular expression; 5.5 reads the first file alone. So each source file here is
copied with its imports from our other folders rewritten to that form, and each file that transformers may start from
names all the others.
"""

import ast
import re
from collections.abc import Collection, Iterable
from importlib import import_module
from pathlib import Path

from ..common import PACKAGE, ConversionError, listing


# Files whose tables name every tower -> of which only a model's own are copied.
TOWER_TABLES = ("configuration.configuration_towers", "modeling.modeling_towers")
_RELATIVE_IMPORT = re.compile(r"^(\s*from )\.\.\w+\.(\w+ import)", flags=re.MULTILINE)
_TOGETHER = """

# transformers copies with a file what it imports: these files belong together.
from typing import TYPE_CHECKING

if TYPE_CHECKING:
"""
# As transformers' `get_relative_imports` finds them, docstrings included.
_FOLLOWED_IMPORT = re.compile(r"^\s*from\s+\.(\S+)\s+import", flags=re.MULTILINE)


def bundle_code(entries: Iterable[type], towers: Collection[str], header: str) -> dict[str, str]:
    """The files that `entries` need.

    Args:
        entries: our classes that transformers is to load from the repository.
        towers: `model_type` of the towers that the model has.
        header: comment put above every file, with `{path}` for where it is kept here.

    Returns:
        File name -> contents, in alphabetical order.

    Raises:
        ConversionError: a file that is imported would not be copied, or two files have one name; a fault of ours.
    """
    starts = sorted({entry.__module__.removeprefix(f"{PACKAGE}.") for entry in entries})
    sources = _closure(starts, towers)
    files = {
        f"{module.rpartition('.')[2]}.py": header.format(path=module.replace(".", "/") + ".py") + source
        for module, source in sources.items()
    }
    if len(files) != len(sources):
        raise ConversionError(f"These files do not have names of their own:{listing(sorted(sources))}")
    names = sorted(name.removesuffix(".py") for name in files)
    for start in starts:
        name = start.rpartition(".")[2]
        files[f"{name}.py"] += _TOGETHER + "".join(f"    from .{other} import *\n" for other in names if other != name)
    missing = {
        f"{name}: {followed}"
        for name, source in files.items()
        for followed in _FOLLOWED_IMPORT.findall(source)
        if f"{followed}.py" not in files
    }
    if missing:
        raise ConversionError(f"These imports of bundled files are not bundled:{listing(sorted(missing))}")
    return {name: files[name] for name in sorted(files)}


def _closure(starts: Iterable[str], towers: Collection[str]) -> dict[str, str]:
    """Module below our package -> its flattened source, for `starts` and all that they import."""
    sources: dict[str, str] = {}
    waiting = list(starts)
    while waiting:
        module = waiting.pop()
        if module in sources:
            continue
        source = Path(str(import_module(f"{PACKAGE}.{module}").__file__)).read_text(encoding="utf-8")
        if module in TOWER_TABLES:
            source = _without_other_towers(source, module, towers)
        waiting += _imported(source, folder=module.partition(".")[0])
        sources[module] = _RELATIVE_IMPORT.sub(r"\1.\2", source)
    return sources


def _imported(source: str, folder: str) -> list[str]:
    """The modules below our package that a file of `folder` imports."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.level]
    return [node.module if node.level == 2 else f"{folder}.{node.module}" for node in nodes]


def _without_other_towers(source: str, module: str, towers: Collection[str]) -> str:
    """The table of towers with those rows alone that are in `towers`, and no import of the others."""
    table = import_module(f"{PACKAGE}.{module}")
    rows = {
        model_type: entry
        for name in dir(table)
        if name.isupper()
        for model_type, entry in getattr(table, name).items()
    }
    others = {entry.__name__ for model_type, entry in rows.items() if model_type not in towers}
    lines = source.splitlines(keepends=True)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom | ast.Tuple)]
    for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        names = [name.name if isinstance(name, ast.alias) else getattr(name, "id", "") for name in _parts(node)]
        if others.isdisjoint(names):
            continue
        before, after = (
            lines[node.lineno - 1][: node.col_offset],
            lines[(node.end_lineno or node.lineno) - 1][node.end_col_offset :],
        )
        kept = "".join(f"{name}, " for name in names if name not in others).rstrip()
        is_import = isinstance(node, ast.ImportFrom)
        lines[node.lineno - 1 : node.end_lineno] = [] if is_import else [f"{before}({kept}){after}"]
    return "".join(lines)


def _parts(node: ast.ImportFrom | ast.Tuple) -> list:
    return node.names if isinstance(node, ast.ImportFrom) else node.elts
