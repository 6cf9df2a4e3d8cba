"""Options that several commands have."""

from enum import Enum
from typing import Annotated

import typer


class Dtype(str, Enum):
    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


IMAGES_HELP = (
    "Files, folders (searched with their subfolders), patterns such as 'scans/**/*.png', http(s) URLs, or - for lines "
    "of these on standard input."
)
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A converted folder, or a Hub id of one.")]
Images = Annotated[list[str], typer.Argument(metavar="IMAGE", help=IMAGES_HELP)]
BatchSize = Annotated[int, typer.Option(min=1, help="Images that the model works on at once.")]
Device = Annotated[str, typer.Option(help="Such as cpu or cuda:1; auto is this machine's accelerator, if it has one.")]
ModelDtype = Annotated[Dtype, typer.Option(help="What to compute in; auto is what the model was saved in.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error was raised.")]
