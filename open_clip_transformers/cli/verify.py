"""`open-clip-transformers verify`."""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..convert_scripts.common import user_path
from .messages import UsageError, errors_as_messages, hide_progress_bars_in_logs
from .options import SOURCE_HELP, ConfigFile, Ema, ModelName, PretrainedTag, Revision, Traceback


class VerifiedDtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Skip(str, Enum):
    weights = "weights"
    pixels = "pixels"
    tokens = "tokens"
    intermediates = "intermediates"
    captions = "captions"
    losses = "losses"
    gradients = "gradients"


def verify(
    folder: Annotated[Path, typer.Argument(help="A converted folder.")],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help=f"What it was converted from, by default what conversion.json in FOLDER names. {SOURCE_HELP}",
        ),
    ] = None,
    model: ModelName = None,
    config: ConfigFile = None,
    pretrained: PretrainedTag = None,
    revision: Revision = None,
    ema: Ema = False,
    dtype: Annotated[
        list[VerifiedDtype] | None,
        typer.Option(help="What to compute in; may be given several times, by default all three."),
    ] = None,
    skip: Annotated[
        list[Skip] | None,
        typer.Option(help="What not to compare; may be given several times. Gradients need the most time and memory."),
    ] = None,
    images: Annotated[int, typer.Option(min=2, help="Images to compare on, and as many texts.")] = 4,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder for the report, by default FOLDER itself.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
    traceback: Traceback = False,
):
    """Compare a converted folder with open_clip running the checkpoint.

    Compares pixels, tokens, what layers return, features, logits, captions, losses and gradients, in fp32, and in half
    precision by how far each library is from fp32. Writes verification.md and verification.json, and prints what is
    compared and the first layer that differs. The exit code is 1 where anything is further off than its bound.
    """
    with errors_as_messages(traceback):
        if not user_path(folder).is_dir():
            raise UsageError(f"{folder}: there is no such folder; expected one that `convert` has written.")

        from ..convert_scripts.verify.folder import VERIFIED_DTYPES, verify_folder
        from ..convert_scripts.verify.reference import require_open_clip

        try:
            require_open_clip()
        except ValueError as error:
            raise UsageError(str(error)) from error
        hide_progress_bars_in_logs()
        report = verify_folder(
            folder,
            against,
            model_name=model,
            config=config,
            pretrained=pretrained,
            revision=revision,
            ema=ema,
            dtypes=[name.value for name in dtype] if dtype else VERIFIED_DTYPES,
            skip=[group.value for group in skip or []],
            pairs=images,
            output_dir=output,
        )
        typer.echo(json.dumps(report.to_dict()) if as_json else str(report))
        raise typer.Exit(0 if report.passed else 1)
