"""A run of a suite from its cells to its files."""

import datetime
import re
import tempfile
from dataclasses import asdict
from pathlib import Path

import contestants
import suites

from . import machine, report
from .ceilings import best_of, bound_seconds
from .cells import Cell, NotRun, Options, Result
from .environments import ROOT
from .plot import plot
from .records import Record, read, write
from .runner import describe, describe_error, log, run_cells
from .workers import WorkerError


def run_suite(name: str, options: Options, only: re.Pattern[str] | None = None, output: Path | None = None) -> Record:
    """Measures a suite, and writes its files to `output`, if given: the record after each cell, the page at the end.

    Args:
        only: measures the cells whose name this expression finds alone, and keeps what an earlier run on this
            machine, with these versions, has written of the others.

    Raises:
        ValueError: where `only` finds no cell.
        NotRun: where there is no GPU for the device, or the suite has nothing to measure on it.
    """
    suite = suites.load(name)
    every_cell = suite.cells(options)
    cells = [cell for cell in every_cell if only is None or only.search(cell.name)]
    if not every_cell:
        raise NotRun(f"{name} has nothing to measure on {options.device}.")
    if not cells:
        raise ValueError(
            f"No cell of {name} has a name that {only.pattern!r} finds: {', '.join(each.name for each in every_cell)}"
        )
    with tempfile.TemporaryDirectory(prefix="benchmark_") as temporary:
        folder = Path(temporary)
        record = _new_record(name, options, _describe_environments(cells, options, folder))
        if only is not None and output is not None:
            _take_over(record, output)

        def on_result(result: Result):
            result.commit = record.commit
            record.add(result)
            if output is not None:
                save_json(record, output)

        record.ceilings = run_cells(cells, options, folder, on_result)
    # By the ceilings that the page shows, also of results that an earlier run has left.
    best = best_of(record.ceilings.values())
    for result in record.results:
        result.bound_seconds = bound_seconds(result.bound, best)
    record.sort([cell.name for cell in every_cell])
    if hasattr(suite, "notes"):
        record.notes = suite.notes(record.results)
    if output is not None:
        save(record, output)
    return record


def save_json(record: Record, folder: Path):
    """Writes the record alone, to which a run of the cells that are left can be added."""
    write(folder / f"{file_stem(record)}.json", report.to_json(record).encode())


def save(record: Record, folder: Path):
    """Writes the JSON, the page and the picture of a record."""
    save_json(record, folder)
    stem = file_stem(record)
    picture = plot(record)
    if picture is not None:
        write(folder / f"{stem}.png", picture)
    write(folder / f"{stem}.md", report.markdown(record, picture and f"{stem}.png").encode())


def file_stem(record: Record) -> str:
    """What the files of a record are called: results of a GPU stand beside those of the CPU."""
    device = record.machine["device"]
    return record.suite if device == "cpu" else f"{record.suite}_{device}"


def _describe_environments(cells: list[Cell], options: Options, folder: Path) -> dict[str, dict]:
    """What the environments of the cells hold, the newest first; the rows say which are missing."""
    used = {contestants.find(cell.suite, name)[0] for cell in cells for name in cell.contestants}
    found = {"newest": describe("newest", options, folder)}
    if options.device != "cpu" and found["newest"]["gpu"] is None:
        raise NotRun(f"There is no GPU that torch can use for --device {options.device}.")
    for name in sorted(used - {"newest"}):
        try:
            found[name] = describe(name, options, folder)
        except (NotRun, WorkerError) as error:
            log(describe_error(error))
    return found


def _new_record(name: str, options: Options, found: dict[str, dict]) -> Record:
    suite = suites.load(name)
    return Record(
        suite=name,
        title=suite.TITLE,
        about=suite.ABOUT.strip(),
        command=_command(name, options),
        date=datetime.date.today().isoformat(),
        commit=machine.commit(ROOT),
        machine={**machine.describe(options.device, options.threads), "gpu": found["newest"]["gpu"]},
        environments={environment: each["versions"] for environment, each in found.items()},
        options=asdict(options),
    )


def _command(name: str, options: Options) -> str:
    """What makes the whole page again."""
    usual = {**asdict(Options()), "threads": machine.available_cores()}
    changed = [f"--{key} {value}" for key, value in asdict(options).items() if key != "quick" and value != usual[key]]
    return " ".join(["python benchmarks/run.py --suite", name, *changed, *(["--quick"] if options.quick else [])])


def _take_over(record: Record, folder: Path):
    path = folder / f"{file_stem(record)}.json"
    earlier = read(path)
    if earlier is None:
        return
    if record.comparable(earlier):
        record.take_over(earlier)
    else:
        log(f"{path} was measured on another machine or with other versions: it is replaced.")
