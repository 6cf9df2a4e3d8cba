"""The error that every refused or failed conversion raises."""

# The import package that this folder is part of.
PACKAGE = __package__.rpartition(".")[0]


class ConversionError(ValueError):
    """A checkpoint cannot be converted; the message says what was found, what was expected and what to do."""


def listing(items, limit: int = 20) -> str:
    """`items` as an indented list for an error message, cut after `limit` lines."""
    items = [str(item) for item in items]
    rest = [f"... and {len(items) - limit} more"] if len(items) > limit else []
    return "".join(f"\n  {item}" for item in items[:limit] + rest)
