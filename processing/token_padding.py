"""Rows of token ids brought to one length."""

from collections.abc import Sequence
from itertools import chain
from numbers import Integral
from typing import Any

import numpy as np


def check_lengths(**lengths: Any):
    """Raise `ValueError` unless each of `lengths` is `None` or a number of tokens."""
    for name, value in lengths.items():
        if value is not None and not (isinstance(value, Integral) and int(value) >= 1):
            raise ValueError(f"{name} must be a whole number of tokens, 1 or more, got {value!r:.200}.")


def checked_side(side: Any) -> str:
    """`side`; raises `ValueError` unless it is one of a text."""
    if side not in ("left", "right"):
        raise ValueError(f"padding_side must be 'left' or 'right', got {side!r:.200}.")
    return side


def pad_lists(rows: Sequence[list[int]], length: int, fill: int, side: str) -> tuple[list[list[int]], list[list[int]]]:
    """`rows` filled up with `fill` to `length` ids on `side`, `"right"` or `"left"`, and their masks of 1 and 0.

    Longer rows stay as they are.
    """

    def padded(row: list[int], fill: int) -> list[int]:
        padding = [fill] * (length - len(row))
        return padding + row if side == "left" else row + padding

    return [padded(row, fill) for row in rows], [padded([1] * len(row), 0) for row in rows]


def pad_arrays(rows: Sequence[list[int]], length: int, fill: int, side: str) -> tuple[np.ndarray, np.ndarray]:
    """The same as int64 arrays of shape (rows, length).

    Raises:
        ValueError: a row is longer.
    """
    longest = max(map(len, rows))
    if longest > length:
        raise ValueError(
            f"A text of {longest} tokens does not fit the length of {length} tokens that was asked for: pass "
            "truncation=True, or padding='longest'."
        )
    if len(rows) == 1:  # for which the few large steps below take longer
        place = slice(length - longest, None) if side == "left" else slice(longest)
        array, mask = np.full((1, length), fill), np.zeros((1, length), np.int64)
        array[0, place], mask[0, place] = rows[0], 1
        return array, mask
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    places = np.arange(length)
    is_id = places >= length - lengths[:, None] if side == "left" else places < lengths[:, None]
    array = np.full((len(rows), length), fill, dtype=np.int64)
    array[is_id] = np.fromiter(chain.from_iterable(rows), np.int64, lengths.sum())
    return array, is_id.astype(np.int64)


__all__ = ["check_lengths", "checked_side", "pad_arrays", "pad_lists"]
