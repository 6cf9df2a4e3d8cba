"""Options that several commands have, and the files that they name."""

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .messages import UsageError


class Dtype(str, Enum):
    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Verify(str, Enum):
    auto = "auto"
    full = "full"
    structure = "structure"
    none = "none"


# Cores that this process may use, which in a container can be fewer than there are.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
DEFAULT_WORKERS = min(8, CORES)

IMAGES_HELP = (
    "Files, folders (searched with their subfolders), patterns such as 'scans/**/*.png', http(s) URLs, or - for lines "
    "of these on standard input. Also WebDataset tars ('tars/{00000..00009}.tar'), .parquet files, .txt lists, data "
    "sets of the library datasets (saved ones, or hf://datasets/org/name), here or at an address of fsspec."
)
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A converted folder, or a Hub id of one.")]
Images = Annotated[list[str], typer.Argument(metavar="IMAGE", help=IMAGES_HELP)]
BatchSize = Annotated[int, typer.Option(min=1, help="Images that the model works on at once.")]
Workers = Annotated[
    int, typer.Option(min=0, help="Processes that read images ahead of the model, fewer for few images; 0 for none.")
]
Device = Annotated[str, typer.Option(help="Such as cpu or cuda:1; auto is this machine's accelerator, if it has one.")]
ModelDtype = Annotated[Dtype, typer.Option(help="What to compute in; auto is what the model was saved in.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error was raised.")]

VerifyConversion = Annotated[
    Verify,
    typer.Option(
        help="full compares outputs with open_clip's, structure the tensors alone; auto is full where open_clip is "
        "installed."
    ),
]

# Where an open_clip checkpoint does not say by itself what it is.
SOURCE_HELP = (
    "A folder with open_clip_config.json, a Hub id (org/name or org/name@revision), a weights file, or with "
    "--pretrained an architecture."
)
ModelName = Annotated[
    str | None, typer.Option(metavar="NAME", help="open_clip's name of the architecture, such as coca_ViT-L-14.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The architecture as a file like open_clip_config.json; with --model, what differs from it.",
    ),
]
PretrainedTag = Annotated[
    str | None,
    typer.Option(
        metavar="TAG",
        help="open_clip's tag of the weights, as the command models lists them: downloads them for the architecture "
        "SOURCE, or, with --model, says what the weights in SOURCE are.",
    ),
]
Revision = Annotated[str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of the Hub repository.")]
Ema = Annotated[
    bool, typer.Option("--ema", help="Take the averaged weights that a training checkpoint keeps beside the others.")
]


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file that hold anything, without white space at their ends.

    Raises:
        UsageError: it cannot be read as UTF-8, or holds nothing.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as text: {error}") from error
    if lines := [line for line in lines if line]:
        return lines
    raise UsageError(f"{path} holds no text: expected one entry a line.")
