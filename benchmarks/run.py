"""Measure us and our peers side by side: the same weights, inputs and threads, in turn, in processes of their own.

    python benchmarks/run.py --suite caption encoder
    python benchmarks/run.py --suite encoder --only "ViT-B-32 image.*float32$" --rounds 9 --processes 3
    python benchmarks/run.py --quick --json
    python benchmarks/run.py --pages

`make bench` makes the environments and runs all suites. Results are kept by machine, in results/SUITE/MACHINE.json; a
page for each suite shows those of all machines.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, fields
from pathlib import Path

import contestants
import suites
from harness import report
from harness.cells import NotRun, Options, Record
from harness.machine import available_cores
from harness.measure import BENCHMARKS, ROOT, Worker, WorkerError, log, measure


QUICK_ROUNDS = 2


def expression(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1.")
    return int(text)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", nargs="+", choices=suites.SUITES, default=suites.SUITES, help="which; all of them")
    parser.add_argument("--only", type=expression, metavar="REGEX", help="cells whose name it finds; others are kept")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=count, default=available_cores(), help="of each process; all cores")
    parser.add_argument("--rounds", type=count, help=f"the most samples of a contestant ({Options.rounds})")
    parser.add_argument("--budget", type=float, default=Options.budget, help="seconds of a cell (%(default)g)")
    parser.add_argument(
        "--processes", type=count, default=Options.processes, help="of a contestant, one after the other (%(default)d)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--json", action="store_true", help="print the results as JSON, by suite")
    parser.add_argument("--pages", action="store_true", help="write the pages of the stored results, measure nothing")
    parser.add_argument("--output", type=Path, help="folder of the results (benchmarks/results; none with --quick)")
    parsed = parser.parse_args(arguments)
    parsed.rounds = parsed.rounds or (QUICK_ROUNDS if parsed.quick else Options.rounds)
    if parsed.output is None and not parsed.quick:
        parsed.output = BENCHMARKS / "results"
    return parsed


def command_of(suite: str, options: Options) -> str:
    """The command that measures all of a suite again."""
    usual = asdict(Options(threads=available_cores()))
    changed = [
        f"--{name} {value}" for name, value in asdict(options).items() if name != "quick" and value != usual[name]
    ]
    return " ".join(["python benchmarks/run.py --suite", suite, *changed, *["--quick"] * options.quick])


def commit() -> str:
    """The commit of the checkout, and whether files other than results differ from it; empty where it is unknown."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short=10", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def describe(environment: str, options: Options, folder: Path) -> dict:
    with Worker(environment, folder, options.threads) as worker:
        return worker.ask("describe", device=options.device)


def ceilings(options: Options, folder: Path) -> dict[str, float]:
    """The rates of the machine, in a process like those of the contestants; none where they cannot be measured."""
    try:
        with Worker("newest", folder, options.threads) as worker:
            return worker.ask("ceilings", device=options.device, quick=options.quick)
    except WorkerError as error:
        log(f"The ceilings could not be measured: {error}")
        return {}


def new_record(suite: str, environments: set[str], options: Options, folder: Path) -> Record:
    """A record without results, of the machine and the environments that are there; rows tell which are missing."""
    described = describe("newest", options, folder)
    if options.device != "cpu" and described["machine"]["gpu"] is None:
        raise NotRun(f"There is no GPU that torch can use for --device {options.device}.")
    machine = {**described["machine"], "threads": options.threads}
    record = Record(suite, command_of(suite, options), machine, {"newest": described["versions"]})
    for name in sorted(environments - {"newest"}):
        try:
            record.environments[name] = describe(name, options, folder)["versions"]
        except (NotRun, WorkerError) as error:
            log(str(error))
    return record


def keep_earlier(record: Record, earlier: Record):
    """Take over the results of other cells on this machine, where versions are the same."""
    shared = record.environments.keys() & earlier.environments.keys()
    if any(record.environments[name] != earlier.environments[name] for name in shared):
        log(f"Results of {record.suite} on this machine were measured with other versions: they are replaced.")
        return
    record.results, record.notes = earlier.results, earlier.notes
    record.environments = {**earlier.environments, **record.environments}


def run_suite(name: str, options: Options, only: re.Pattern[str] | None, output: Path | None) -> Record:
    """Measure a suite, and write its record after each cell and its page at the end to `output`, if given.

    only: measure the cells whose name it finds, and keep the results of the others.

    Raises:
        ValueError: `only` finds no cell, or a stored record cannot be read.
        NotRun: there is no GPU for the device, or the suite has nothing to measure on it.
    """
    every_cell = suites.load(name).cells(options)
    names = [cell.name for cell in every_cell]
    cells = [cell for cell in every_cell if only is None or only.search(cell.name)]
    if not every_cell:
        raise NotRun(f"{name} has nothing to measure on {options.device}.")
    if not cells:
        raise ValueError(f"No cell of {name} has a name that {only.pattern!r} finds: {', '.join(names)}")
    # A record that cannot be read is an error now, and not once all is measured.
    stored = {each.stem: each for each in report.stored_records(name, output)} if output is not None else {}
    with tempfile.TemporaryDirectory(prefix="benchmark_") as temporary:
        folder, at = Path(temporary), commit()
        environments = {contestants.find(name, each)[0] for cell in cells for each in cell.contestants}
        record = new_record(name, environments, options, folder)
        if only is not None and record.stem in stored:
            keep_earlier(record, stored[record.stem])
        record.ceilings["before"] = ceilings(options, folder)
        for result in measure(cells, options, folder):
            result.commit = at
            record.add(result, names)
            if output is not None:
                record.write(output)
        record.ceilings["after"] = ceilings(options, folder)
    if output is not None:
        record.write(output)
        report.write_page(name, output)
    return record


def main(arguments: list[str] | None = None) -> int:
    """Run the suites that are asked for; return the exit code, 2 where nothing can be run."""
    parsed = parse_arguments(arguments)
    if parsed.pages:
        for name in parsed.suite:
            report.write_page(name, parsed.output or BENCHMARKS / "results")
        return 0
    options = Options(**{each.name: getattr(parsed, each.name) for each in fields(Options)})
    records = {}
    for name in parsed.suite:
        try:
            records[name] = run_suite(name, options, parsed.only, parsed.output)
        except (NotRun, ValueError) as error:
            log(str(error))
            continue
        if not parsed.json:
            print(*report.section(records[name], []), sep="\n\n", end="\n\n", flush=True)
    if parsed.json:
        print(json.dumps({name: record.with_ratios() for name, record in records.items()}, indent=1))
    return 0 if records else 2


if __name__ == "__main__":
    # Ends workers, and removes the weights that were made, gigabytes of them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
