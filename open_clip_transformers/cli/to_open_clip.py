"""`open-clip-transformers to-open-clip`."""

from pathlib import Path
from typing import Annotated

import typer

from .messages import errors_as_messages, hide_progress_bars_in_logs
from .options import Dtype, Traceback, Verify, VerifyConversion
from .output import print_text


def to_open_clip(
    folder: Annotated[Path, typer.Argument(help="A converted folder.")],
    output: Annotated[Path, typer.Argument(help="The folder to write, new or empty.")],
    dtype: Annotated[Dtype, typer.Option(help="What to write; auto is the folder's.")] = Dtype.auto,
    verify: VerifyConversion = Verify.auto,
    processor: Annotated[
        bool, typer.Option("--processor/--no-processor", help="Also write image settings and tokenizer.")
    ] = True,
    hf_tokenizer_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Hub id at which open_clip will find a tokenizer that is not CLIP's."),
    ] = None,
    traceback: Traceback = False,
):
    """Convert a folder back to one that open_clip loads as local-dir:OUTPUT.

    Prints what was written and verified. The folder is not changed; a conversion that fails writes nothing.
    """
    with errors_as_messages(traceback):
        from ..convert_scripts.convert_to_open_clip import convert_to_open_clip

        hide_progress_bars_in_logs()
        report = convert_to_open_clip(
            folder,
            output,
            with_processor=processor,
            hf_tokenizer_name=hf_tokenizer_name,
            dtype=None if dtype == Dtype.auto else dtype.value,
            verify=verify.value,
        )
        print_text(report)
