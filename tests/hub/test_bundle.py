"""Bundled folders: complete, deterministic, readable, and at work in a process without this package."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_configs import save_open_clip_folder, tiny_clip_cfg
from tiny_families import FAMILIES, save_tiny_family
from tiny_folders import CLIP_VOCABULARY
from transformers import AutoModel, AutoProcessor, CLIPConfig
from typer.testing import CliRunner

import open_clip_transformers
from open_clip_transformers.cli import app
from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.hub.bundle import bundle_folder


pytestmark = pytest.mark.floor
SCRIPT = Path(__file__).with_name("use_without_package.py")
TOWERS = ("vit", "text", "modified_resnet", "siglip_vit", "timm_vision", "hf_text", "modern_text", "mammut_text")
# What a bundled file may import; each is there wherever transformers works on images, or behind a check.
PACKAGES = {"PIL", "ftfy", "huggingface_hub", "numpy", "packaging", "tokenizers", "torch", "transformers"}
INSTALLED_VERSION = "importlib.metadata"
GUARDED_PACKAGES = {"open_clip_transformers", "timm", "torchvision"}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "open", "input", "breakpoint"}
FORBIDDEN_MODULES = {"ctypes", "http", "importlib", "marshal", "pickle", "requests", "shutil", "socket", "subprocess"}
FORBIDDEN_MODULES |= {"tempfile", "urllib", "httpx", "webbrowser"}
# Of whatever they are attributes: of pickle, torch and numpy, of os, of the Hub's library, of networks.
FORBIDDEN_ATTRIBUTES = {"load", "loads", "open", "popen", "system", "urlopen", "hf_hub_download", "snapshot_download"}
# The image that a caller names, and CLIP's vocabulary.
OPENERS = {"Image.open", "gzip.open"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Family -> a bundled folder, the tiny model in it, and the names of the files written."""
    root = tmp_path_factory.mktemp("bundles")
    models = {family: save_tiny_family(family, root / family) for family in FAMILIES}
    return {family: (root / family, model, bundle_folder(root / family)) for family, model in models.items()}


@pytest.fixture(scope="module")
def towers(folders):
    """Bundled folders of towers alone, with their part of the processor."""
    towers = []
    for family, tower, part in (("siglip_vit", "vision", "image_processor"), ("clip", "text", "tokenizer")):
        folder, model, _ = folders[family]
        towers.append(folder.with_name(f"{tower}_tower"))
        getattr(model, f"{tower}_model").save_pretrained(towers[-1])
        getattr(AutoProcessor.from_pretrained(folder), part).save_pretrained(towers[-1])
        bundle_folder(towers[-1])
    return towers


@pytest.fixture(params=FAMILIES, ids=str)
def bundled(request, folders):
    return folders[request.param]


@pytest.fixture(scope="module")
def elsewhere(folders, towers, tmp_path_factory):
    """Name of a folder -> what one process without the package got from it, and from what it saved of that.

    One process for all of them: most of its time goes to importing torch and transformers.
    """
    paths = [*(folder for folder, _, _ in folders.values()), *towers]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path_factory.mktemp("modules")), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, SCRIPT, *paths]
    run = subprocess.run(command, cwd=paths[0], env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def sources(folder: Path) -> dict[str, ast.Module]:
    return {path.name: ast.parse(path.read_text()) for path in folder.glob("*.py")}


def test_bundle_works_without_the_package_and_again_after_saving(bundled, elsewhere):
    folder, model, _ = bundled
    results = elsewhere[folder.name]
    assert "error" not in results, results["error"]
    assert results["first"] == results["second"]
    assert results["first"].keys() >= ({"image-to-text", "image-text-to-text"} if model.can_generate() else set())
    processor = AutoProcessor.from_pretrained(folder)
    image = Image.radial_gradient("L").resize((61, 43)).convert("RGB")
    pixel_values = processor(images=image, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = model.get_image_features(pixel_values).pooler_output.flatten()[:12]
    torch.testing.assert_close(torch.tensor(results["first"]["image"]), expected, rtol=1e-5, atol=1e-3)


def test_bundle_saved_again_keeps_all_files(bundled, elsewhere):
    folder, _, _ = bundled
    copy = folder.with_name(f"{folder.name}_copy")
    assert {path.name for path in copy.iterdir()} == {path.name for path in folder.iterdir()}
    for path in folder.glob("*.py"):
        assert (copy / path.name).read_text() == path.read_text()


def test_bundle_of_a_tower_works_without_the_package(towers, elsewhere):
    for folder in towers:
        results = elsewhere[folder.name]
        assert "error" not in results, results["error"]
        assert results["first"] == results["second"] and any(results["first"]["features"])
        copy = folder.with_name(f"{folder.name}_copy")
        assert {path.name for path in copy.iterdir()} == {path.name for path in folder.iterdir()}


def test_bundled_tokenizer_without_files_says_where_they_are(folders, elsewhere):
    for family in folders:
        message = elsewhere[family]["first"]["tokenizer without files"]
        assert "with `from_pretrained`, or install the package" in message


def test_bundle_names_an_auto_class_for_everything_that_transformers_loads(bundled):
    folder, model, _ = bundled
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    expected = {
        "AutoConfig",
        "AutoModel",
        "AutoModelForImageClassification",
        "AutoModelForZeroShotImageClassification",
    }
    captioner = {"AutoModelForImageTextToText", "AutoModelForMultimodalLM"}
    assert auto_map.keys() == expected | (captioner if model.can_generate() else set())
    processors = json.loads((folder / "processor_config.json").read_text())
    assert processors["auto_map"]["AutoImageProcessor"].keys() == {"torchvision", "pil"}
    assert processors["image_processor"]["auto_map"]["AutoImageProcessor"].keys() == {"torchvision", "pil"}


def test_bundle_needs_no_trust_where_the_package_is_installed(bundled, tmp_path):
    folder, _, _ = bundled
    parts = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    for part in parts:
        assert type(part).__module__.startswith("open_clip_transformers.")
        part.save_pretrained(tmp_path)
    # Saved without the code, files name none.
    assert not list(tmp_path.glob("*.py"))
    for path in tmp_path.glob("*config.json"):
        assert not re.search("auto_map|custom_pipelines", path.read_text())


def test_bundle_again_changes_nothing(bundled):
    folder, _, names = bundled
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert bundle_folder(folder) == names
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_bundle_has_the_files_of_the_model_alone(bundled):
    folder, model, _ = bundled
    names = {path.name for path in folder.glob("*.py")}
    towers = {f"modeling_{tower}.py" for tower in TOWERS}
    own = {model.config.vision_config.model_type, model.config.text_config.model_type}
    own_files = {f"modeling_{model_type.removeprefix('open_clip_')}.py" for model_type in own}
    # The plain towers' files have what the ResNet and MaMMUT need, too.
    assert own_files <= names & towers <= own_files | {"modeling_vit.py", "modeling_text.py"}
    for name in ("pipeline_image_to_text.py", "pipeline_image_feature_extraction.py", "modeling_captioning.py"):
        assert (name in names) == model.can_generate()
    for captioner in ("coca", "mammut"):
        assert (f"modeling_{captioner}.py" in names) == (model.config.model_type == f"open_clip_{captioner}")


def test_bundled_files_say_where_they_come_from(bundled):
    folder, _, _ = bundled
    for path in folder.glob("*.py"):
        first = path.read_text().splitlines()[0]
        assert path.name in first and f"open_clip_transformers {open_clip_transformers.__version__}" in first


def test_bundled_files_import_declared_packages_alone(bundled):
    folder, _, _ = bundled
    for name, tree in sources(folder).items():
        guarded = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If | ast.FunctionDef | ast.Try)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and f"{node.module}.py" in {path.name for path in folder.iterdir()}, name
                continue
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                package = module.partition(".")[0]
                allowed = PACKAGES | (sys.stdlib_module_names - FORBIDDEN_MODULES)
                allowed |= GUARDED_PACKAGES if id(node) in guarded else set()
                assert package in allowed or module == INSTALLED_VERSION, f"{name} imports {module}"


def test_bundled_files_neither_evaluate_nor_download(bundled):
    folder, _, _ = bundled
    for name, tree in sources(folder).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in FORBIDDEN_NAMES, f"{name} calls {node.func.id}"
            if isinstance(node, ast.Attribute) and ast.unparse(node) not in OPENERS:
                assert node.attr not in FORBIDDEN_ATTRIBUTES, f"{name} has {ast.unparse(node)}"


def test_bundle_refuses_what_is_not_ours(tmp_path):
    with pytest.raises(ConversionError, match=r"has no config\.json"):
        bundle_folder(tmp_path)
    CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(ConversionError, match="'clip', whose code is in transformers itself"):
        bundle_folder(tmp_path)


def test_bundle_command_prints_the_files(tmp_path):
    save_tiny_family("clip", tmp_path / "model")
    result = CliRunner().invoke(app, ["bundle", str(tmp_path / "model")])
    assert result.exit_code == 0, result.stderr
    assert {"config.json", "modeling_open_clip.py"} <= set(result.stdout.splitlines())


def test_conversion_bundles_what_bundling_it_would(tmp_path):
    save_open_clip_folder(tmp_path / "source", tiny_clip_cfg(**CLIP_VOCABULARY))
    convert_open_clip_checkpoint(tmp_path / "source", tmp_path / "out", bundle=True, verify="structure")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {"modeling_open_clip.py", "conversion.json"} <= before.keys()
    bundle_folder(tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_conversion_to_a_model_of_transformers_has_no_code_to_bundle(tmp_path):
    with pytest.raises(ConversionError, match="leave out bundle"):
        convert_open_clip_checkpoint(tmp_path, tmp_path / "out", bundle=True, target="native")
