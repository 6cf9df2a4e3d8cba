"""What the commands give: lines on stdout, and files of embeddings."""

import json
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from ._cli_messages import UsageError


EMBEDDING_SUFFIXES = (".safetensors", ".npy")


def print_record(record: dict):
    """Prints `record` as one line of JSON."""
    # Escapes are for terminals and files that cannot hold the characters themselves.
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print_line(json.dumps(record, ensure_ascii=not unicode))


def print_columns(*columns: str):
    """Prints tab-separated columns; the white space of each but the first, which is a name, becomes single spaces."""
    name, *texts = columns
    print_line("\t".join([name, *(" ".join(text.split()) for text in texts)]))


def print_line(line: str):
    tqdm.write(line, file=sys.stdout)  # above the progress bar, where both are on the terminal
    sys.stdout.flush()


def check_embedding_file(path: Path, num_kinds: int):
    """Raises `UsageError` where embeddings of that many kinds (images, texts) cannot be written to `path`."""
    check_output_file(path, EMBEDDING_SUFFIXES)
    if path.suffix.lower() == ".npy" and num_kinds > 1:
        raise UsageError(
            "A .npy file holds one array: embed images and texts one after the other, or into a .safetensors file."
        )


def check_output_file(path: Path, suffixes: tuple[str, ...]):
    """Raises `UsageError` where no file with one of those suffixes can be written to `path`."""
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"--output {path} must end in {' or '.join(suffixes)}.")
    if not path.parent.is_dir() or path.is_dir():
        problem = "is a folder" if path.is_dir() else f"is in {path.parent}, which is not a folder that exists"
        raise UsageError(f"--output {path} {problem}.")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"--output {path} is in a folder that cannot be written to.")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to, whose file takes the name `path` once it is whole."""
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_embeddings(path: Path, embeddings: dict, names: dict[str, list[str]]):
    """Writes embeddings to a file that takes its name once it is whole.

    Args:
        path: a `.safetensors` file, which gets all tensors, and `names` as JSON lists in its metadata; or a `.npy`
            file, which gets the one array there is.
        embeddings: name -> float32 tensor (inputs, projection_dim) on the CPU.
        names: metadata key -> name of each row.
    """
    with written_whole(path) as temporary:
        if path.suffix.lower() == ".npy":
            import numpy

            (embedding,) = embeddings.values()
            with temporary.open("wb") as file:
                numpy.save(file, embedding.numpy(), allow_pickle=False)
        else:
            from safetensors.torch import save_file

            save_file(embeddings, temporary, {key: json.dumps(rows) for key, rows in names.items()})
