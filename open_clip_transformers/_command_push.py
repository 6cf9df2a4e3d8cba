"""`open-clip-transformers push`."""

from pathlib import Path
from typing import Annotated

import typer

from ._cli_messages import errors_as_messages
from ._cli_options import Traceback


def push(
    folder: Annotated[Path, typer.Argument(help="A converted folder with a model card.")],
    repo_id: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="The repository, org/name, or a name of your own.")
    ],
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="For a new repository; by default the account's setting.")
    ] = None,
    revision: Annotated[str, typer.Option(metavar="BRANCH", help="Branch to upload to.")] = "main",
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    with_code: Annotated[
        bool, typer.Option("--bundle/--no-bundle", help="First put the model's code beside it, as bundle does.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and upload nothing.")] = False,
    traceback: Traceback = False,
):
    """Upload a converted folder to the Hugging Face Hub.

    First prints what will be added, changed and kept. Files that the repository has already are not sent; after an
    interruption the same command goes on. Files that could run code when loaded are refused.
    """
    with errors_as_messages(traceback):
        from .convert_scripts.bundle import bundle_folder
        from .convert_scripts.push import plan_push, push_folder

        if with_code and not dry_run:
            bundle_folder(folder)
        plan = plan_push(folder, repo_id, revision=revision)
        typer.echo(str(plan))
        if not dry_run:
            typer.echo(push_folder(plan, private=private, create_pr=create_pr))
