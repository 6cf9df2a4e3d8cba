"""`embed`, `caption` and `classify` over whole data sets, against the same commands over files, and other readers."""

import importlib.util
import io
import json
import os
import shutil
import tarfile

import datasets
import duckdb
import numpy
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from open_clip_transformers.datasets import outputs


pytestmark = pytest.mark.usefixtures("models_loaded_once")

VECTORS = {}
KEYS = [f"{tar}{index}" for tar in "abc" for index in range(7)]
TEXTS = {key: f"a cat called {key}" for key in KEYS}


def encoded(number, suffix="png"):
    """An image file of two colours that follow from the number."""
    file = io.BytesIO()
    colours = numpy.random.default_rng(number).integers(0, 256, (2, 2, 3), dtype=numpy.uint8)
    Image.fromarray(colours).resize((31 + number, 37)).save(file, suffix)
    return file.getvalue()


FILES = {key: encoded(number) for number, key in enumerate(KEYS)}


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def sample_files(key):
    data = {"caption": TEXTS[key], "width": 31, "url": None}
    return [
        (f"{key}.png", FILES[key]),
        (f"{key}.txt", TEXTS[key].encode()),
        (f"{key}.json", json.dumps(data).encode()),
    ]


@pytest.fixture
def tars(tmp_path):
    """Three tars of seven images each, as img2dataset writes them."""
    (tmp_path / "tars").mkdir()
    for tar in "abc":
        files = [file for key in KEYS if key[0] == tar for file in sample_files(key)]
        write_tar(tmp_path / "tars" / f"{tar}.tar", files)
    return tmp_path / "tars"


@pytest.fixture
def photos(tmp_path):
    """The same images as files."""
    (tmp_path / "photos").mkdir()
    for key, data in FILES.items():
        (tmp_path / "photos" / f"{key}.png").write_bytes(data)
    return tmp_path / "photos"


@pytest.fixture
def vectors(run, clip, photos, tmp_path):
    """key -> the embedding that the command writes without data sets, of batches of the same images."""
    if not VECTORS:
        for tar in "abc":
            run("embed", clip, *sorted(photos.glob(f"{tar}*")), "-o", tmp_path / "v.npy", "--batch-size", 4)
            VECTORS.update(zip([key for key in KEYS if key[0] == tar], numpy.load(tmp_path / "v.npy")))
    return VECTORS


def embed(run, model, source, output, *options, exit_code=0):
    """Embeds with a summary, and returns it."""
    sources = source if isinstance(source, list) else [source]
    fixed = ["-o", f"{output}/", "--batch-size", 4, "--json", "--workers", 0]
    result = run("embed", model, *sources, *fixed, *options, exit_code=exit_code)
    return json.loads(result.stdout) if result.stdout else result.stderr


def read(folder):
    return pandas.concat([pandas.read_parquet(path) for path in sorted(folder.glob("*.parquet"))], ignore_index=True)


def assert_is(table, vectors, keys=KEYS):
    assert [key.rpartition("/")[2].removesuffix(".png") for key in table.key] == keys
    expected = numpy.stack([vectors[key] for key in keys])
    numpy.testing.assert_allclose(numpy.stack(table.embedding), expected, atol=1e-6)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_embed_writes_a_table_for_each_tar(run, clip, tars, vectors, tmp_path):
    summary = embed(run, clip, f"{tars}/{{a..c}}.tar", tmp_path / "out", "--columns", "width", "--columns", "url")
    assert (summary["rows"], summary["shards"], summary["errors"]) == (21, 3, {})
    assert set(summary["time"]) == {"decoding", "model", "writing"} and sum(summary["time"].values()) > 0.99
    assert sorted(contents(tmp_path / "out")) == ["_manifest.json", "a.parquet", "b.parquet", "c.parquet"]
    table = read(tmp_path / "out")
    assert_is(table, vectors)
    assert table.columns.tolist() == ["key", "shard", "embedding", "error", "width", "url"]
    assert table.shard.tolist() == [key[0] for key in KEYS]
    assert set(table.width) == {"31"} and table.url.isna().all() and table.error.isna().all()


def test_embed_embeds_texts_beside_images(run, clip, tars, tmp_path):
    texts = [option for key in KEYS[:7] for option in ("--text", TEXTS[key])]
    run("embed", clip, *texts, "-o", tmp_path / "t.npy")
    for column in ("txt", "caption"):
        embed(run, clip, tars / "a.tar", tmp_path / column, "--text-column", column)
        table = read(tmp_path / column)
        numpy.testing.assert_allclose(numpy.stack(table.text_embedding), numpy.load(tmp_path / "t.npy"), atol=1e-6)
        assert table.caption.tolist() == [TEXTS[key] for key in KEYS[:7]]


def as_struct(photos):
    return [{"bytes": FILES[key], "path": None} for key in KEYS]


@pytest.mark.parametrize(
    ("column", "images"),
    [
        ("image", as_struct),
        ("jpg", lambda photos: list(FILES.values())),
        ("url", lambda photos: [f"{photos}/{key}.png" for key in KEYS]),
        ("file_name", lambda photos: [f"photos/{key}.png" for key in KEYS]),
        ("picture", as_struct),
    ],
    ids=["datasets", "img2dataset", "paths", "relative_paths", "named"],
)
def test_embed_takes_parquet(run, clip, photos, vectors, tmp_path, column, images):
    table = pyarrow.table({"key": KEYS, column: images(photos), "number": range(21)})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet", row_group_size=7)
    named = ["--image-column", column] if column == "picture" else []
    embed(run, clip, tmp_path / "in.parquet", tmp_path / "out", "--columns", "number", "--shard-size", 5, *named)
    assert len(list((tmp_path / "out").glob("in-0000?.parquet"))) == 3
    found = read(tmp_path / "out")
    assert_is(found, vectors)
    assert found.number.tolist() == list(range(21)) and found.number.dtype == numpy.int64


def test_embed_takes_data_sets_of_datasets(run, clip, photos, vectors, tmp_path):
    dataset = datasets.Dataset.from_dict({"key": KEYS, "image": [f"{photos}/{key}.png" for key in KEYS]})
    dataset = datasets.DatasetDict(test=dataset.cast_column("image", datasets.Image()))
    dataset.save_to_disk(tmp_path / "saved")
    embed(run, clip, tmp_path / "saved", tmp_path / "out", "--split", "test", "--shard-size", 7)
    assert_is(read(tmp_path / "out"), vectors)
    assert sorted(contents(tmp_path / "out"))[1] == "saved-test-00000-of-00003.parquet"
    message = embed(run, clip, tmp_path / "saved", tmp_path / "out2", exit_code=2)
    assert "has no split 'train': it has 'test'" in message
    message = embed(run, clip, tmp_path / "saved", tmp_path / "out2", "--subset", "a", exit_code=2)
    assert "has no subsets: leave out --subset a" in message


def test_embed_streams_data_sets_of_the_hub(run, clip, vectors, tmp_path, monkeypatch):
    """As the library datasets reads them, from files of this machine in place of the Hub's."""
    import huggingface_hub

    for tar in "abc":
        keys = [key for key in KEYS if key[0] == tar]
        dataset = datasets.Dataset.from_dict({"key": keys, "image": [{"bytes": FILES[key]} for key in keys]})
        dataset.cast_column("image", datasets.Image()).to_parquet(tmp_path / f"{tar}.parquet")
    load_dataset, asked = datasets.load_dataset, []

    def load(name, subset, revision, split, streaming):
        if subset is None:
            raise ValueError("Config name is missing. Please pick one: ['small', 'large']")
        asked.append((name, subset, revision, split))
        files = sorted(map(str, tmp_path.glob("?.parquet")))
        return load_dataset("parquet", data_files={split: files}, split=split, streaming=streaming)

    def dataset_info(self, name, revision):
        return type("Info", (), {"sha": f"commit of {name} at {revision}"})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    embed(run, clip, "hf://datasets/org/name@main", tmp_path / "out", "--split", "test", "--subset", "large")
    assert_is(read(tmp_path / "out"), vectors)
    assert set(asked) == {("org/name", "large", "commit of org/name at main", "test")}
    assert sorted(contents(tmp_path / "out"))[1] == "name-large-test-00000-of-00003.parquet"
    message = embed(run, clip, "hf://datasets/org/name", tmp_path / "out2", "--split", "test", exit_code=2)
    assert "see --split and --subset: Config name is missing. Please pick one: ['small', 'large']" in message


def test_embed_takes_folders_and_lists(run, clip, photos, vectors, tmp_path, monkeypatch):
    names = "\r\n".join(f"photos/{key}.png" for key in KEYS)
    (tmp_path / "list.txt").write_bytes(f"\ufeff{names}\n\n".encode())
    monkeypatch.chdir(tmp_path)
    for name, source in (("folder", photos), ("list", tmp_path / "list.txt")):
        embed(run, clip, source, tmp_path / name, "--shard-size", 7)
        assert_is(read(tmp_path / name), vectors)
        assert len(list((tmp_path / name).glob("*.parquet"))) == (4 if name == "list" else 3)


def test_embed_takes_addresses_of_fsspec(run, clip, tars, vectors, tmp_path, memory):
    memory.put(str(tars), "/tars", recursive=True)
    embed(run, clip, "memory://tars/*.tar", "memory://out")
    embed(run, clip, "memory://tars", tmp_path / "out")
    memory.get("/out", str(tmp_path / "got"), recursive=True)
    assert_is(read(tmp_path / "got"), vectors)
    assert_is(read(tmp_path / "out"), vectors)


def test_embed_prints_and_collects_from_tars_too(run, clip, coca, tars, vectors, tmp_path):
    run("embed", clip, tars / "a.tar", "-o", tmp_path / "out.npy", "--batch-size", 4)
    numpy.testing.assert_allclose(numpy.load(tmp_path / "out.npy"), [vectors[key] for key in KEYS[:7]], atol=1e-6)
    result = run("caption", coca, tars / "a.tar")
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == KEYS[:7]


def test_caption_and_classify_write_what_they_print(run, coca, clip, photos, tmp_path):
    shards = ["--shard-size", 8, "--batch-size", 4, "--workers", 0]
    run("caption", coca, photos, "-o", tmp_path / "captions", *shards)
    printed = [line.split("\t") for line in run("caption", coca, photos, "--batch-size", 4).stdout.splitlines()]
    table = read(tmp_path / "captions")
    assert [[key, " ".join(text.split())] for key, text in zip(table.key, table.caption)] == printed
    labels = ["--labels", "three,five,cat"]
    for top, kind in ((1, str), (2, numpy.ndarray)):
        run("classify", clip, photos, *labels, "--top", top, "-o", tmp_path / f"labels{top}", *shards)
        lines = run("classify", clip, photos, *labels, "--top", top).stdout.splitlines()
        table = read(tmp_path / f"labels{top}")
        assert isinstance(table.label[0], kind)
        printed = [line.split("\t") for line in lines]
        assert table.key.repeat(top).tolist() == [key for key, _, _ in printed]
        assert numpy.hstack(table.label.to_list()).tolist() == [label for _, label, _ in printed]
        scores = [float(score) for _, _, score in printed]
        numpy.testing.assert_allclose(numpy.hstack(table.score.to_list()), scores, rtol=1e-2)


def test_caption_samples_alike_whatever_was_done_before(run, coca, photos, tmp_path):
    sample = ["--temperature", 5, "--shard-size", 4, "--batch-size", 3, "-o", tmp_path / "out"]
    run("caption", coca, photos, *sample)
    whole = contents(tmp_path / "out")
    (tmp_path / "out" / "images-00002.parquet").unlink()
    run("caption", coca, photos, *sample)
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize(
    "command",
    [["embed"], ["caption"], ["caption", "--num-beams", 2], ["classify", "--labels", "a,b"]],
    ids=["embed", "caption", "beams", "classify"],
)
def test_bytes_do_not_depend_on_cores(run, coca, photos, tmp_path, command):
    name, *options = command
    threads = torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            shards = ["--shard-size", 8, "--batch-size", 2, "--workers", 0]
            run(name, coca, photos, *options, *shards, "-o", tmp_path / str(number))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    one, three = (
        {name: content for name, content in contents(tmp_path / number).items() if name.endswith(".parquet")}
        for number in "13"
    )
    assert one == three and len(one) == 3


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_readers_read_the_tables(run, clip, tars, vectors, tmp_path, dtype):
    (tars / "b.tar").write_bytes(b"no tar at all")
    summary = embed(run, clip, tars, tmp_path / "out", "--embedding-dtype", dtype, exit_code=1)
    assert summary["errors"] == {"BrokenTar": 1}
    files = str(tmp_path / "out" / "*.parquet")
    schema = pyarrow.parquet.read_schema(tmp_path / "out" / "a.parquet")
    dim = len(vectors["a0"])
    assert schema.field("embedding").type == pyarrow.list_(pyarrow.type_for_alias(dtype), dim)
    keys = [key for key in KEYS if key[0] != "b"]
    expected = numpy.stack([vectors[key] for key in keys])
    tables = {
        "pandas": pandas.read_parquet(tmp_path / "out"),
        "datasets": datasets.load_dataset("parquet", data_files=files, split="train").to_pandas(),
        "duckdb": duckdb.sql(f"SELECT * FROM '{files}' ORDER BY shard, key").df(),
    }
    for name, table in tables.items():
        assert table[table.shard == "b"].embedding.isna().all(), name
        good = table[table.error.isna()]
        assert good.key.tolist() == keys, name
        numpy.testing.assert_allclose(
            numpy.stack(good.embedding).astype("float32"), expected, atol=1e-6 if dtype == "float32" else 1e-3
        )
    found = duckdb.sql(
        f"SELECT key FROM '{files}' WHERE error IS NULL "
        f"ORDER BY list_distance(embedding::FLOAT[], {vectors['c3'].tolist()}) LIMIT 1"
    )
    assert found.fetchall() == [("c3",)]


def test_clip_retrieval_reads_its_layout(run, clip, tars, vectors, tmp_path):
    from embedding_reader import EmbeddingReader

    write_tar(tars / "b.tar", [("b0.png", b"no image"), *sample_files("b1"), *sample_files("b2")])
    options = ["--format", "clip-retrieval", "--text-column", "txt", "--embedding-dtype", "float16"]
    summary = embed(run, clip, tars, tmp_path / "out", *options, exit_code=1)
    assert summary["errors"] == {"MissingText": 1}
    names = {"img_emb", "text_emb", "metadata", "errors"}
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == names
    reader = EmbeddingReader(
        embeddings_folder=str(tmp_path / "out" / "img_emb"),
        metadata_folder=str(tmp_path / "out" / "metadata"),
        meta_columns=["image_path", "caption"],
        file_format="parquet_npy",
    )
    ((embeddings, metadata),) = list(reader(batch_size=100))
    keys = [key for key in KEYS if key[0] != "b" or key in ("b1", "b2")]
    assert metadata.image_path.tolist() == keys
    assert metadata.caption.tolist() == [TEXTS[key] for key in keys]
    numpy.testing.assert_allclose(embeddings, numpy.stack([vectors[key] for key in keys]), atol=1e-3)
    errors = pandas.read_parquet(tmp_path / "out" / "errors")
    assert errors.key.tolist() == ["b0"] and numpy.load(tmp_path / "out" / "text_emb" / "text_emb_1.npy").shape[0] == 2


def test_what_exists_is_done_and_counts(run, clip, tars, tmp_path):
    write_tar(tars / "b.tar", [("b0.png", b"no image"), ("b1.png", FILES["b1"])])
    before = embed(run, clip, tars, tmp_path / "out", exit_code=1)
    whole = contents(tmp_path / "out")
    (tmp_path / "out" / "c.parquet").unlink()
    (tmp_path / "out" / ".a.parquet.0123.tmp").write_bytes(b"left by a killed run")
    (tmp_path / "out" / ".c.parquet.0123.tmp").write_bytes(b"left by a killed run")
    after = embed(run, clip, tars, tmp_path / "out", "--workers", 2, exit_code=1)
    assert (before["rows"], after["rows"], after["rows_done_before"]) == (16, 7, 9)
    assert before["errors"] == after["errors"] == {"UnidentifiedImageError": 1}
    assert contents(tmp_path / "out") == whole


def test_output_within_its_input_is_no_input(run, clip, photos, tmp_path):
    table = pyarrow.table({"image": list(FILES.values())[:2]})
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "data" / "in.parquet")
    for shards in (1, 0):
        assert embed(run, clip, tmp_path / "data", tmp_path / "data" / "out")["shards"] == shards


@pytest.mark.parametrize("layout", ["parquet", "clip-retrieval"])
def test_data_may_grow_in_any_order(run, clip, tars, tmp_path, layout):
    """Shards that were there keep their places, and so their files; new ones get others."""
    for source, shards in ((tars / "b.tar", 1), (tars / "a.tar", 1), (tars, 1), (tars, 0)):
        assert embed(run, clip, source, tmp_path / "out", "--format", layout)["shards"] == shards
    embed(run, clip, [tars / "b.tar", tars / "a.tar", tars / "c.tar"], tmp_path / "at_once", "--format", layout)
    assert contents(tmp_path / "out") == contents(tmp_path / "at_once")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--embedding-dtype", "float16"], "embedding_dtype was 'float32' and is 'float16'"),
        (["--batch-size", 5], "batch_size was 4 and is 5"),
        (["--dtype", "bfloat16"], "dtype was 'auto' and is 'bfloat16'"),
        (["--format", "clip-retrieval"], "format was 'parquet' and is 'clip-retrieval'"),
        (["--text-column", "txt"], "text_column was None and is 'txt'"),
        (["--columns", "width"], "columns was [] and is ['width']"),
    ],
    ids=["embedding_dtype", "batch_size", "dtype", "format", "text_column", "columns"],
)
def test_output_of_other_settings_is_refused(run, clip, tars, tmp_path, options, message):
    embed(run, clip, tars / "a.tar", tmp_path / "out")
    whole = contents(tmp_path / "out")
    assert message in embed(run, clip, tars / "a.tar", tmp_path / "out", *options, exit_code=2)
    assert contents(tmp_path / "out") == whole


def test_output_of_another_model_command_or_data_is_refused(run, clip, siglip, photos, tars, tmp_path):
    embed(run, clip, photos, tmp_path / "out", "--shard-size", 10)
    whole = contents(tmp_path / "out")
    again = ["--shard-size", 10]
    assert "model was " in embed(run, siglip, photos, tmp_path / "out", *again, exit_code=2)
    result = run("classify", clip, photos, "--labels", "a,b", "-o", tmp_path / "out", *again, exit_code=2)
    assert "command was 'embed' and is 'classify'" in result.stderr
    (photos / "a00.png").write_bytes(FILES["a1"])
    assert "shard 'images-00000' was of " in embed(run, clip, photos, tmp_path / "out", *again, exit_code=2)
    assert "shard 'images-00000'" in embed(run, clip, photos, tmp_path / "out", "--shard-size", 9, exit_code=2)
    (tmp_path / "other").mkdir()
    shutil.copy(tars / "a.tar", tmp_path / "other" / "a.tar")
    embed(run, clip, tars / "a.tar", tmp_path / "out2")
    assert "shard 'a' was" in embed(run, clip, tmp_path / "other" / "a.tar", tmp_path / "out2", exit_code=2)
    both = [tars / "a.tar", tmp_path / "other" / "a.tar"]
    assert "was shard 'a' and is" in embed(run, clip, both, tmp_path / "out2", exit_code=2)
    embed(run, clip, both, tmp_path / "out3")
    assert sorted(contents(tmp_path / "out3")) == ["_manifest.json", "other-a.parquet", "tars-a.parquet"]
    assert contents(tmp_path / "out") == whole
    assert "holds other files" in embed(run, clip, photos, tars, exit_code=2)


@pytest.mark.parametrize("how", ["cut", "cut_between", "header", "junk"])
def test_good_part_of_a_broken_tar_is_kept(run, clip, tars, vectors, tmp_path, how):
    path = tars / "a.tar"
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        offset = archive.getmember("a4.png").offset
    damaged = {
        "cut": data[: offset + 600],
        "cut_between": data[:offset],
        "header": data[:offset] + bytes(range(256)) * 2 + data[offset + 512 :],
        "junk": data[:offset] + b"x" * 5000,
    }
    path.write_bytes(damaged[how])
    summary = embed(run, clip, tars, tmp_path / "out", exit_code=1)
    assert summary["errors"] == {"BrokenTar": 1} and summary["rows"] == 4 + 1 + 14
    table = read(tmp_path / "out")
    error = table.iloc[4]
    assert error.key == f"a@{offset}" and error.embedding is None
    assert f"damaged from byte {offset} on" in error.error
    good = table[table.error.isna()]
    assert good.key.tolist() == [key for key in KEYS if key not in ("a4", "a5", "a6")]


def test_every_sample_has_a_row(run, clip, tmp_path):
    billion = io.BytesIO()
    Image.new("1", (40000, 25000)).save(billion, "png")
    files = [
        ("0.png", FILES["a0"]),
        ("1.txt", b"no image"),
        ("2.png", billion.getvalue()),
        ("3.png", FILES["a1"][:60]),
        ("0.png", FILES["a2"]),
        ("4.png", FILES["a3"]),
        ("4.png", FILES["a4"]),
    ]
    write_tar(tmp_path / "in.tar", files)
    summary = embed(run, clip, tmp_path / "in.tar", tmp_path / "out", exit_code=1)
    table = read(tmp_path / "out")
    assert table.key.tolist() == ["0", "1", "2", "3", "0", "4", "4"]
    kinds = [error and error.split(":")[0] for error in table.error]
    assert kinds[:3] == [None, "MissingImage", "DecompressionBombError"] and kinds[3]
    assert kinds[4:] == ["DuplicateKey", None, "DuplicateKey"]
    assert table.embedding.isna().tolist() == [kind is not None for kind in kinds]
    assert summary["errors"]["DuplicateKey"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["in.parquet", "-o", "out/"], "has no column of images that is known: it has 'key', 'picture'"),
        (["in.parquet", "-o", "out/", "--image-column", "x"], "has no column 'x'"),
        (["in.parquet", "-o", "out/", "--image-column", "picture", "--columns", "y"], "has no column 'y'"),
        (["a.png", "-o", "out/", "--image-key", "png"], "--image-key png says nothing about this data"),
        (["a.png", "-o", "out.npy", "--format", "parquet"], "--format acts on an output folder"),
        (["a.png", "-o", "out.npy", "--text-column", "txt"], "--text-column acts on an output folder"),
        (["a.png", "-o", "out/", "--actors", "2"], "--actors acts on --engine ray"),
        (["a.png", "-o", "out/", "--text", "a"], "--text and --texts-file go into"),
        (["-o", "out/", "missing.tar"], "There is no image to work on"),
    ],
    ids=["no_column", "column", "passed", "unused", "format", "text_column", "actors", "text", "missing"],
)
def test_what_cannot_work_is_refused_before_any_work(run, clip, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(FILES["a0"])
    pyarrow.parquet.write_table(pyarrow.table({"key": ["a"], "picture": [FILES["a0"]]}), "in.parquet")
    assert message in run("embed", clip, *options, exit_code=2).stderr
    assert sorted(os.listdir()) == ["a.png", "in.parquet"]


def test_no_space_left_keeps_what_is_whole(run, clip, tars, tmp_path, monkeypatch):
    embed(run, clip, tars, tmp_path / "expected")
    replace = os.replace

    def full(source, target):
        if str(target).endswith("b.parquet"):
            raise OSError(28, "No space left on device", str(target))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(outputs.os, "replace", full)
        assert "No space left on device" in embed(run, clip, tars, tmp_path / "out", exit_code=1)
    assert sorted(contents(tmp_path / "out")) == ["_manifest.json", "a.parquet"]
    embed(run, clip, tars, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_missing_library_is_named_with_its_extra(run, clip, tars, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "webdataset.tariterators", None)
    result = run("embed", clip, tars / "a.tar", "-o", tmp_path / "out/", exit_code=1)
    assert "pip install 'open-clip-transformers[data]'" in result.stderr


@pytest.mark.parametrize("place", ["input", "output"])
def test_addresses_that_cannot_be_used_say_why(run, clip, images, tmp_path, place):
    def embedding(address):
        places = (address, "-o", f"{tmp_path}/out/") if place == "input" else (images[0], "-o", address)
        return run("embed", clip, *places, exit_code=None).stderr

    assert "nowhere://a/b/ is no address of a file: Protocol not known: nowhere" in embedding("nowhere://a/b/")
    if importlib.util.find_spec("s3fs") is None:
        assert "Error: s3://a/b/ needs a package that is not installed. Install s3fs" in embedding("s3://a/b/")
