"""The code that a Hub repository carries: our source files that a model needs, flat and importing each other.

transformers loads `file.Class` of a repository and copies what the file imports with lines of the form `from .name
import ...`, which it finds with a regular expression; 5.5 reads the first file alone. So each source file here is
copied with its imports from our other folders rewritten to that form. transformers starts from one more file, `ENTRY`,
which names all the others: it checks the version of transformers, and gives the package's classes in their place where
that is installed and newer. Old code then does not stand in the way of a new transformers.
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
ENTRY = "open_clip_entry"
# First and last minor releases of transformers that this code was tested with.
TESTED_TRANSFORMERS = ("5.5", "5.24")
_ENTRY_SOURCE = '''# {entry}.py of open_clip_transformers {version}, written by `open-clip-transformers bundle`.
"""The classes that transformers loads from this repository.

They are those of the package open_clip_transformers where it is installed and newer than the other files here, which
are a copy of its version {version}.
"""

import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING

import transformers
from packaging.version import Version


if Version(transformers.__version__) < Version("{oldest}"):
    raise ImportError(
        f"The code of this repository needs transformers >= {oldest}, found {{transformers.__version__}}: "
        "pip install --upgrade transformers"
    )

package = None
try:
    if Version(version("open-clip-transformers")) > Version("{version}"):
        import open_clip_transformers as package
except ImportError:  # not installed, or not for this transformers
    pass

if package is not None:
{of_the_package}
else:
    if Version(transformers.__version__).release[:2] > Version("{newest}").release[:2]:
        warnings.warn(
            "The code of this repository was tested with transformers {oldest} to {newest}, this is "
            f"{{transformers.__version__}}. If something fails, install the package open_clip_transformers{address}, "
            "whose classes are then used, or an older transformers: pip install 'transformers<={newest}.99'",
            stacklevel=2,
        )
{of_this_repository}
    # Beside what is saved, transformers copies the file of a class and what it imports: this one and all others.
    for _class in (
{names}
    ):
        _class.__module__ = __name__

if TYPE_CHECKING:
{together}'''
# As transformers' `get_relative_imports` finds them, docstrings included.
_FOLLOWED_IMPORT = re.compile(r"^\s*from\s+\.(\S+)\s+import", flags=re.MULTILINE)


def bundle_code(
    entries: Iterable[type], towers: Collection[str], header: str, address: str | None = None
) -> dict[str, str]:
    """The files that `entries` need.

    Args:
        entries: our public classes that transformers is to load from the repository.
        towers: `model_type` of the towers that the model has.
        header: comment put above every file, with `{path}` for where it is kept here.
        address: where this package can be installed from, for people whose transformers is too new for the files.

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
    files[f"{ENTRY}.py"] = _entry_source(entries, files, address)
    missing = {
        f"{name}: {followed}"
        for name, source in files.items()
        for followed in _FOLLOWED_IMPORT.findall(source)
        if f"{followed}.py" not in files
    }
    if missing:
        raise ConversionError(f"These imports of bundled files are not bundled:{listing(sorted(missing))}")
    return {name: files[name] for name in sorted(files)}


def _entry_source(entries: Iterable[type], files: Iterable[str], address: str | None) -> str:
    package = import_module(PACKAGE)
    entries = sorted(entries, key=lambda entry: entry.__name__)
    if private := [entry.__name__ for entry in entries if getattr(package, entry.__name__, None) is not entry]:
        raise ConversionError(f"These classes are not public names of {PACKAGE}:{listing(private)}")
    imports = {f"from .{entry.__module__.rpartition('.')[2]} import {entry.__name__}" for entry in entries}
    return _ENTRY_SOURCE.format(
        entry=ENTRY,
        version=package.__version__,
        oldest=TESTED_TRANSFORMERS[0],
        newest=TESTED_TRANSFORMERS[-1],
        address=f" ({address})" if address else "",
        names="".join(f"        {entry.__name__},\n" for entry in entries).rstrip(),
        of_the_package="".join(f"    {entry.__name__} = package.{entry.__name__}\n" for entry in entries).rstrip(),
        of_this_repository="".join(f"    {line}\n" for line in sorted(imports)).rstrip(),
        together="".join(f"    from .{name.removesuffix('.py')} import *\n" for name in sorted(files)),
    )


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
