"""`open-clip-transformers evaluate` against the functions of `training.evaluation`."""

import io
import json
import tarfile

import numpy
import pytest
from PIL import Image
from transformers import AutoModelForZeroShotImageClassification

from open_clip_transformers.training import evaluation


datasets = pytest.importorskip("datasets")
pytest.importorskip("webdataset")
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


def write_tar(path, samples: list[dict[str, bytes]]):
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples):
            for extension, data in sample.items():
                info = tarfile.TarInfo(f"{number:04}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def test_zero_shot_of_tars_and_parquet_is_that_of_the_folder(run, clip, class_folders, tmp_path):
    (tmp_path / "templates.txt").write_text("a {}\na photo of a {}.\n")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    task = ("--task", "zero-shot", "--templates", tmp_path / "templates.txt", "--json")
    expected = json.loads(run("evaluate", clip, class_folders, *task).stdout)
    files = [(path, CLASSES.index(path.parent.name)) for path in sorted(class_folders.rglob("*.png"))]
    samples = [{"png": path.read_bytes(), "cls": str(label).encode()} for path, label in files]
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars/0.tar", samples[:5])
    write_tar(tmp_path / "tars/1.tar", samples[5:])
    names = ("--class-names", tmp_path / "classes.txt")
    for tars in (tmp_path / "tars", tmp_path / "tars/{0..1}.tar"):
        assert json.loads(run("evaluate", clip, tars, *task, *names).stdout) == expected
    assert json.loads(run("evaluate", clip, tars, *task, *names, "--limit", 7).stdout)["images"] == 7
    assert "labels without names" in run("evaluate", clip, tars, *task, exit_code=1).stderr

    (tmp_path / "parquet").mkdir()
    evaluation.load_dataset(str(class_folders)).to_parquet(tmp_path / "parquet/0.parquet")
    assert json.loads(run("evaluate", clip, tmp_path / "parquet", *task).stdout) == expected
    plain = datasets.Dataset.from_list([{"jpg": path.read_bytes(), "number": label} for path, label in files])
    plain.to_parquet(tmp_path / "plain.parquet")
    result = run("evaluate", clip, tmp_path / "plain.parquet", *task, *names, "--label-column", "number")
    assert json.loads(result.stdout) == expected
    result = run("evaluate", clip, tmp_path / "plain.parquet", *task, *names, exit_code=1)
    assert "no columns of labels with names" in result.stderr and "--label-column" in result.stderr


@pytest.mark.parametrize("task", ["retrieval", "caption"])
def test_several_texts_an_image_of_tars_and_parquet_are_those_of_the_folder(run, coca, captioned, task, tmp_path):
    texts = [[f"a {name}", f"two {name}s"] for name in CLASSES[:3]]
    paths = sorted(captioned.glob("*.png"))
    lines = [json.dumps({"file_name": path.name, "text": own}) for path, own in zip(paths, texts)]
    (captioned / "metadata.jsonl").write_text("\n".join(lines))
    expected = json.loads(run("evaluate", coca, captioned, "--task", task, "--json").stdout)
    assert task == "caption" or (expected["images"], expected["texts"]) == (3, 6)
    write_tar(
        tmp_path / "data.tar",
        [
            {"png": path.read_bytes(), "txt": "\n".join(own).encode(), "json": json.dumps({"many": own}).encode()}
            for path, own in zip(paths, texts)
        ],
    )
    evaluation.load_dataset(str(captioned)).to_parquet(tmp_path / "data.parquet")
    for data in (["data.tar"], ["data.tar", "--text-column", "many"], ["data.parquet"]):
        found = run("evaluate", coca, tmp_path / data[0], *data[1:], "--task", task, "--json").stdout
        assert json.loads(found) == expected, data


@pytest.mark.parametrize(
    ("sample", "arguments", "message"),
    [
        ({"cls": b"0"}, [], "0000: MissingImage: no image file, only .cls"),
        ({"png": b"", "cls": b"hen"}, [], "0000: 'cls' is 'hen', expected an integer"),
        ({"png": b"", "txt": b"a hen"}, [], "0000: 'cls' is None, expected an integer"),
        ({"png": b"", "cls": b"0"}, ["--split", "test"], "tars and parquet files have no splits"),
        ({"png": b"", "cls": b"0"}, ["--image-column", "jpg"], "no .jpg file, only .png, .cls"),
        ({"png": b"", "cls": b"0"}, ["--task", "retrieval"], "0000: 'txt' is None, expected texts"),
        ({"png": b"", "txt": b"\n"}, ["--task", "retrieval"], "0000: 'txt' is [''], expected texts"),
        ({"png": b"no image", "txt": b"a"}, ["--task", "retrieval"], "Row 0 of the column 'image' holds no readable"),
    ],
    ids=["no_image", "word", "no_label", "split", "extension", "no_text", "empty_text", "unreadable"],
)
def test_tars_without_what_a_task_needs_say_so(run, clip, sample, arguments, message, tmp_path):
    write_tar(tmp_path / "data.tar", [sample])
    arguments = arguments if "--task" in arguments else [*arguments, "--task", "zero-shot"]
    assert message in run("evaluate", clip, tmp_path / "data.tar", *arguments, exit_code=None).stderr


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
