"""Where each contestant of a suite is, and the environment that it runs in.

A module has `CONTESTANTS`, its classes by the names that are used here; harness/worker.py says what a class has.
"""

# (suite, contestant) -> (environment of harness/environments.py, module)
TABLE: dict[tuple[str, str], tuple[str, str]] = {}


def find(suite: str, contestant: str) -> tuple[str, str]:
    """Environment and module of a contestant."""
    if (suite, contestant) not in TABLE:
        raise ValueError(f"Contestant {contestant!r} of suite {suite!r} has no row in contestants/__init__.py.")
    return TABLE[suite, contestant]
