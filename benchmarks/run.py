"""Measures us and our peers side by side: the same weights, inputs and threads, in turn, in processes of their own.

    python benchmarks/run.py --suite caption encoder
    python benchmarks/run.py --suite encoder --only "ViT-B-32 image.*float32$" --rounds 9 --processes 3
    python benchmarks/run.py --quick --json

`make bench` makes the environments and runs all suites. A page of results (Markdown, JSON, PNG) is written for each.
"""

import argparse
import json
import re
import signal
import sys
from pathlib import Path

from harness import report
from harness.cells import NotRun, Options
from harness.environments import BENCHMARKS
from harness.machine import available_cores
from harness.runner import log
from harness.session import run_suite
from suites import SUITES


QUICK_ROUNDS = 2


def expression(text: str) -> re.Pattern[str]:
    """A regular expression that takes letters of any case."""
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1.")
    return int(text)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", nargs="+", choices=SUITES, default=SUITES, help="which; all of them")
    parser.add_argument(
        "--only",
        type=expression,
        metavar="REGEX",
        help="cells whose name it finds; added to the results that there are",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=count, default=available_cores(), help="of each process; all cores")
    parser.add_argument("--rounds", type=count, help=f"the most samples of a contestant ({Options.rounds})")
    parser.add_argument("--budget", type=float, default=Options.budget, help="seconds of a cell (%(default)g)")
    parser.add_argument(
        "--processes",
        type=count,
        default=Options.processes,
        help="of a contestant, one after the other, as they differ (%(default)d)",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--json", action="store_true", help="print the results as JSON, by suite")
    parser.add_argument("--output", type=Path, help="folder of the results (benchmarks/results; none with --quick)")
    parsed = parser.parse_args(arguments)
    parsed.rounds = parsed.rounds or (QUICK_ROUNDS if parsed.quick else Options.rounds)
    if parsed.output is None and not parsed.quick:
        parsed.output = BENCHMARKS / "results"
    return parsed


def main(arguments: list[str] | None = None) -> int:
    """Runs the suites that are asked for; returns the exit code, 2 where nothing can be run."""
    parsed = parse_arguments(arguments)
    options = Options(parsed.device, parsed.threads, parsed.rounds, parsed.budget, parsed.processes, parsed.quick)
    records = {}
    for name in parsed.suite:
        try:
            records[name] = run_suite(name, options, parsed.only, parsed.output)
        except (NotRun, ValueError) as error:
            log(str(error))
            continue
        if not parsed.json:
            print(report.console(records[name]), end="\n\n", flush=True)
    if parsed.json:
        print(json.dumps({name: record.to_json() for name, record in records.items()}, indent=1))
    return 0 if records else 2


if __name__ == "__main__":
    # Ends workers, and removes the weights that were made, gigabytes of them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
