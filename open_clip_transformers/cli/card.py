"""`open-clip-transformers card`."""

from pathlib import Path
from typing import Annotated

import typer

from .messages import errors_as_messages
from .options import Traceback


def card(
    folder: Annotated[Path, typer.Argument(help="A folder that convert wrote, or that save_pretrained did.")],
    model_id: Annotated[
        str | None, typer.Option(metavar="REPO_ID", help="The Hub id that the card's examples name.")
    ] = None,
    license: Annotated[
        str | None, typer.Option(metavar="NAME", help="The Hub's name of the licence, such as mit or cc-by-nc-4.0.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(metavar="REPO_ID", help="The model that it was fine-tuned or converted from.")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What it was trained on; may be given several times.")
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(metavar="CODE", help="A language of its texts, such as en; may be given several times."),
    ] = None,
    space: Annotated[
        str | None, typer.Option(metavar="REPO_ID", help="A Space that shows the model, which the card links to.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a card that is there.")] = False,
    traceback: Traceback = False,
):
    """Write a model card, README.md, into a folder.

    It says how to use the model, how images are prepared, where the weights come from and what was verified. The
    licence is by default the one that the original weights' card names, and left out where there is none.
    """
    with errors_as_messages(traceback):
        from ..convert_scripts.hub.card import write_model_card

        path = write_model_card(
            folder,
            model_id,
            force=force,
            license=license,
            base_model=base_model,
            datasets=dataset or (),
            languages=language or (),
            space=space,
        )
        typer.echo(path)
