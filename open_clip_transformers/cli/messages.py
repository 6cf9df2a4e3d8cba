"""Messages and exit codes of the command line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from tqdm import tqdm


INPUT_FAILED = 1
USAGE = 2


class UsageError(ValueError):
    """A request that cannot be met, whatever the inputs hold; the message says what to do instead."""


def warn(message: str):
    """Print a line on stderr, above a progress bar if there is one."""
    tqdm.write(message, file=sys.stderr)


def hide_progress_bars_in_logs():
    """Hide the progress bars of transformers where stderr is not a terminal; ours hide themselves."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()


@contextmanager
def errors_as_messages(show_traceback: bool) -> Iterator[None]:
    """Turn errors into a message on stderr and an exit code: 2 for a [`UsageError`], else 1.

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
        # House rule: these three carry messages for users. Others need their name to make sense.
        meant_for_users = isinstance(error, ValueError | TypeError | OSError) and str(error)
        reason = str(error) if meant_for_users else f"{type(error).__name__}: {error} (--traceback shows where)"
        warn(f"Error: {reason}")
        raise typer.Exit(USAGE if isinstance(error, UsageError) else 1) from error


class Failures:
    """Report inputs that cannot be used, and count them."""

    def __init__(self):
        self.count = 0

    def add(self, name: str, reason: str | Exception):
        """Report that input `name` is left out."""
        self.count += 1
        warn(f"{name}: {reason or type(reason).__name__}")

    def exit_code(self) -> int:
        """Return the exit code of a command that is done, and say how many inputs were left out."""
        if not self.count:
            return 0
        warn(f"{self.count} {'input was' if self.count == 1 else 'inputs were'} left out, see above.")
        return INPUT_FAILED
