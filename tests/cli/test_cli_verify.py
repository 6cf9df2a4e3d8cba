"""`open-clip-transformers verify`: exit codes, what it prints and what it leaves behind."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from tiny_configs import save_open_clip_folder, tiny_clip_cfg

from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.hub.provenance import recorded_source
from open_clip_transformers.convert_scripts.sources.source import SourceOptions
from open_clip_transformers.convert_scripts.verify import reference as open_clip_reference


@pytest.fixture
def folders(tmp_path):
    """A checkpoint and the folder that it was converted to."""
    source, folder = tmp_path / "source", tmp_path / "model"
    save_open_clip_folder(source, tiny_clip_cfg())
    convert_open_clip_checkpoint(source, folder, with_processor=False, verify="none")
    return source, folder


def spoil(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["text_model.encoder.layers.1.mlp.fc2.bias"] += 0.01
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_verify_writes_the_report_into_the_folder(run, folders):
    source, folder = folders
    result = run("verify", folder, "--against", source)
    assert result.stdout.startswith(f"Verified model against {source.name}\n")
    verdict = result.stdout.splitlines()[-1]
    assert verdict.startswith("Passed: ") and verdict.endswith("Not compared: pixels, tokens.")
    assert f"**{verdict}**" in (folder / "verification.md").read_text()
    report = json.loads((folder / "verification.json").read_text())
    assert report["passed"] is True
    assert report["first_difference"] is None
    assert report["settings"] == {"pairs": 4, "dtypes": ["float32", "bfloat16", "float16"], "skipped": []}
    assert result.stderr == ""


def test_verify_fails_and_names_the_first_layer_that_differs(run, folders):
    source, folder = folders
    spoil(folder)
    result = run("verify", folder, "--against", source, "--dtype", "float32", exit_code=1)
    assert "Failed: " in result.stdout
    assert "The first that differs, of intermediates: text layer 1 MLP (float32)" in result.stdout.splitlines()[-1]
    report = json.loads((folder / "verification.json").read_text())
    assert report["first_difference"] == {"name": "text layer 1 MLP", "dtype": "float32"}
    assert "- intermediates: text layer 1 MLP (float32)" in (folder / "verification.md").read_text()


def test_verify_hands_on_its_options(run, folders, tmp_path):
    source, folder = folders
    weights, config = source / "open_clip_model.safetensors", source / "open_clip_config.json"
    moved = tmp_path / "weights.safetensors"
    weights.rename(moved)
    dtypes = ["--dtype", "bfloat16", "--dtype", "float32"]
    skip = ["--skip", "gradients", "--skip", "losses", "--images", "2", "--json", "-o", tmp_path / "report"]
    result = run("verify", folder, "--against", moved, "--config", config, *dtypes, *skip)
    report = json.loads(result.stdout)
    assert report == json.loads((tmp_path / "report" / "verification.json").read_text())
    assert report["settings"] == {"pairs": 2, "dtypes": ["float32", "bfloat16"], "skipped": ["gradients", "losses"]}
    assert report["weights_file"] == "weights.safetensors"
    assert not {"gradients", "losses"} & {check["group"] for check in report["checks"]}
    assert not (folder / "verification.json").exists()


def test_verify_twice_reports_the_same_but_for_the_date(run, folders, tmp_path):
    source, folder = folders
    for name in ("first", "second"):
        run("verify", folder, "--against", source, "-o", tmp_path / name)
    first, second = (json.loads((tmp_path / name / "verification.json").read_text()) for name in ("first", "second"))
    del first["date"], second["date"]
    assert first == second


def test_verify_leaves_the_folder_and_the_source_as_they_were(run, folders, tmp_path):
    source, folder = folders
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    run("verify", folder, "--against", source, "--dtype", "float32")
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in after.keys() - before.keys()} == {"verification.md", "verification.json"}
    assert all(after[path] == content for path, content in before.items())


FAST = ["--dtype", "float32", "--skip", "gradients", "--skip", "losses", "--images", "2"]


def test_verify_alone_takes_the_source_of_the_conversion(run, folders):
    """A local source is known by its name alone, and looked for beside the folder."""
    source, folder = folders
    assert run("verify", folder, *FAST).stdout.startswith(f"Verified model against {source.name}\n")
    source.rename(source.with_name("moved"))
    assert "give its path (--against)" in run("verify", folder, *FAST, exit_code=1).stderr


def test_verify_alone_takes_what_was_said_of_the_source(run, folders, tmp_path):
    source, _ = folders
    run("verify", tmp_path / "model", *FAST)
    weights, config = tmp_path / "weights.safetensors", tmp_path / "config.json"
    (source / "open_clip_model.safetensors").rename(weights)
    (source / "open_clip_config.json").rename(config)
    convert_open_clip_checkpoint(weights, tmp_path / "other", config=config, with_processor=False, verify="none")
    stderr = run("verify", tmp_path / "other", *FAST, exit_code=1).stderr
    assert "does not hold: give both (--against, --config)" in stderr
    assert "goes with it: --against" in run("verify", tmp_path / "model", "--ema", exit_code=1).stderr


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("org/name@dev", {}, {"source": "org/name@dev"}),
        ("org/name", {"revision": "dev"}, {"source": "org/name", "revision": "dev"}),
        ("ViT-B-32", {"pretrained": "openai"}, {"source": "ViT-B-32", "pretrained": "openai"}),
    ],
    ids=["repository", "revision", "tag"],
)
def test_record_of_a_conversion_tells_its_published_source(folders, source, options, expected):
    _, folder = folders
    record = json.loads((folder / "conversion.json").read_text())
    record["options"] |= {"source": source, **options}
    (folder / "conversion.json").write_text(json.dumps(record))
    assert recorded_source(folder) == SourceOptions(**expected)


def test_verify_alone_says_that_there_is_no_record(run, folders):
    _, folder = folders
    (folder / "conversion.json").unlink()
    assert "has no conversion.json" in run("verify", folder, *FAST, exit_code=1).stderr


def missing_folder(source, folder):
    shutil.rmtree(folder)
    return [], 2, f"{folder}: there is no such folder"


def unknown_dtype(source, folder):
    return ["--dtype", "float64"], 2, "float64"


def one_image(source, folder):
    return ["--images", "1"], 2, "--images"


def missing_source(source, folder):
    shutil.rmtree(source)
    return [], 1, f"{source}: there is no such file or folder"


def not_converted(source, folder):
    (folder / "config.json").unlink()
    return [], 1, "is not a folder of a converted model"


@pytest.mark.parametrize(
    "spoil",
    [missing_folder, unknown_dtype, one_image, missing_source, not_converted],
    ids=lambda spoil: spoil.__name__,
)
def test_verify_says_what_is_wrong_with_its_arguments(run, folders, spoil):
    source, folder = folders
    options, exit_code, message = spoil(source, folder)
    result = run("verify", folder, "--against", source, *options, exit_code=exit_code)
    assert message in result.stderr
    assert result.stdout == ""


def test_verify_without_open_clip_says_how_to_get_it(run, folders, monkeypatch):
    source, folder = folders
    monkeypatch.setattr(open_clip_reference, "find_spec", lambda name: None)
    result = run("verify", folder, "--against", source, exit_code=2)
    assert "pip install open_clip_torch==3.3.0" in result.stderr
