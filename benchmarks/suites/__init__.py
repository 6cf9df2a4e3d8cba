"""The suites: one module of this folder each, which imports neither torch nor a model library.

A module has

    TITLE: str                                what heads its page
    ABOUT: str                                a paragraph or more of Markdown: what is compared, and how
    cells(options: Options) -> list[Cell]     the rows, in their order; tiny ones where `options.quick`,
                                              none where there is nothing to measure on `options.device`
    notes(record: Record) -> list[str]         may be left out: sentences that follow from the results
    picture(cell: Cell) -> str                may be left out: the name of the picture that shows the cell

with `Options`, `Cell` and `Record` of harness/cells.py.
"""

import importlib
import pkgutil
from types import ModuleType


SUITES = tuple(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """Import the module of a suite."""
    return importlib.import_module(f"suites.{name}")
