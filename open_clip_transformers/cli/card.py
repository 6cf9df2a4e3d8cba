"""`open-clip-transformers card`."""

from pathlib import Path
from typing import Annotated

import typer

from .messages import errors_as_messages
from .options import Traceback


def card(
    folder: Annotated[Path, typer.Argument(help="A folder that convert wrote.")],
    model_id: Annotated[
        str | None, typer.Option(metavar="REPO_ID", help="The Hub id that the card's examples name.")
    ] = None,
    traceback: Traceback = False,
):
    """Write a model card, README.md, into a converted folder.

    It says how to use the model, how images are prepared, where the weights come from and what was verified. The
    licence is the one that the original weights' card names, and left out where there is none.
    """
    with errors_as_messages(traceback):
        from ..convert_scripts.hub.card import write_model_card

        typer.echo(write_model_card(folder, model_id))
