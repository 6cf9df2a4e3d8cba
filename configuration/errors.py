"""Errors whose messages are meant for users, told apart from faults by their class. Imports nothing that is slow."""

import re


# Characters that a terminal obeys or that turn the direction of a line, none of which a message needs.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: str, keep: str = "\n") -> str:
    """`text` with escapes in place of control characters but those of `keep`: names and files may hold any."""
    return _CONTROLS.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


class UserError(ValueError):
    """An error whose message says what was found, what was expected and what to do; the command line shows it bare."""

    def __init__(self, message: object = ""):
        super().__init__(printable(str(message)))


class MissingPackageError(UserError, ImportError):
    """A package that something optional needs is not installed."""
