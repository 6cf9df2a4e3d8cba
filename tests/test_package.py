"""The package as a user meets it: installed or not, quiet and quick to import, and known to transformers."""

import ast
import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from subprocess_output import own_output

import open_clip_transformers


ROOT = Path(__file__).parents[1]
FOLDERS = ("configuration", "modeling", "processing", "convert_scripts", "training")


def run_python(*arguments: str, folder: Path = ROOT, path: Path = ROOT) -> str:
    """Output of `python *arguments`, with `path` on the import path; fails the test where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(path), "PYTHONWARNINGS": "default"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + own_output(done.stderr)


@pytest.mark.floor
def test_import_prints_nothing_and_leaves_torch_and_transformers_alone():
    heavy = "('torch', 'torchvision', 'transformers')"
    assert run_python("-c", f"import open_clip_transformers, sys; assert not set(sys.modules) & set({heavy})") == ""


@pytest.mark.floor
def test_loading_every_public_name_prints_nothing():
    assert run_python("-c", "from open_clip_transformers import *") == ""


@pytest.mark.floor
@pytest.mark.parametrize("name", open_clip_transformers.__all__)
def test_public_name_resolves(name):
    assert name in dir(open_clip_transformers)
    assert getattr(open_clip_transformers, name).__name__ == name


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'OpenClipModle'"):
        _ = open_clip_transformers.OpenClipModle


def test_public_names_are_exported_to_type_checkers():
    """Which take a name of a stub for public where it is imported as itself."""
    stub = ast.parse((ROOT / "open_clip_transformers" / "__init__.pyi").read_text())
    aliases = [alias for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert [alias.asname for alias in aliases] == open_clip_transformers.__all__
    assert len(set(open_clip_transformers.__all__)) == len(aliases)


def import_with_transformers(version: str, tmp_path: Path):
    """Import the package where an installed transformers says that it is `version`."""
    info = tmp_path / f"transformers-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: transformers\nVersion: {version}\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ROOT)))}
    command = [sys.executable, "-c", "import open_clip_transformers"]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)


@pytest.mark.floor
@pytest.mark.parametrize("version", ["4.57.6", "5.4.9", "5.4.0.dev0"])
def test_import_names_the_transformers_that_is_needed(version, tmp_path):
    done = import_with_transformers(version, tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: open_clip_transformers needs transformers >= 5.5, found {version}: pip install -U transformers"
    )


@pytest.mark.parametrize("version", ["5.5.0", "5.24.0", "5.6.0rc1", "6.0.0.dev0"])
def test_import_takes_every_transformers_from_the_oldest_on(version, tmp_path):
    done = import_with_transformers(version, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_oldest_transformers_is_the_one_that_pip_reads():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert f"transformers>={open_clip_transformers.MIN_TRANSFORMERS},<6" in setup["options"]["install_requires"]


# Each is a way into transformers that ends up importing the Auto classes, some from the middle of its own imports.
@pytest.mark.floor
@pytest.mark.parametrize(
    "first",
    [
        pytest.param("from transformers import AutoModel", id="auto_model"),
        pytest.param("from transformers import CLIPModel", id="model_of_transformers"),
        pytest.param("from transformers import pipeline", id="pipeline"),
        pytest.param("from open_clip_transformers import CoCaModel", id="our_model"),
        pytest.param("from open_clip_transformers import ImageToTextPipeline", id="our_pipeline"),
    ],
)
def test_auto_classes_know_ours_whatever_is_imported_first(first):
    check = """
from transformers import AutoConfig, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY
from open_clip_transformers import OpenClipVitConfig, OpenClipVitModel
config = AutoConfig.for_model("open_clip_vit", hidden_size=24, num_attention_heads=2, num_hidden_layers=1)
assert type(config) is OpenClipVitConfig and type(AutoModel.from_config(config)) is OpenClipVitModel
assert "image-to-text" in PIPELINE_REGISTRY.get_supported_tasks()
"""
    assert run_python("-c", f"import open_clip_transformers\n{first}\n{check}") == ""


def test_auto_classes_know_ours_where_they_were_imported_before():
    check = "assert 'open_clip_coca' in transformers.models.auto.configuration_auto.CONFIG_MAPPING"
    run_python("-c", f"import transformers; transformers.AutoModel; import open_clip_transformers; {check}")


def test_module_runs_the_command_line():
    assert "convert" in run_python("-m", "open_clip_transformers", "--help")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built from a copy of what the build reads so that nothing is left in the checkout."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("open_clip_transformers", *FOLDERS, "model_cards", "tests"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    build = "import sys, setuptools.build_meta as backend; print(backend.build_wheel(sys.argv[1]))"
    run_python("-W", "ignore", "-c", build, str(output), folder=source, path=source)
    return next(output.glob("*.whl"))


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    face = ROOT / "open_clip_transformers"
    sources = {path.relative_to(ROOT).as_posix() for path in face.rglob("*.py")}
    for folder in FOLDERS:
        sources |= {f"open_clip_transformers/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*.py")}
    data = {name for name in names if not name.endswith(".py")}
    assert names - data == sources
    assert {
        "open_clip_transformers/py.typed",
        "open_clip_transformers/__init__.pyi",
        "open_clip_transformers/processing/clip_bpe_merges.txt.gz",
        "open_clip_transformers/convert_scripts/data/open_clip_architectures.json",
    } <= data
    assert all(Path(name).suffix in {".typed", ".pyi", ".gz", ".json", ".txt", ".md"} for name in data)


def test_wheel_declares_the_command_line_and_the_version(wheel):
    archive = zipfile.ZipFile(wheel)
    info = f"open_clip_transformers-{open_clip_transformers.__version__}.dist-info"
    entry_points = configparser.ConfigParser()
    entry_points.read_string(archive.read(f"{info}/entry_points.txt").decode())
    assert entry_points["console_scripts"]["open-clip-transformers"] == "open_clip_transformers.cli:main"
    assert "License-Expression: MIT" in archive.read(f"{info}/METADATA").decode()


def test_wheel_works_away_from_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    check = """
import open_clip_transformers, sys
from open_clip_transformers import *
assert all(path.startswith(sys.argv[1]) for path in open_clip_transformers.__path__), open_clip_transformers.__path__
assert sys.modules[OpenClipModel.__module__].__file__.startswith(sys.argv[1])
assert len(OpenClipTokenizer()) == 49408
"""
    run_python("-c", check, str(tmp_path), folder=tmp_path, path=tmp_path / "site")
