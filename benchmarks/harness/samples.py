"""From samples to figures: medians with their spread, ratios of contestants, and differences of outputs."""

import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .cells import Cell, Measurement, Result


# What the name of a contestant begins with that is another form of ours, and no peer.
OURS = "ours"


@dataclass(frozen=True)
class Spread:
    """A median between its quartiles, or between the least and the largest of fewer than four values."""

    median: float
    low: float
    high: float
    count: int


def spread(values: list[float]) -> Spread | None:
    """The spread of `values`; None where there are none."""
    if not values:
        return None
    if len(values) < 4:
        low, high = min(values), max(values)
    else:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(statistics.median(values), low, high, len(values))


def ratio(ours: Measurement, peer: Measurement) -> Spread | None:
    """The peer's time over ours: of the rounds that both took part in, else of the medians."""
    if not ours.seconds or not peer.seconds:
        return None
    by_round = dict(zip(ours.rounds, ours.seconds))
    paired = [seconds / by_round[turn] for turn, seconds in zip(peer.rounds, peer.seconds) if turn in by_round]
    if paired:
        return spread(paired)
    middle = statistics.median(peer.seconds) / statistics.median(ours.seconds)
    return Spread(middle, middle, middle, 0)


def ratios(result: Result) -> dict[str, Spread]:
    """The ratio of each peer that was measured."""
    found = {peer.contestant: ratio(result.ours, peer) for peer in result.measurements[1:]}
    return {name: value for name, value in found.items() if value is not None}


def goal_peer(result: Result) -> str | None:
    """The peer that the goal is against; None where it was not measured."""
    found = ratios(result)
    others = [name for name in found if not name.startswith(OURS)]
    peer = result.cell.reference or min(others, key=lambda name: found[name].median, default=None)
    return peer if peer in found else None


def verdict(result: Result, form: Measurement) -> str:
    """Whether a form of ours meets the goal; "within noise" where the upper quartile of the ratio reaches it."""
    peer = goal_peer(result)
    value = ratio(form, result.of(peer)) if peer else None
    if value is None:
        return "not measured"
    if value.median >= result.cell.goal:
        return "met"
    return "within noise" if value.high >= result.cell.goal else "missed"


def verdicts(result: Result) -> dict[str, str]:
    """The verdict on each form of ours, by name, on ours first; none without a goal."""
    if result.cell.goal is None:
        return {}
    others = (each for each in result.measurements[1:] if each.contestant.startswith(OURS))
    forms = [result.ours, *(each for each in others if each.contestant != result.cell.reference)]
    return {form.contestant: verdict(result, form) for form in forms}


def throughput(cell: Cell, measurement: Measurement) -> float | None:
    """Units per second."""
    return cell.count / statistics.median(measurement.seconds) if measurement.seconds else None


def bound_share(result: Result, measurement: Measurement) -> float | None:
    """The bound over the contestant's median: 1 is as fast as the machine."""
    if not result.bound_seconds or not measurement.seconds:
        return None
    return result.bound_seconds / statistics.median(measurement.seconds)


def difference(ours: list, theirs: list) -> tuple[float, bool]:
    """How far outputs are apart, and whether they are tokens or strings.

    Numbers: the largest difference over the largest value of theirs, infinite where any is not finite. Tokens
    (integers) and strings: the share of places that differ, a missing one included.
    """
    left, right = list(_flat(ours)), list(_flat(theirs))
    exact = not any(isinstance(value, float) for value in left + right)
    longest = max(len(left), len(right))
    if exact:
        same = sum(a == b for a, b in zip(left, right))
        return ((longest - same) / longest if longest else 0.0), True
    if len(left) != len(right) or not all(map(math.isfinite, left + right)):
        return math.inf, False
    apart = max(abs(a - b) for a, b in zip(left, right))
    return apart / (max(map(abs, right)) or 1.0), False


def _flat(values: Iterable) -> Iterator:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value
