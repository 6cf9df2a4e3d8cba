"""The suites: one module each, named as in `SUITES`, which imports neither torch nor a model library.

A module has

    TITLE: str                                what heads its page
    ABOUT: str                                a paragraph or more of Markdown: what is compared, and how
    cells(options: Options) -> list[Cell]     the rows, in their order; tiny ones where `options.quick`
    notes(results: list[Result]) -> list[str] may be left out: sentences that follow from the results

with `Options`, `Cell` and `Result` of harness/cells.py.
"""

import importlib
from types import ModuleType


SUITES = ("caption", "encoder", "processing", "startup", "conversion", "quantization")


def load(name: str) -> ModuleType:
    """The module of a suite."""
    return importlib.import_module(f"suites.{name}")
