"""The marks that transformers gives its tests."""

import re
from pathlib import Path

import transformers.testing_utils
from hf_suite import upstream


def pytest_configure(config):
    files = [Path(transformers.testing_utils.__file__), *upstream.FOLDER.rglob("*.py")]
    for mark in {mark for file in files for mark in re.findall(r"\bmark\.(\w+)", file.read_text())}:
        config.addinivalue_line("markers", f"{mark}: of transformers")
