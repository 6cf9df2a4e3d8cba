"""The command line, a `_command_*.py` file for each command.

Only what every call needs is imported here and in those files; torch and transformers come with the command that works
with them, so that `--help` and usage errors are quick. Exit codes: 0 for success, 1 where something failed, 2 where
what was asked for cannot be done.
"""

import sys
from typing import Annotated

import typer

from . import __version__
from ._command_attention import attention
from ._command_bundle import bundle
from ._command_caption import caption
from ._command_card import card
from ._command_classify import classify
from ._command_convert import convert
from ._command_embed import embed
from ._command_models import models
from ._command_push import push
from ._command_to_open_clip import to_open_clip
from ._command_verify import verify


app = typer.Typer(
    help="open_clip's CLIP and CoCa models as transformers models.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Without markup, messages stay lines as they are, wherever they go.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool):
    if wanted:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
):
    pass


for command in (convert, verify, models, caption, classify, embed, attention, bundle, card, push, to_open_clip):
    app.command()(command)


def main():
    """Runs the command line on `sys.argv`."""
    # Names of files, and captions, may hold what the terminal's encoding cannot show.
    sys.stdout.reconfigure(errors="backslashreplace")
    app(prog_name="open-clip-transformers")


if __name__ == "__main__":
    main()
