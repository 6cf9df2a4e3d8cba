"""Entries in transformers' tables that cost nothing until a table is read.

`import transformers` alone imports neither torch nor the Auto classes, whereas `AutoConfig.register` and its like need
both. So entries wait twice: for transformers to import the module that holds the table ([`after_import`]), and then
for the first look at the table ([`add_entries`]), because our modules cannot be imported in the middle of
transformers' own imports.
"""

import sys
from collections.abc import Callable, MutableMapping
from importlib.abc import Loader, MetaPathFinder


class _AfterImport(MetaPathFinder):
    """Leaves finding modules to the other finders, and calls back once a module it waits for has run."""

    def __init__(self):
        self.callbacks: dict[str, list[Callable[[], None]]] = {}

    def find_spec(self, fullname, path, target=None):
        if fullname not in self.callbacks:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _CallingBack(spec.loader, self)
        return spec

    def module_has_run(self, name: str):
        for callback in self.callbacks.pop(name, []):
            callback()


class _CallingBack(Loader):
    """A module's own loader, all of it, that tells `finder` when the module has run."""

    def __init__(self, loader, finder: _AfterImport):
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        # The module keeps its real loader, which tools read its source with.
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._finder.module_has_run(module.__name__)


_after_import = _AfterImport()


def after_import(module: str, callback: Callable[[], None]):
    """Calls `callback` as soon as `module` (a dotted name) has been imported: at once where it already is."""
    if module in sys.modules:
        callback()
        return
    if _after_import not in sys.meta_path:
        sys.meta_path.insert(0, _after_import)
    _after_import.callbacks.setdefault(module, []).append(callback)


class LateEntries(MutableMapping):
    """A dictionary with more entries, those that `load` returns, which is called when the dictionary is first read.

    It stands in for the dictionaries that transformers keeps registered classes in.
    """

    def __init__(self, entries: dict, load: Callable[[], dict]):
        self._entries = entries
        self._load: Callable[[], dict] | None = load

    def _all(self) -> dict:
        # Threads that come here together all load: the same entries, and none of them sees half of these.
        if (load := self._load) is not None:
            self._entries = {**load(), **self._entries}
            self._load = None
        return self._entries

    def __getitem__(self, key):
        return self._all()[key]

    def __iter__(self):
        return iter(self._all())

    def __len__(self):
        return len(self._all())

    def __setitem__(self, key, value):
        self._entries[key] = value

    def __delitem__(self, key):
        del self._all()[key]


def add_entries(table, load: Callable[[], dict]):
    """Adds what `load` returns to a table of transformers' Auto classes, when the table is first read.

    Args:
        table: such as `MODEL_MAPPING`. What outsiders register is in its `_extra_content`, which every look-up reads
            and `register` writes.
        load: called without arguments, returns configuration class (or model type) -> registered class.
    """
    table._extra_content = LateEntries(table._extra_content, load)
