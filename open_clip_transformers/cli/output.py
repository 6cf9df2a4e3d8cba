"""Lines on stdout, and files that are there once they are whole."""

import json
import os
import sys
from pathlib import Path

import typer
from tqdm import tqdm

from ..configuration.errors import printable
from .messages import UsageError


def print_record(record: dict):
    """Print `record` as one line of JSON."""
    # Escapes are for terminals and files that cannot hold the characters themselves.
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    line = json.dumps(record, ensure_ascii=not unicode)
    # JSON escapes the first 32 control characters alone.
    print_line(line if line == printable(line) else json.dumps(record))


def print_columns(*columns: str):
    """Print tab-separated columns, one line whatever is in them: white space of each but the first becomes spaces."""
    name, *texts = columns
    texts = [" ".join(text.split()) for text in texts]
    print_line("\t".join(printable(column, keep="") for column in (name, *texts)))


def print_text(text: object):
    """Print lines for people, without control characters of what they name."""
    typer.echo(printable(str(text)))


def print_line(line: str):
    tqdm.write(line, file=sys.stdout)  # above the progress bar, where both are on the terminal
    sys.stdout.flush()


def check_output_file(path: Path, suffixes: tuple[str, ...]):
    """Raise `UsageError` where no file with one of those suffixes can be written to `path`."""
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"--output {path} must end in {' or '.join(suffixes)}.")
    if not path.parent.is_dir() or path.is_dir():
        problem = "is a folder" if path.is_dir() else f"is in {path.parent}, which is not a folder that exists"
        raise UsageError(f"--output {path} {problem}.")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"--output {path} is in a folder that cannot be written to.")
