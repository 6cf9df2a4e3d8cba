"""`open-clip-transformers evaluate` against the functions of `training.evaluation`."""

import json

import numpy
import pytest
from PIL import Image
from transformers import AutoModelForZeroShotImageClassification

from open_clip_transformers.training import evaluation


pytest.importorskip("datasets")
CLASSES = ["hen", "kite", "ostrich", "ray", "shark", "tench"]


@pytest.fixture(autouse=True)
def assets(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "cached_assets_path", lambda *args, **kwargs: tmp_path)


@pytest.fixture
def class_folders(tmp_path):
    generator = numpy.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(2):
            colours = generator.integers(0, 256, (20, 30, 3), dtype=numpy.uint8)
            Image.fromarray(colours).save(tmp_path / "data" / name / f"{index}.png")
    return tmp_path / "data"


@pytest.fixture
def captioned(tmp_path):
    folder = tmp_path / "captioned"
    folder.mkdir()
    for index in range(3):
        Image.new("RGB", (20, 30), (80 * index, 9, 9)).save(folder / f"{index}.png")
    lines = [json.dumps({"file_name": f"{index}.png", "text": f"a {CLASSES[index]}"}) for index in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_zero_shot(run, clip, class_folders, reference, tmp_path):
    (tmp_path / "templates.txt").write_text("a {}\na photo of a {}.\n")
    templates = ("--templates", tmp_path / "templates.txt")
    results = json.loads(run("evaluate", clip, class_folders, "--task", "zero-shot", *templates, "--json").stdout)
    model, processor = reference(AutoModelForZeroShotImageClassification, clip)
    dataset = evaluation.load_dataset(str(class_folders))
    assert results == evaluation.evaluate_zero_shot(
        model, processor, dataset, templates=["a {}", "a photo of a {}."], use_cache=False
    )

    lines = run("evaluate", clip, class_folders, "--task", "zero-shot", *templates, "--limit", 4).stdout.splitlines()
    assert lines[2:] == ["images\t4", "classes\t6"]


def test_retrieval_and_captions(run, coca, captioned):
    results = json.loads(run("evaluate", coca, captioned, "--task", "retrieval", "--json").stdout)
    assert (results["images"], results["texts"]) == (3, 3)
    results = json.loads(run("evaluate", coca, captioned, "--task", "caption", "--num-beams", 2, "--json").stdout)
    assert len(results["captions"]) == 3
    assert "captions" not in run("evaluate", coca, captioned, "--task", "caption").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "retrieval", "--class-names", "x.txt"], "--task retrieval does not read --class-names"),
        (["--task", "zero-shot", "--text-column", "text"], "--task zero-shot does not read --text-column"),
        (["--task", "caption"], "has no decoder"),
        (["--task", "zero-shot", "--split", "validation"], "none of the splits"),
        (["--task", "zero-shot", "--templates", "nothing.txt"], "nothing.txt cannot be read"),
        (["--task", "retrieval"], "text_column='text' is none of the columns"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_requests_say_why(run, clip, class_folders, arguments, message):
    result = run("evaluate", clip, class_folders, *arguments, exit_code=2 if "none of the" not in message else 1)
    assert message in result.stderr


def test_folder_without_data_says_so(run, clip, tmp_path):
    (tmp_path / "data").mkdir()
    result = run("evaluate", clip, tmp_path / "data", "--task", "zero-shot", exit_code=2)
    assert f"Error: {tmp_path / 'data'} cannot be loaded as a data set: " in result.stderr
