"""Names of other libraries that may vanish: each is still there, and all that are used stand in the table."""

import ast
import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import transformers
from packaging.version import Version
from upstream_internals import INTERNALS, Internal


pytestmark = pytest.mark.floor
ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("configuration", "modeling", "processing", "convert_scripts", "training", "open_clip_transformers")
# Attributes of instances, marks on tensors, names of modules, and open_clip's, whose version is fixed.
OF_INSTANCES = {
    "_C",
    "_buffers",
    "_distributed",  # this and `_ex_iterable` are those of streamed data sets: tests/training/test_streams.py
    "_ex_iterable",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_hf_hook",
    "_is_hf_initialized",
    "_parameters",
    "_reconstructor",  # copyreg, Python's own
    "_valid_kwargs_names",
    "_shuffling",
    "_train_batch_size",  # of Trainer, which it halves where memory runs out
    "_reorder_cache",  # that some models of transformers have, asked for with hasattr
}
# Classes of transformers and torch that ours derive from: a method of ours with the name of theirs replaces it.
BASES = {owner for owner in (internal.resolve_owner() for internal in INTERNALS) if inspect.isclass(owner)}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def private_names(names_of: Callable[[ast.AST], Iterable[str]]) -> dict[str, set[str]]:
    """Private names that `names_of` finds in the nodes of our sources, each with its files."""
    found: dict[str, set[str]] = {}
    for file, tree in sources():
        for name in (name for node in ast.walk(tree) for name in names_of(node)):
            if is_private(name):
                found.setdefault(name, set()).add(file)
    return found


def read_names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        yield node.attr
    elif isinstance(node, ast.ImportFrom):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
        yield from (argument.value for argument in node.args[1:2] if isinstance(argument, ast.Constant))


def defined_names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.attr


def class_members(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ClassDef):
        yield from (name for part in node.body for name in defined_names(part))
        yield from (
            name for part in node.body if isinstance(part, ast.Assign) for name in map(ast.unparse, part.targets)
        )
        yield from (ast.unparse(part.target) for part in node.body if isinstance(part, ast.AnnAssign))


@pytest.mark.parametrize("internal", INTERNALS, ids=lambda internal: f"{internal.owner}.{internal.name}")
def test_internal_is_there(internal: Internal):
    if Version(transformers.__version__).release[:2] < Version(internal.since).release[:2]:
        pytest.skip(f"from transformers {internal.since} on")
    help_text = f"Used because: {internal.why}. When it is gone: {internal.when_gone}."
    assert internal.why and internal.when_gone
    assert hasattr(internal.resolve_owner(), internal.name), help_text
    if internal.parameters:
        parameters = inspect.signature(getattr(internal.resolve_owner(), internal.name)).parameters
        assert set(internal.parameters) <= parameters.keys(), f"It now takes {list(parameters)}. {help_text}"


def test_every_private_name_in_use_stands_in_the_table():
    defined = private_names(defined_names)
    foreign = {name: files for name, files in private_names(read_names).items() if name not in defined}
    members = private_names(class_members)
    for base in BASES:
        foreign |= {name: files for name, files in members.items() if hasattr(base, name)}
    listed = {internal.name for internal in INTERNALS} | OF_INSTANCES
    missing = {name: sorted(files) for name, files in foreign.items() if name not in listed}
    assert not missing, "Use a public name, or add a line to upstream_internals.py"


def test_table_has_no_name_that_is_not_in_use():
    private = {internal.name for internal in INTERNALS if is_private(internal.name)}
    assert private <= private_names(defined_names).keys() | private_names(read_names).keys()
