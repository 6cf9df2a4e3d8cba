"""`open-clip-transformers push`."""

from pathlib import Path
from typing import Annotated

import typer

from ..convert_scripts.common import user_path
from .messages import UsageError, errors_as_messages, hide_progress_bars_in_logs
from .options import Traceback


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
        bool,
        typer.Option("--bundle/--no-bundle", help="Put the model's code beside it, as bundle does, and upload it."),
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, and change nothing; needs no network.")
    ] = False,
    traceback: Traceback = False,
):
    """Upload a converted folder to the Hugging Face Hub.

    First prints what will be added, changed and kept. Files that the repository has already are not sent; after an
    interruption the same command goes on. Files that could run code when loaded are refused. Examples of the card that
    load the model under another name are changed to REPO_ID.
    """
    with errors_as_messages(traceback):
        if not user_path(folder).is_dir():
            raise UsageError(f"{folder}: there is no such folder; expected one that `convert` has written.")
        if create_pr and revision != "main":
            raise UsageError("A pull request is for the branch main: leave out --revision or --create-pr.")

        from ..convert_scripts.hub.push import check_branch, check_repo_id, plan_push, push_folder

        try:
            check_repo_id(repo_id)
            check_branch(revision)
        except ValueError as error:
            raise UsageError(str(error)) from error
        hide_progress_bars_in_logs()
        plan = plan_push(folder, repo_id, revision=revision, with_code=with_code, without_network=dry_run)
        typer.echo(str(plan))
        if not dry_run:
            typer.echo(push_folder(plan, private=private, create_pr=create_pr))
