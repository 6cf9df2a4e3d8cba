"""Bundles beside a transformers, or a package, that is older or newer than they are."""

import json
import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import requires
from pathlib import Path

import pytest
import transformers
from tiny_families import save_tiny_family

import open_clip_transformers
from open_clip_transformers import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.hub import bundle_code
from open_clip_transformers.convert_scripts.hub.bundle import bundle_folder


pytestmark = pytest.mark.floor
ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits" / "open_clip_checkpoint"
EARLIER = ROOT / "tests" / "data" / "earlier_bundle" / "bundle.tar.xz"
HIDE_PACKAGE = "import sys; sys.modules['open_clip_transformers'] = None"
# Loads all that a folder has, and saves model and processor beside it.
USE = """
import json, sys
from pathlib import Path
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

folder = Path(sys.argv[1])
image = Image.radial_gradient("L").resize((61, 43)).convert("RGB")
captions = pipeline("image-to-text", model=str(folder), trust_remote_code=True)(image)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
ids = model.generate(**processor(images=image, return_tensors="pt"), num_beams=2)
for part in (model, processor):
    part.save_pretrained(f"{folder}_copy")
parts = (model, model.config, processor, processor.image_processor, processor.tokenizer)
print(json.dumps({
    "captions": captions,
    "ids": ids.tolist(),
    "packages": {type(part).__name__: type(part).__module__.partition(".")[0] for part in parts},
}))
"""


@pytest.fixture
def run(tmp_path):
    """Runs Python code on a folder in a process of its own; returns the process."""

    def run(code: str, folder: Path) -> subprocess.CompletedProcess:
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(tmp_path / "modules"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-c", code, str(folder)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)

    return run


@pytest.fixture
def bundle_of(monkeypatch, tmp_path):
    """Makes a bundled tiny CoCa as another version of the package would, tested with other transformers."""

    def bundle_of(version: str, tested: tuple[str, str] = bundle_code.TESTED_TRANSFORMERS) -> Path:
        save_tiny_family("coca", tmp_path / "coca")
        with monkeypatch.context() as patch:
            patch.setattr(open_clip_transformers, "__version__", version)
            patch.setattr(bundle_code, "TESTED_TRANSFORMERS", tested)
            bundle_folder(tmp_path / "coca")
        return tmp_path / "coca"

    return bundle_of


def test_bundle_steps_aside_for_a_newer_package(bundle_of, run):
    process = run(USE, bundle_of("0.0.1"))
    assert process.returncode == 0, process.stderr
    results = json.loads(process.stdout.splitlines()[-1])
    assert set(results["packages"].values()) == {"open_clip_transformers"}
    assert results["captions"][0]["generated_text"]


def test_package_code_is_not_saved_beside_a_model(bundle_of, run):
    folder = bundle_of("0.0.1")
    assert run(USE, folder).returncode == 0
    copy = folder.with_name("coca_copy")
    assert (copy / "model.safetensors").is_file() and not list(copy.glob("*.py"))
    for path in copy.glob("*config.json"):
        assert not re.search("auto_map|custom_pipelines", path.read_text())


def test_bundle_keeps_its_own_code_beside_an_older_package(bundle_of, run):
    process = run(USE, bundle_of("99.0"))
    assert process.returncode == 0, process.stderr
    packages = json.loads(process.stdout.splitlines()[-1])["packages"]
    assert set(packages.values()) == {"transformers_modules"}


def test_bundle_says_once_that_it_meets_a_newer_transformers(bundle_of, run):
    process = run(f"{HIDE_PACKAGE}\n{USE}", bundle_of("0.0.1", tested=("5.0", "5.4")))
    assert process.returncode == 0, process.stderr
    text = f"was tested with transformers 5.0 to 5.4, this is {transformers.__version__}. If"
    assert process.stderr.count(text) == 1
    assert "pip install 'transformers<=5.4.99'" in process.stderr


def test_bundle_names_the_transformers_that_it_needs(bundle_of, run):
    folder = bundle_of("0.0.1", tested=("5.999", "5.999"))
    for loader in ("AutoConfig", "AutoModel"):
        load = f"transformers.{loader}.from_pretrained(sys.argv[1], trust_remote_code=True)"
        process = run(f"{HIDE_PACKAGE}\nimport transformers\n{load}", folder)
        needed = f"needs transformers >= 5.999, found {transformers.__version__}: pip install --upgrade transformers"
        assert process.stderr.splitlines()[-1].startswith("ImportError: ") and needed in process.stderr


def test_oldest_transformers_is_the_one_that_pip_asks_for():
    requirement = next(line for line in requires("open-clip-transformers") if line.startswith("transformers"))
    assert f">={bundle_code.TESTED_TRANSFORMERS[0]}" in requirement


def test_earlier_bundle_works_beside_the_package(tmp_path, run):
    folder = tmp_path / "digits"
    convert_open_clip_checkpoint(DIGITS, folder, verify="structure")
    with tarfile.open(EARLIER) as archive:
        archive.extractall(folder, filter="data")
    process = run(f"import open_clip_transformers\n{USE}", folder)
    assert process.returncode == 0, process.stderr
    results = json.loads(process.stdout.splitlines()[-1])
    assert results["captions"][0]["generated_text"]
    parts = ("CoCaModel", "CoCaConfig", "CoCaProcessor")
    assert {results["packages"][part] for part in parts} == {"open_clip_transformers"}


def test_bundling_again_replaces_the_files_of_an_earlier_version(tmp_path):
    folder = tmp_path / "digits"
    convert_open_clip_checkpoint(DIGITS, folder, verify="structure")
    with tarfile.open(EARLIER) as archive:
        archive.extractall(folder, filter="data")
    (folder / "handler.py").write_text("# a file of the repository's owner\n")
    names = bundle_folder(folder)
    assert {path.name for path in folder.glob("*.py")} == {name for name in names if name.endswith(".py")} | {
        "handler.py"
    }
