"""The error that every refused or failed conversion raises, and facts of the package."""

from importlib.metadata import PackageNotFoundError, metadata


# The import package that this folder is part of.
PACKAGE = __package__.rpartition(".")[0]


class ConversionError(ValueError):
    """A checkpoint cannot be converted; the message says what was found, what was expected and what to do."""


def listing(items, limit: int = 20) -> str:
    """`items` as an indented list for an error message, cut after `limit` lines."""
    items = [str(item) for item in items]
    rest = [f"... and {len(items) - limit} more"] if len(items) > limit else []
    return "".join(f"\n  {item}" for item in items[:limit] + rest)


def project_address() -> str | None:
    """What `pip install` takes to install this package: the `url` of setup.cfg; `None` where there is none."""
    try:
        address = metadata(PACKAGE)["Home-page"]
    except PackageNotFoundError:  # a checkout that is not installed
        return None
    return f"git+{address}" if address else None
