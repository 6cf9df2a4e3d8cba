"""Messages and exit codes of the command line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from tqdm import tqdm

from ..configuration.errors import UserError, printable


INPUT_FAILED = 1
USAGE = 2


class UsageError(UserError):
    """A request that cannot be met, whatever the inputs hold; the message says what to do instead."""


def warn(message: str):
    """Print a message on stderr, above a progress bar if there is one."""
    tqdm.write(printable(message), file=sys.stderr)


def hide_progress_bars_in_logs():
    """Hide the progress bars of transformers where stderr is not a terminal; ours hide themselves."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()


@contextmanager
def errors_as_messages(show_traceback: bool) -> Iterator[None]:
    """Turn errors into a message on stderr and an exit code: 2 for a [`UsageError`], else 1.

    Those meant for users are a [`UserError`], or an `OSError`, which is about their files or their network. All others
    are faults, of this package or of another: the message asks for a report.

    Args:
        show_traceback: let them pass, so that Python shows where they were raised.
    """
    try:
        yield
    # Of typer and of a reader that left (`| head`): not errors. typer's other exceptions are no ordinary ones here.
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except Exception as error:
        if show_traceback:
            raise
        if isinstance(error, UserError | OSError) and str(error):
            warn(f"Error: {error}")
        else:
            warn(
                f"Error: {type(error).__name__}: {error}\nThis should not happen: please report it, with the command "
                "and what --traceback shows."
            )
        raise typer.Exit(USAGE if isinstance(error, UsageError) else 1) from error


class Failures:
    """Report inputs that cannot be used, and count them."""

    def __init__(self):
        self.count = 0

    def add(self, name: str, reason: str | Exception):
        """Report that input `name` is left out."""
        self.count += 1
        reason = " ".join(str(reason).split()) or type(reason).__name__
        warn(f"{printable(name, keep='')}: {reason}")

    def exit_code(self) -> int:
        """Return the exit code of a command that is done, and say how many inputs were left out."""
        if not self.count:
            return 0
        warn(f"{self.count} {'input was' if self.count == 1 else 'inputs were'} left out, see above.")
        return INPUT_FAILED
