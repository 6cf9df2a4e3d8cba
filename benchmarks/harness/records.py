"""The record of a suite: its results with all that they were measured on, as JSON, added to an earlier one."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from .cells import Result
from .samples import bound_share, ratios, throughput, verdicts


@dataclass
class Record:
    """What one page of results holds.

    command: makes it.
    machine: see machine.py; with "gpu" on one.
    environments: versions of the libraries, by environment.
    ceilings: rates "before" and "after" the last run that added results.
    """

    suite: str
    title: str
    about: str
    command: str
    date: str
    commit: str
    machine: dict
    environments: dict[str, dict[str, str]]
    options: dict
    ceilings: dict[str, dict[str, float]] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, result: Result):
        """Takes the place of the result of the same cell, or comes last."""
        for index, earlier in enumerate(self.results):
            if earlier.cell.name == result.cell.name:
                self.results[index] = result
                return
        self.results.append(result)

    def sort(self, names: list[str]):
        """Brings the results into the order of `names`, and drops those of cells that are no more."""
        by_name = {result.cell.name: result for result in self.results}
        self.results = [by_name[name] for name in names if name in by_name]

    def comparable(self, other: "Record") -> bool:
        """Whether the results of both may stand in one table: one machine, and the same versions."""
        shared = self.environments.keys() & other.environments.keys()
        return self.machine == other.machine and all(
            self.environments[name] == other.environments[name] for name in shared
        )

    def take_over(self, earlier: "Record"):
        """Keeps the results of an earlier record, to which others are added."""
        self.results = list(earlier.results)
        self.environments = {**earlier.environments, **self.environments}

    def to_json(self) -> dict:
        return {**vars(self), "results": [{**each.to_json(), "summary": summary(each)} for each in self.results]}

    @classmethod
    def from_json(cls, data: dict) -> "Record":
        """The inverse of `to_json`; raises ValueError, TypeError or KeyError for what is no record."""
        return cls(**{**data, "results": [Result.from_json(each) for each in data["results"]]})


def summary(result: Result) -> dict:
    """What follows from the samples of a result, for readers of the JSON."""
    return {
        "throughput": {each.contestant: throughput(result.cell, each) for each in result.measurements},
        "ratios": {name: vars(value) for name, value in ratios(result).items()},
        "share_of_bound": {each.contestant: bound_share(result, each) for each in result.measurements},
        "goal": verdicts(result),
    }


def read(path: Path) -> Record | None:
    """The record at `path`; None where there is none that can be read."""
    try:
        return Record.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write(path: Path, content: bytes):
    """Writes a file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
