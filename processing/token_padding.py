"""Rows of token ids brought to one length."""

from collections.abc import Sequence

import numpy as np


def pad_lists(rows: Sequence[list[int]], length: int, fill: int, side: str) -> list[list[int]]:
    """`rows` filled up with `fill` to `length` ids on `side`, `"right"` or `"left"`; longer ones stay as they are."""
    if side == "left":
        return [[fill] * (length - len(row)) + row for row in rows]
    return [row + [fill] * (length - len(row)) for row in rows]


def pad_array(rows: Sequence[list[int]], length: int, fill: int, side: str) -> np.ndarray:
    """`rows` as int64 of shape (rows, length), filled up with `fill` on `side`.

    Raises:
        ValueError: a row is longer.
    """
    longest = max(map(len, rows))
    if longest > length:
        raise ValueError(
            f"A text of {longest} tokens does not fit the length of {length} tokens that was asked for: pass "
            "truncation=True, or padding='longest'."
        )
    array = np.zeros((len(rows), length), dtype=np.int64)
    if fill:
        array.fill(fill)
    for row, ids in zip(array, rows):
        if side == "left":
            row[length - len(ids) :] = ids
        else:
            row[: len(ids)] = ids
    return array


__all__ = ["pad_array", "pad_lists"]
