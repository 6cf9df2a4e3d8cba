"""Settings of every test: offline, one thread per worker, seeded, and no traces outside temporary folders."""

import os
import random
import tempfile
from pathlib import Path


# All of these are read when libraries are imported, hence before the imports below; subprocesses inherit them.
_CACHE = tempfile.TemporaryDirectory(prefix="open_clip_transformers_tests_")
os.environ["HF_HOME"] = _CACHE.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy
import pytest
import torch


torch.set_num_threads(1)

# Every test in these folders is marked `floor`: what the oldest supported transformers could break.
FLOOR = {Path(__file__).parent / folder for folder in ("hf_suite", "modeling", "parity", "pipelines", "processing")}


def pytest_collection_modifyitems(items):
    for item in items:
        if FLOOR & set(item.path.parents):
            item.add_marker("floor")


def pytest_report_header():
    from importlib.metadata import version

    names = ("torch", "transformers", "huggingface_hub", "tokenizers", "open_clip_torch")
    return ", ".join(f"{name} {version(name)}" for name in names)


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
