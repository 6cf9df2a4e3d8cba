"""The environments that contestants run in, by name, and what every process of a run finds in its own."""

import os
import sys
from pathlib import Path

from .cells import NotRun


BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
# Name -> the environment's Python, from the root of the repository; None is the Python that runs the benchmarks.
# "captioning" holds the last transformers on which open_clip 3.3.0 writes captions.
ENVIRONMENTS = {"newest": None, "captioning": ".venv-captioning/bin/python"}


def python_of(environment: str) -> str:
    """The Python of an environment, which BENCH_<NAME>_PYTHON sets; raises NotRun where there is none."""
    variable = f"BENCH_{environment.upper()}_PYTHON"
    place = os.environ.get(variable) or ENVIRONMENTS[environment]
    if place is None:
        return sys.executable
    python = ROOT / place
    if not python.exists():
        raise NotRun(f'no Python of the environment "{environment}" at {place}: run `make bench`, or set {variable}')
    return str(python)


def variables(threads: int) -> dict[str, str]:
    """Environment variables of a worker: the same for all, offline, with so many threads."""
    places = [str(BENCHMARKS), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    set_here = {
        "OMP_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONPATH": os.pathsep.join(places),
    }
    inherited = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    return {**inherited, **set_here}
