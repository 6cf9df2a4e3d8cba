"""Put the benchmarks on the path, as `benchmarks/run.py` has them."""

import sys
from pathlib import Path


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
