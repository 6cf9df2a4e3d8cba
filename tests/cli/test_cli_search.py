"""`open-clip-transformers search` against a comparison with all embeddings."""

import base64
import io
import re
import tarfile

import numpy
import pytest
from PIL import Image

from open_clip_transformers.datasets import search as search_module
from open_clip_transformers.datasets.images import Unreadable
from open_clip_transformers.datasets.outputs import ParquetOutput, Rows
from open_clip_transformers.datasets.shards import FileShard, Sample


pytestmark = pytest.mark.usefixtures("models_loaded_once")

COLOURS = numpy.random.default_rng(0).integers(0, 256, (25, 2, 2, 3), dtype=numpy.uint8)


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for number, colours in enumerate(COLOURS):
        Image.fromarray(colours).resize((40 + number, 36)).save(tmp_path / "photos" / f"{number:02d}.png")
    (tmp_path / "photos" / "07.png").write_bytes(b"no image")
    return tmp_path / "photos"


@pytest.fixture
def tar(photos, tmp_path):
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for path in sorted(photos.iterdir()):
            archive.add(path, path.name)
    return tmp_path / "in.tar"


def embed(run, model, source, output, *options):
    run("embed", model, source, "-o", f"{output}/", "--workers", 0, *options, exit_code=1)


@pytest.mark.parametrize("layout", ["parquet", "clip-retrieval"])
def test_search_finds_what_a_comparison_with_all_finds(run, clip, photos, tmp_path, layout):
    embed(run, clip, photos, tmp_path / "out", "--shard-size", 4, "--format", layout)
    run("embed", clip, photos, "-o", tmp_path / "all.npy", exit_code=1)
    run("embed", clip, "--text", "a red three", "-o", tmp_path / "text.npy")
    scores = numpy.load(tmp_path / "all.npy") @ numpy.load(tmp_path / "text.npy")[0]
    names = [str(path) for path in sorted(photos.iterdir()) if path.name != "07.png"]
    expected = [names[row] for row in numpy.argsort(-scores)]
    result = run("search", tmp_path / "out", "a red three", "-k", 6)
    found = [line.split("\t") for line in result.stdout.splitlines()]
    assert [key for key, _ in found] == expected[:6]
    numpy.testing.assert_allclose([float(score) for _, score in found], sorted(scores)[:-7:-1], rtol=1e-3)
    assert len(run("search", tmp_path / "out", "a red three", "-k", 99).stdout.splitlines()) == 24


def test_search_takes_an_image_and_writes_a_page(run, clip, photos, tar, tmp_path):
    for source, prefix in ((photos, f"{photos}/"), (tar, "")):
        out = tmp_path / f"out_{bool(prefix)}"
        embed(run, clip, source, out)
        result = run("search", out, "--image", photos / "11.png", "-k", 3, "-o", tmp_path / "page.html")
        keys, scores = zip(*(line.split("\t") for line in result.stdout.splitlines()))
        assert keys[0].removesuffix(".png") == f"{prefix}11" and float(scores[0]) == pytest.approx(1, abs=1e-3)
        page = (tmp_path / "page.html").read_text()
        pictures = [base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", page)]
        assert len(pictures) == 3 and all(f"{key}<br>{score}" in page for key, score in zip(keys, scores))
        assert Image.open(io.BytesIO(pictures[0])).size == (51, 36)


def test_search_page_says_what_is_gone(run, clip, photos, tar, tmp_path):
    embed(run, clip, tar, tmp_path / "out")
    tar.unlink()
    run("search", tmp_path / "out", "a cat", "-k", 2, "-o", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("<p>") == 2


def test_search_says_where_nothing_is_embedded(run, clip, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    embed(run, clip, tmp_path / "a.png", tmp_path / "out")
    result = run("search", tmp_path / "out", "a cat")
    assert (result.stdout, result.stderr) == ("", f"{tmp_path}/out holds no embedding of an image yet.\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out"], "Give either a text to look for or --image"),
        (["out", "a", "--image", "b.png"], "Give either a text to look for or --image"),
        (["photos", "a"], "holds other files"),
        (["nothing", "a"], "holds no embeddings"),
        (["out", "a", "-o", "page.pdf"], "must end in .html"),
    ],
    ids=["nothing", "both", "other", "missing", "suffix"],
)
def test_search_refuses_what_cannot_work(run, tmp_path, photos, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in run("search", *arguments, exit_code=2).stderr


def test_search_refuses_another_model(run, clip, siglip, photos, tmp_path):
    embed(run, clip, photos, tmp_path / "out")
    result = run("search", tmp_path / "out", "a cat", "--model", siglip, exit_code=2)
    assert "is not the model that embedded these images" in result.stderr


def write_vectors(folder, vectors, shard_size):
    """Writes vectors as `embed` would."""
    shards = [
        FileShard(f"images-{start:05d}", "files", tuple(map(str, range(start, start + shard_size))))
        for start in range(0, len(vectors), shard_size)
    ]
    output = ParquetOutput(str(folder), ("embedding",))
    output.prepare({"command": "embed", "text_column": None, "format": "parquet"}, shards, {})
    for index, shard in enumerate(shards):
        types = {"embedding": ("float16", vectors.shape[1])}
        samples = [Sample(name, None) for name in shard.names]
        values = vectors[index * shard_size : (index + 1) * shard_size]
        output.write(Rows(shard, types, samples, {"embedding": values}), index)


def test_search_by_index_finds_nearly_all(tmp_path, monkeypatch):
    pytest.importorskip("usearch")
    generator = numpy.random.default_rng(0)
    centres = generator.normal(size=(40, 64))
    vectors = (centres[generator.integers(0, 40, 4000)] + generator.normal(size=(4000, 64))).astype("float32")
    vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True)
    write_vectors(tmp_path / "out", vectors, 500)
    data = search_module.EmbeddedData(str(tmp_path / "out"))
    queries = vectors[::200]
    exact = [data.nearest(query, 10) for query in queries]
    monkeypatch.setattr(search_module, "EXACT_UP_TO", 3999)
    for found in (data, search_module.EmbeddedData(str(tmp_path / "out"))):  # made, and found again
        near = [found.nearest(query, 10) for query in queries]
        recall = [len({hit.key for hit in a} & {hit.key for hit in b}) / 10 for a, b in zip(exact, near)]
        assert numpy.mean(recall) >= 0.95
        assert [hit.score for hit in near[0]] == sorted((hit.score for hit in near[0]), reverse=True)
        assert near[0][0].score == pytest.approx(1, abs=2e-3)
    assert len(list((tmp_path / "out").glob("_index-*.usearch"))) == 1


def test_search_makes_its_index_anew_where_shards_were_written_again(tmp_path, monkeypatch):
    """Write a shard again with one vector less, which moves those behind it."""
    pytest.importorskip("usearch")
    monkeypatch.setattr(search_module, "EXACT_UP_TO", 0)
    vectors = numpy.eye(8, dtype="float32")
    write_vectors(tmp_path / "out", vectors, 4)
    data = search_module.EmbeddedData(str(tmp_path / "out"))
    assert [data.nearest(vector, 1)[0].key for vector in vectors] == list("01234567")
    shard = FileShard("images-00000", "files", ("0", "1", "2", "3"))
    samples = [Sample(name, None) for name in shard.names]
    samples[1].error = Unreadable("OSError", "now it is gone")
    rows = Rows(shard, {"embedding": ("float16", 8)}, samples, {"embedding": vectors[[0, 2, 3]]})
    data.output.write(rows, 0)
    assert [data.nearest(vector, 1)[0].key for vector in vectors[[0, 2, 3, 4, 7]]] == list("02347")
