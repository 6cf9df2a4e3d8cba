"""Who runs when: warm-up, then rounds in which the contestants take turns, in an order that each round rotates."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .cells import Options
from .workers import WorkerError


# A first run this long is warm-up enough, and one this long is the only sample unless the budget has room for more.
# One sample says little: three runs of open_clip's beams in one process took 44, 43 and 36 s.
SLOW_SECONDS = 10.0
LONG_SECONDS = 120.0
WARM_UPS = 3
STEADY = 0.1
FEWEST_ROUNDS = 2
# Threads of the process before wait for more work for some milliseconds, and would take the processor meanwhile.
PAUSE_SECONDS = 0.02

Run = Callable[[int], float]


@dataclass
class Samples:
    """Seconds of one run in each round that the contestant took part in, or the error that ended it."""

    seconds: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    repeats: int = 1
    error: WorkerError | None = None


def warm_up(run: Run) -> float:
    """Runs until two runs that follow each other take about the same; returns seconds of the last."""
    seconds = run(1)
    for _ in range(WARM_UPS - 1):
        if seconds >= SLOW_SECONDS:
            break
        before, seconds = seconds, run(1)
        if abs(seconds - before) < STEADY * before:
            break
    return seconds


def calibrate(run: Run, options: Options) -> tuple[float, int]:
    """Warms up; returns seconds of a run, and the runs of a sample."""
    seconds = warm_up(run)
    repeats = repeats_for(seconds, options)
    if repeats > 1:
        # One short run by itself says little.
        seconds = run(repeats) / repeats
        repeats = repeats_for(seconds, options)
    return seconds, repeats


def repeats_for(seconds: float, options: Options) -> int:
    """Runs of a sample, so that it is long enough to be timed."""
    return max(1, math.ceil(options.sample_seconds / max(seconds, 1e-9)))


def rounds_for(seconds: float, share: float, options: Options) -> set[int]:
    """The rounds of a contestant whose sample takes `seconds` and that has `share` seconds, spread over all."""
    count = min(options.rounds, max(FEWEST_ROUNDS, int(share / max(seconds, 1e-9))))
    return {turn * options.rounds // count for turn in range(count)}


def rotated(names: list[str], turn: int) -> list[str]:
    """`names`, begun `turn` places later."""
    start = turn % len(names)
    return names[start:] + names[:start]


def take_samples(runs: dict[str, Run], options: Options) -> dict[str, Samples]:
    """Measures contestants side by side.

    Args:
        runs: by name, `run(repeats) -> seconds` of all repeats, which may raise WorkerError: its contestant is out.
    """
    samples = {name: Samples() for name in runs}
    plans: dict[str, set[int]] = {}
    for name, run in runs.items():
        try:
            seconds, repeats = calibrate(run, options)
        except WorkerError as error:
            samples[name].error = error
            continue
        samples[name].repeats = repeats
        share = options.budget / len(runs)
        if seconds >= LONG_SECONDS and FEWEST_ROUNDS * seconds > share:
            samples[name].seconds, samples[name].rounds, plans[name] = [seconds], [0], set()
            continue
        plans[name] = rounds_for(seconds * repeats, share, options)
    for turn in range(options.rounds):
        for name in rotated(list(runs), turn):
            own = samples[name]
            if own.error or turn not in plans[name]:
                continue
            time.sleep(PAUSE_SECONDS)
            try:
                own.seconds.append(runs[name](own.repeats) / own.repeats)
            except WorkerError as error:
                own.error = error
            else:
                own.rounds.append(turn)
    return samples
