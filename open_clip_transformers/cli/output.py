"""Lines on stdout, and files that are there once they are whole."""

import json
import os
import sys
from pathlib import Path

from tqdm import tqdm

from .messages import UsageError


def print_record(record: dict):
    """Print `record` as one line of JSON."""
    # Escapes are for terminals and files that cannot hold the characters themselves.
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print_line(json.dumps(record, ensure_ascii=not unicode))


def print_columns(*columns: str):
    """Print tab-separated columns; the white space of each but the first, which is a name, becomes single spaces."""
    name, *texts = columns
    print_line("\t".join([name, *(" ".join(text.split()) for text in texts)]))


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
