"""transformers' own common tests, which its wheels leave out: fetched into the environment once, then imported.

    python tests/hf_suite/upstream.py

gets the sdist of the installed transformers by pip, and keeps its test modules in the environment. Modules that the
sdist leaves out, and that those import, are made here.
"""

import importlib
import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
import unittest
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image


VERSION = importlib.metadata.version("transformers")
FOLDER = Path(sys.prefix, "share", "open_clip_transformers", f"transformers_tests_{VERSION}")
PACKAGE = "transformers_tests"


def is_fetched() -> bool:
    return (FOLDER / PACKAGE).is_dir()


def fetch():
    """Download the sdist and keep its test modules."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", folder]
        options = ["--no-deps", "--no-build-isolation", "--no-binary", "transformers"]
        if subprocess.run([*pip, *options, f"transformers=={VERSION}"]).returncode:
            raise SystemExit(f"pip got no sdist of transformers {VERSION}: its own tests will be skipped.")
        (archive,) = Path(folder).glob("transformers-*.tar.gz")
        with tarfile.open(archive) as tar:
            root = f"transformers-{VERSION}/tests/"
            tar.extractall(folder, [member for member in tar if member.name.startswith(root)], filter="data")
        tests = Path(folder, root)
        _add_missing_files(tests)
        tests.rename(FOLDER / PACKAGE)


def _add_missing_files(tests: Path):
    """What the modules read beside them, and the sdist lacks."""
    (tests / "__init__.py").touch()
    (tests / "fixtures").mkdir()
    (tests / "fixtures" / "sample_text.txt").write_text("A text to be cut into tokens.\n\nIt has three lines.\n")
    y, x = np.mgrid[0:96, 0:128]
    pixels = np.stack([2 * x, 2 * y, x * y], axis=-1).astype("uint8")
    Image.fromarray(pixels).save(tests / "fixtures" / "picture.png")


def load(name: str) -> ModuleType:
    """The test module `name`, such as `"test_modeling_common"`.

    Raises:
        RuntimeError: the tests are not in this environment.
    """
    if not is_fetched():
        raise RuntimeError(f"No tests of transformers in {FOLDER}: `make test-hf` fetches them.")
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
        for stub, contents in _STUBS.items():
            sys.modules[stub] = ModuleType(stub)
            vars(sys.modules[stub]).update(contents)
    return importlib.import_module(f"{PACKAGE}.{name}")


def _picture(url: str) -> str:
    """A local picture in place of any at an address."""
    return str(FOLDER / PACKAGE / "fixtures" / "picture.png")


def _distributed_helper(name: str):
    """Any helper of distributed tests, by a name that only those know; it skips its test."""
    if name.startswith("__"):
        raise AttributeError(name)
    return unittest.skip("The sdist lacks the helpers of distributed tests.")(lambda: None)


# Fields that every configuration has, with values unlike their defaults.
_COMMON_FIELDS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "problem_type": "regression",
}
_STUBS = {
    f"{PACKAGE}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    f"{PACKAGE}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    f"{PACKAGE}.utils.test_configuration_utils": {"config_common_kwargs": _COMMON_FIELDS},
    f"{PACKAGE}.distributed_testing_utils": {"__getattr__": _distributed_helper},
    "fetch_hub_objects_for_ci": {"url_to_local_path": _picture},
}


if __name__ == "__main__":
    if not is_fetched():
        fetch()
