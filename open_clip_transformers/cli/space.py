"""`open-clip-transformers space`."""

from pathlib import Path
from typing import Annotated

import typer

from ..convert_scripts.common import user_path
from .messages import UsageError, errors_as_messages, hide_progress_bars_in_logs
from .options import Traceback


def space(
    folder: Annotated[Path, typer.Argument(help="A converted folder, whose model is on the Hub.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="The Space, org/name, or a name of your own.")],
    model_id: Annotated[
        str | None,
        typer.Option(metavar="REPO_ID", help="The model on the Hub; by default what the folder's card names."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Write the Space here, and push nothing.")
    ] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="For a new Space; by default the account's setting.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, and change nothing; needs no network.")
    ] = False,
    traceback: Traceback = False,
):
    """Show a model in a Space: the page of `demo`, which the Hugging Face Hub runs.

    The Space loads the model from its repository, so `push` comes first; it needs no GPU. Prints what will be added,
    changed and removed, and keeps other files of the Space. `card --space REPO_ID` has the model's card link to it.
    """
    with errors_as_messages(traceback):
        if not user_path(folder).is_dir():
            raise UsageError(f"{folder}: there is no such folder; expected one that `convert` has written.")
        if output is not None and (dry_run or private is not None):
            raise UsageError("--output pushes nothing: leave out --dry-run, --private and --public, or --output.")

        from ..convert_scripts.hub.push import check_repo_id
        from ..convert_scripts.hub.space import check_model_id, plan_space, push_space, write_space

        try:
            check_repo_id(repo_id)
            if model_id is not None:
                check_model_id(model_id)
        except ValueError as error:
            raise UsageError(str(error)) from error
        hide_progress_bars_in_logs()
        if output is not None:
            typer.echo(write_space(folder, repo_id, output, model_id))
            return
        plan = plan_space(folder, repo_id, model_id=model_id, without_network=dry_run)
        typer.echo(str(plan))
        if not dry_run:
            typer.echo(push_space(plan, private=private))
