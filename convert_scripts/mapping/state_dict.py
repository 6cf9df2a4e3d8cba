"""Named operations on checkpoint tensors, and their resolution on the keys of a state dict, in both directions.

A rename table is a sequence of operations. Their key patterns hold `{n}` for a number, `{p}` for `weight` or `bias`,
`{rest}` for whatever follows, and `{blocks}` for a path that ends in a number. The way back needs no second table:
every operation undoes itself, and `resolve` reads a table from either side.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch

from ..common import ConversionError, listing


Tensors = tuple[torch.Tensor, ...]
_PLACEHOLDERS = {
    "{n}": r"(?P<n>\d+)",
    "{p}": r"(?P<p>weight|bias)",
    "{rest}": r"(?P<rest>.+)",
    "{blocks}": r"(?P<blocks>(\w+\.)*\d+)",
}


@dataclass(frozen=True)
class Operation(ABC):
    """An operation on the tensors named by the pattern `source`. Results are views of the inputs where they can be."""

    source: str
    target: str

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,)

    @abstractmethod
    def apply(self, tensors: Tensors) -> Tensors:
        """Target tensors, in the order of `targets`, of the source tensors, in the order of `sources`."""

    @abstractmethod
    def invert(self, tensors: Tensors) -> Tensors:
        """Source tensors of the target tensors."""

    def under(self, source_prefix: str, target_prefix: str) -> "Operation":
        """This operation on the keys below a module."""
        return replace(self, source=source_prefix + self.source, target=target_prefix + self.target)


class Rename(Operation):
    """The same tensor under another name."""

    def apply(self, tensors: Tensors) -> Tensors:
        return tensors

    def invert(self, tensors: Tensors) -> Tensors:
        return tensors


class Transpose(Operation):
    """A matrix (in, out) that open_clip multiplies from the right becomes the weight (out, in) of a Linear."""

    def apply(self, tensors: Tensors) -> Tensors:
        return (tensors[0].t(),)

    def invert(self, tensors: Tensors) -> Tensors:
        return (tensors[0].t(),)


class Unsqueeze(Operation):
    """A tensor gets a first axis of size 1."""

    def apply(self, tensors: Tensors) -> Tensors:
        return (tensors[0].unsqueeze(0),)

    def invert(self, tensors: Tensors) -> Tensors:
        return (tensors[0].squeeze(0),)


class Squeeze(Operation):
    """A tensor loses its first axis, of size 1."""

    def apply(self, tensors: Tensors) -> Tensors:
        return (tensors[0].squeeze(0),)

    def invert(self, tensors: Tensors) -> Tensors:
        return (tensors[0].unsqueeze(0),)


class ToSquare(Operation):
    """Rows (side * side, size) of a table become a square of them (1, side, side, size)."""

    def apply(self, tensors: Tensors) -> Tensors:
        return (tensors[0].unflatten(0, (math.isqrt(len(tensors[0])), -1)).unsqueeze(0),)

    def invert(self, tensors: Tensors) -> Tensors:
        return (tensors[0].flatten(0, 2),)


class SplitQKV(Operation):
    """Queries, keys and values packed along dimension 0 become three tensors; `target` holds `{qkv}`."""

    placeholder = "{qkv}"
    parts: tuple[str, ...] = ("q", "k", "v")

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(self.target.replace(self.placeholder, part) for part in self.parts)

    def apply(self, tensors: Tensors) -> Tensors:
        return tensors[0].chunk(len(self.parts))

    def invert(self, tensors: Tensors) -> Tensors:
        return (torch.cat(tensors),)


class SplitKV(SplitQKV):
    """Keys and values packed along dimension 0 become two tensors; `target` holds `{kv}`."""

    placeholder = "{kv}"
    parts = ("k", "v")


class SplitGated(SplitQKV):
    """The two packed projections into a gated MLP become its first layer and its gate; `target` holds `{gated}`."""

    placeholder = "{gated}"
    parts = ("fc1", "gate")


class SplitGateFirst(SplitGated):
    """The same with the gate in front."""

    parts = ("gate", "fc1")


Table = tuple[Operation, ...]


def under(source_prefix: str, target_prefix: str, table: Sequence[Operation]) -> Table:
    """A table for the keys below a module."""
    return tuple(operation.under(source_prefix, target_prefix) for operation in table)


@dataclass(frozen=True)
class Step:
    """One row of a rename table at work on the keys of one state dict."""

    operation: Operation
    sources: tuple[str, ...]
    targets: tuple[str, ...]

    def apply(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Target keys and tensors, from a state dict that holds the source keys."""
        return zip(self.targets, self.operation.apply(tuple(tensors[key] for key in self.sources)))

    def invert(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Source keys and tensors, from a state dict that holds the target keys."""
        return zip(self.sources, self.operation.invert(tuple(tensors[key] for key in self.targets)))


def resolve(
    keys: Iterable[str], table: Sequence[Operation], side: Literal["sources", "targets"]
) -> tuple[list[Step], list[str]]:
    """Match a table with the keys of a state dict.

    Args:
        keys: keys of the state dict.
        table: rename table; its order does not matter.
        side: the side of the table that the keys belong to, `"targets"` for the way back.

    Returns:
        Steps in the order of the keys, and the keys that no row matches.

    Raises:
        ConversionError: a key matches several rows, a fault of the table.
    """
    patterns = [(compile_pattern(p), row) for row, operation in enumerate(table) for p in getattr(operation, side)]
    steps: dict[tuple, Step] = {}
    unmatched, ambiguous = [], []
    for key in keys:
        matches = [(row, match.groupdict()) for pattern, row in patterns if (match := pattern.fullmatch(key))]
        if not matches:
            unmatched.append(key)
            continue
        if len(matches) > 1:
            ambiguous.append(key)
        row, names = matches[0]
        operation = table[row]
        sources, targets = (
            tuple(fill_pattern(p, names) for p in side) for side in (operation.sources, operation.targets)
        )
        steps.setdefault((row, *names.values()), Step(operation, sources, targets))
    if ambiguous:
        raise ConversionError(f"These keys match more than one row of the rename table:{listing(ambiguous)}")
    return list(steps.values()), unmatched


@cache
def compile_pattern(pattern: str) -> re.Pattern:
    """Regular expression of a key pattern, with a group for each placeholder."""
    expression = re.escape(pattern)
    for placeholder, group in _PLACEHOLDERS.items():
        expression = expression.replace(re.escape(placeholder), group)
    return re.compile(expression)


def fill_pattern(pattern: str, names: Mapping[str, str]) -> str:
    """A key pattern with values in place of its placeholders."""
    for name, value in names.items():
        pattern = pattern.replace(f"{{{name}}}", value)
    return pattern
