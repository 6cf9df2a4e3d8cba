"""What the commands give: lines on stdout, and files of embeddings."""

import json
import os
import sys
import uuid
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
    suffix = path.suffix.lower()
    if suffix not in EMBEDDING_SUFFIXES:
        raise UsageError(f"--output {path} must end in {' or '.join(EMBEDDING_SUFFIXES)}.")
    if not path.parent.is_dir() or path.is_dir():
        problem = "is a folder" if path.is_dir() else f"is in {path.parent}, which is not a folder that exists"
        raise UsageError(f"--output {path} {problem}.")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"--output {path} is in a folder that cannot be written to.")
    if suffix == ".npy" and num_kinds > 1:
        raise UsageError(
            "A .npy file holds one array: embed images and texts one after the other, or into a .safetensors file."
        )


def save_embeddings(path: Path, embeddings: dict, names: dict[str, list[str]]):
    """Writes embeddings to a file that takes its name once it is whole.

    Args:
        path: a `.safetensors` file, which gets all tensors, and `names` as JSON lists in its metadata; or a `.npy`
            file, which gets the one array there is.
        embeddings: name -> float32 tensor (inputs, projection_dim) on the CPU.
        names: metadata key -> name of each row.
    """
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        if path.suffix.lower() == ".npy":
            import numpy

            (embedding,) = embeddings.values()
            with temporary.open("wb") as file:
                numpy.save(file, embedding.numpy(), allow_pickle=False)
        else:
            from safetensors.torch import save_file

            save_file(embeddings, temporary, {key: json.dumps(rows) for key, rows in names.items()})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
