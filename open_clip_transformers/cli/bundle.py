"""`open-clip-transformers bundle`."""

from pathlib import Path
from typing import Annotated

import typer

from .messages import errors_as_messages
from .options import Traceback


def bundle(
    folder: Annotated[Path, typer.Argument(help="A folder that convert wrote, or that save_pretrained did.")],
    traceback: Traceback = False,
):
    """Put a model's code beside its weights, for a Hub repository that works where this package is not installed.

    The folder, and a repository made of it, then load in any process with transformers and trust_remote_code=True.
    Where the package is installed, nothing needs to be trusted. Prints the names of the files written.
    """
    with errors_as_messages(traceback):
        from ..convert_scripts.hub.bundle import bundle_folder

        for name in bundle_folder(folder):
            typer.echo(name)
