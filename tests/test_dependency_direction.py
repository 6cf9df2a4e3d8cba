"""The rules of the source layout: who may import whom, and what may be imported outright."""

import ast
import configparser
import re
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
FACE = "open_clip_transformers"

# Folder -> the other folders it may import from.
ALLOWED = {
    "configuration": set(),
    "modeling": {"configuration"},
    "processing": {"configuration"},
    "convert_scripts": {"configuration", "modeling", "processing"},
    "training": {"configuration", "modeling", "processing"},
    FACE: {"configuration", "modeling", "processing", "convert_scripts", "training"},
}
SOURCES = sorted(path for folder in ALLOWED for path in (ROOT / folder).rglob("*.py"))
EVERYTHING = sorted(
    path for folder in (*ALLOWED, "tests", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)

every_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))


def imports(tree: ast.AST, lazy_too: bool = True):
    """(level, module, names) of every import in `tree`; without `lazy_too` only those that run on a plain import."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]
        elif lazy_too or not isinstance(node, ast.FunctionDef | ast.Lambda | ast.If | ast.Try):
            yield from imports(node, lazy_too)


def imported_folders(path: Path) -> set[str]:
    """The source folders that the module at `path` imports from, `open_clip_transformers` for the public face."""
    parts = path.relative_to(ROOT).parts[:-1]
    package = list(parts) if parts[0] == FACE else [FACE, *parts]
    folders = set()
    for level, module, names in imports(ast.parse(path.read_text(encoding="utf-8"))):
        parts = (package[: len(package) - level + 1] if level else []) + (module.split(".") if module else [])
        if parts[0] != FACE:
            continue
        targets = parts[1:2] or names
        folders |= {target if target in ALLOWED else FACE for target in targets}
    return folders


@every_source
def test_source_file_imports_only_the_folders_below_it(path):
    folder = path.relative_to(ROOT).parts[0]
    forbidden = imported_folders(path) - ALLOWED[folder] - {folder}
    assert not forbidden, f"{folder} must not import {', '.join(sorted(forbidden))}"


@every_source
def test_source_file_imports_optional_packages_only_behind_a_check(path):
    """Plain imports must be runtime dependencies; extras belong in functions or `if`s."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = re.findall(r"(?m)^\s*([\w-]+)", setup["options"]["install_requires"])
    modules = {"Pillow": "PIL", "PyYAML": "yaml"}
    known = {modules.get(name, name.replace("-", "_")) for name in required} | set(sys.stdlib_module_names)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    roots = {module.split(".")[0] for level, module, _ in imports(tree, lazy_too=False) if not level}
    assert roots <= known | {FACE}


@pytest.mark.parametrize(
    ("package", "home"),
    [("open_clip", ("convert_scripts/", "training/data/update.py")), ("timm", "modeling/modeling_timm")],
    ids=["open_clip", "timm"],
)
def test_optional_package_is_imported_only_at_home(package, home):
    """open_clip is for verifying conversions, timm for its own tower."""
    users = {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        for level, module, _ in imports(ast.parse(path.read_text(encoding="utf-8")))
        if not level and module.split(".")[0] == package
    }
    assert all(user.startswith(home) for user in users), users


def test_every_source_file_says_what_it_is():
    silent = [str(path.relative_to(ROOT)) for path in EVERYTHING if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent
