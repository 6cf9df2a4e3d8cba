"""The data of a benchmark (cells, measurements, records), and the figures that follow from its samples."""

import json
import math
import os
import re
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple


class NotRun(Exception):
    """A library, a GPU or an environment that a contestant needs is missing."""


@dataclass(frozen=True)
class Options:
    """Settings of a run."""

    device: str = "cpu"  # or "cuda"
    threads: int = 1  # of every process, for torch and for tokenizers
    rounds: int = 5  # the most samples of a contestant in a cell and process
    budget: float = 120.0  # seconds of a cell, shared by its contestants; a slow one gets fewer rounds
    processes: int = 1  # of a contestant, one after the other, which share the budget
    quick: bool = False  # tiny sizes, to see that everything runs


@dataclass(frozen=True)
class Cell:
    """One row: the same work by several contestants."""

    suite: str
    name: str  # label of the row, unique in the suite
    settings: dict  # of the contestants, as JSON ("device" is added by the run)
    contestants: tuple[str, ...]  # "ours", the model as loaded, then our variants ("ours_...") and peers
    unit: str = "calls"  # of the output of one run, in the plural
    count: int = 1  # units of one run
    goal: float | None = None  # the least ratio of a peer's time to ours that is aimed at
    reference: str | None = None  # the peer that the goal is against; by default the fastest
    group: str | None = None  # consecutive cells of one share processes, and the models that these keep


@dataclass
class Measurement:
    """The samples of one contestant in a cell, and its memory, outputs and figures."""

    contestant: str
    environment: str
    seconds: list[float] = field(default_factory=list)  # samples, of one run
    rounds: list[int] = field(default_factory=list)  # of each sample, counted on from process to process
    repeats: int = 1  # runs of a sample
    baseline: int | None = None  # bytes of its process before it held a model (RSS, or of the GPU)
    peak: int | None = None  # the most while it ran
    difference: float | None = None  # of its outputs to ours, see `difference`
    exact: bool = False  # whether these are tokens or strings
    figures: dict = field(default_factory=dict)  # more numbers or words that it reports, by name
    error: str | None = None  # why it was not measured


@dataclass
class Result:
    """A cell and its measurements, ours first."""

    cell: Cell
    measurements: list[Measurement]
    bound: list[dict] = field(default_factory=list)  # {"flops", "bytes", "dtype"} of one run, in steps
    date: str = ""
    commit: str = ""

    def of(self, contestant: str | None) -> Measurement | None:
        return next((each for each in self.measurements if each.contestant == contestant), None)

    def ratios(self) -> dict[str, "Spread"]:
        """The ratio of each other contestant that was measured."""
        found = {other.contestant: ratio(self.measurements[0], other) for other in self.measurements[1:]}
        return {name: value for name, value in found.items() if value is not None}


@dataclass
class Record:
    """The results of a suite on one machine, with one set of versions; a file of JSON."""

    suite: str
    command: str  # measures all of it again
    machine: dict  # see machine.py
    environments: dict[str, dict[str, str]]  # versions of the libraries, by environment
    ceilings: dict[str, dict[str, float]] = field(default_factory=dict)  # rates "before" and "after" the last run
    notes: list[str] = field(default_factory=list)  # remarks on these results alone
    results: list[Result] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """File name of this machine: processor, instruction set, threads and GPU."""
        machine = self.machine
        names = [machine["processor"], *machine["instruction_set"], f"{machine['threads']} threads", machine["gpu"]]
        return re.sub(r"(\((r|tm)\)|[^a-z0-9])+", "-", " ".join(filter(None, names)).lower()).strip("-")

    def add(self, result: Result, order: list[str]):
        """Put a result in the place of that of the same cell, in the `order` of cell names."""
        kept = [each for each in self.results if each.cell.name != result.cell.name]
        places = {name: place for place, name in enumerate(order)}
        self.results = sorted([*kept, result], key=lambda each: places.get(each.cell.name, len(places)))

    def with_ratios(self) -> dict:
        """The record as JSON, with the ratios that follow from its samples."""
        ratios = [{name: each._asdict() for name, each in result.ratios().items()} for result in self.results]
        return {**asdict(self), "results": [asdict(each) | {"ratios": own} for each, own in zip(self.results, ratios)]}

    def write(self, folder: Path):
        """Write `folder/suite/machine.json`, a line for each result."""
        data = asdict(self)
        rows = ",\n".join(json.dumps(row) for row in data.pop("results"))
        text = json.dumps(data, indent=1).removesuffix("\n}") + f',\n "results": [\n{rows}\n ]\n}}\n'
        write(folder / self.suite / f"{self.stem}.json", text.encode())

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Read what `write` wrote; raises ValueError where the file holds something else."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            for row in data["results"]:
                row["cell"] = Cell(**{**row["cell"], "contestants": tuple(row["cell"]["contestants"])})
                row["measurements"] = [Measurement(**each) for each in row["measurements"]]
            return cls(**{**data, "results": [Result(**row) for row in data["results"]]})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is no record of a benchmark: {error!r}. Remove or restore it.") from error


def write(path: Path, content: bytes):
    """Write a file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


class Spread(NamedTuple):
    """A median between its quartiles, or between the least and the largest of fewer than four values."""

    median: float
    low: float
    high: float
    count: int


def spread(values: list[float]) -> Spread | None:
    if not values:
        return None
    low, high = min(values), max(values)
    if len(values) >= 4:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(statistics.median(values), low, high, len(values))


def ratio(ours: Measurement, other: Measurement) -> Spread | None:
    """The other's time over ours, of the rounds that both took part in, else of the medians."""
    if not ours.seconds or not other.seconds:
        return None
    by_round = dict(zip(ours.rounds, ours.seconds))
    paired = [seconds / by_round[turn] for turn, seconds in zip(other.rounds, other.seconds) if turn in by_round]
    return spread(paired) or spread([statistics.median(other.seconds) / statistics.median(ours.seconds)])


def is_ours(contestant: str) -> bool:
    """Whether it is ours or one of our variants, and no peer."""
    return contestant.startswith("ours")


def goal_peer(result: Result) -> str | None:
    """The peer that the goal is against; None where none was measured."""
    peers = {name: value.median for name, value in result.ratios().items() if not is_ours(name)}
    return result.cell.reference or min(peers, key=peers.get, default=None)


# Variant of ours -> "time" or a figure -> the most of ours that is aimed at, of variants that the goal is not for.
Limits = dict[str, dict[str, float]]


def verdicts(result: Result, limits: Limits) -> dict[str, str]:
    """Judge ours and variants without limits by the goal, "within noise" where a ratio's upper quartile reaches it."""

    def judge(own: Measurement) -> str:
        value = peer and ratio(own, peer)
        return _verdict(value.median >= goal, value.high >= goal) if value else "not measured"

    goal, peer = result.cell.goal, result.of(goal_peer(result))
    kept = [own for own in result.measurements if own.contestant not in limits]
    forms = [own for own in kept if is_ours(own.contestant) and own is not peer]
    return {} if goal is None else {own.contestant: judge(own) for own in forms}


def limit_verdicts(result: Result, limits: Limits) -> Iterator[tuple[str, str, float, str]]:
    """Judge variants by their limits: variant, what is limited, the most of ours that is aimed at, and the verdict."""
    for name, own in limits.items():
        for measure, most in own.items():
            value = _over_ours(result, name, measure)
            if value is None:
                yield name, measure, most, "not measured"
            else:
                yield name, measure, most, _verdict(value.median <= most, value.low <= most)


def _over_ours(result: Result, name: str, measure: str) -> Spread | None:
    """The time of a contestant, or a figure such as "922 MB", over that of ours."""
    if measure == "time":
        return result.ratios().get(name)
    figures = [own.figures.get(measure) for own in (result.of(name), result.measurements[0]) if own is not None]
    if None in figures or len(figures) < 2:
        return None
    own, ours = (float(figure.split()[0]) for figure in figures)
    return spread([own / ours])


def _verdict(median_reaches: bool, quartile_reaches: bool) -> str:
    return "met" if median_reaches else "within noise" if quartile_reaches else "missed"


def bound_seconds(result: Result, ceilings: dict[str, dict[str, float]]) -> float | None:
    """The least seconds of the steps of a result by the highest rates; None where one was not measured."""
    rates: dict[str, float] = {}
    for measured in ceilings.values():
        rates |= {name: max(rate, rates.get(name, 0.0)) for name, rate in measured.items()}
    total = 0.0
    for step in result.bound:
        works = [(step.get("flops"), f"matmul_{step.get('dtype', 'float32')}"), (step.get("bytes"), "bandwidth")]
        if any(work and name not in rates for work, name in works):
            return None
        total += max((work / rates[name] for work, name in works if work), default=0.0)
    return total or None


def difference(ours: list, theirs: list) -> tuple[float, bool]:
    """Measure how far outputs are apart; also tell whether they are tokens or strings.

    Numbers: the largest difference over the largest value of theirs, infinite where any is not finite. Tokens
    (integers) and strings: the share of places that differ, a missing one included.
    """
    left, right = list(_flat(ours)), list(_flat(theirs))
    longest = max(len(left), len(right))
    if not any(isinstance(value, float) for value in left + right):
        same = sum(a == b for a, b in zip(left, right))
        return ((longest - same) / longest if longest else 0.0), True
    if len(left) != len(right) or not all(map(math.isfinite, left + right)):
        return math.inf, False
    return max(abs(a - b) for a, b in zip(left, right)) / (max(map(abs, right)) or 1.0), False


def _flat(values: list) -> Iterator:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value
