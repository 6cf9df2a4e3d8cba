"""Lets tests import the benchmarks as `benchmarks/run.py` does."""

import sys
from pathlib import Path


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
