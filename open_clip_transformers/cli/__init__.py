"""The command line, one file for each command.

The commands import torch and transformers when they run, so that `--help` and usage errors are quick. Exit codes: 0
for success, 1 where something failed, 2 where what was asked for cannot be done.
"""

import sys
from typing import Annotated

import typer

from .. import __version__
from . import (
    attention,
    bundle,
    caption,
    card,
    classify,
    convert,
    demo,
    embed,
    evaluate,
    models,
    push,
    search,
    space,
    to_open_clip,
    verify,
)


COMMANDS = (
    convert.convert,
    verify.verify,
    models.models,
    caption.caption,
    classify.classify,
    embed.embed,
    evaluate.evaluate,
    search.search,
    attention.attention,
    demo.demo,
    bundle.bundle,
    card.card,
    push.push,
    space.space,
    to_open_clip.to_open_clip,
)

app = typer.Typer(
    help="open_clip's CLIP, CoCa and MaMMUT models as transformers models.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Without markup, messages stay lines as they are, wherever they go.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in COMMANDS:
    app.command()(command)


def _print_version(wanted: bool):
    if wanted:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _global_options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
):
    # Help and usage errors need no torch: this module has none either.
    from ..convert_scripts.common import options_in_messages

    context.with_resource(options_in_messages())


def main():
    """Run the command line on `sys.argv`."""
    # Names of files, and captions, may hold what the terminal's encoding cannot show.
    sys.stdout.reconfigure(errors="backslashreplace")
    app(prog_name="open-clip-transformers")
