"""Data sets and outputs that are damaged, oddly named or in use: a row with an error or a message each."""

import gzip
import io
import json
import os
import shutil
import signal
import tarfile
import threading

import datasets
import numpy
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from open_clip_transformers.cli import images as cli_images
from open_clip_transformers.configuration.errors import MissingPackageError, UserError
from open_clip_transformers.datasets import images, shards
from open_clip_transformers.datasets.outputs import ParquetOutput
from open_clip_transformers.datasets.shards import FileShard


pytestmark = pytest.mark.usefixtures("models_loaded_once", "here")
NO_UTF8 = "bad\udcff.png"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def picture(number):
    file = io.BytesIO()
    colours = numpy.random.default_rng(number).integers(0, 256, (30, 31, 3), dtype=numpy.uint8)
    Image.fromarray(colours).save(file, "png")
    return file.getvalue()


PICTURES = [picture(number) for number in range(4)]


def write(path, content):
    with open(path, "wb") as file:
        file.write(content)


def write_tar(path, names):
    with tarfile.open(path, "w") as archive:
        for name, data in zip(names, PICTURES):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def write_parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


@pytest.fixture
def embed(run, clip):
    """Embeds `inputs` -> keys and kinds of errors of the rows."""

    def embed(*inputs, output="out", options=(), exit_code=0):
        fixed = ["-o", f"{output}/", "--batch-size", 2, "--workers", 0, *options]
        result = run("embed", clip, *inputs, *fixed, exit_code=exit_code)
        if exit_code == 2:
            return result.stderr
        table = pandas.concat([pandas.read_parquet(path) for path in sorted(os.scandir(output), key=os.fspath)
                               if path.name.endswith("parquet")])  # fmt: skip
        assert table.embedding.isna().tolist() == table.error.notna().tolist()
        return dict(zip(table.key, (error and error.split(":")[0] for error in table.error)))

    return embed


def test_names_need_not_be_utf8(embed):
    escaped = NO_UTF8.encode(errors="backslashreplace").decode()
    write(NO_UTF8, PICTURES[0])
    write(os.fsencode("list.txt"), os.fsencode(f"{NO_UTF8}\nmissing-{NO_UTF8}\n"))
    write_tar("a\udcfe.tar", [NO_UTF8, "b.png"])
    assert embed(NO_UTF8, output="files") == {escaped: None}
    assert embed("list.txt", output="list", exit_code=1) == {escaped: None, f"missing-{escaped}": "FileNotFoundError"}
    for _ in range(2):
        assert embed("a\udcfe.tar", output="tar") == {escaped.removesuffix(".png"): None, "b": None}
    assert os.fsencode("a\udcfe.parquet") in os.listdir(b"tar")
    write_parquet("in.parquet", image=PICTURES[:1])
    os.rename("in.parquet", "in\udcff.parquet")
    assert "cannot be read as parquet" in embed("in\udcff.parquet", output="parquet", exit_code=2)


def test_half_characters_in_texts_are_escaped(embed):
    with tarfile.open("in.tar", "w") as archive:
        for name, data in (("a.png", PICTURES[0]), ("a.json", b'{"caption": "half \\ud83d"}')):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert embed("in.tar", options=["--text-column", "caption"]) == {"a": None}
    assert pandas.read_parquet("out/in.parquet").caption.tolist() == ["half \\ud83d"]


@pytest.mark.parametrize("how", ["cut", "checksum"])
def test_damaged_gzip_is_noticed(embed, how):
    write_tar("in.tar", ["a.png", "b.png", "c.png", "d.png"])
    with open("in.tar", "rb") as file:
        packed = gzip.compress(file.read())
    write("in.tar.gz", packed[: len(packed) // 2] if how == "cut" else packed[:-8] + b"1234" + packed[-4:])
    found = embed("in.tar.gz", exit_code=1)
    assert list(found.values()) == [*[None] * (1 if how == "cut" else 4), "BrokenTar"]


def test_links_to_nothing_have_rows_and_closed_folders_are_named(embed, monkeypatch):
    os.makedirs("photos/closed")
    write("photos/a.png", PICTURES[0])
    os.symlink("nowhere", "photos/b.png")
    os.symlink("..", "photos/closed/up")
    assert embed("photos", exit_code=1) == {"photos/a.png": None, "photos/b.png": "FileNotFoundError"}
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert "photos: [Errno 13] Permission denied: 'photos/closed'" in embed("photos", output="no", exit_code=2)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', '{"version": 9}'])
def test_damaged_manifest_is_refused(embed, content):
    write("a.png", PICTURES[0])
    os.mkdir("out")
    write("out/_manifest.json", content.encode())
    message = embed("a.png", exit_code=2)
    assert ("version is 9" if "9" in content else "is damaged") in message


@pytest.mark.parametrize("file", ["images-00000.parquet", "img_emb/img_emb_0.npy"])
def test_damaged_outputs_are_named(run, clip, file):
    write("a.png", PICTURES[0])
    layout = "parquet" if file.endswith("parquet") else "clip-retrieval"
    run("embed", clip, "a.png", "-o", "out/", "--workers", 0, "--format", layout)
    os.truncate(f"out/{file}", 150)
    assert f"out/{file} is damaged" in run("search", "out", "a cat", exit_code=1).stderr


def test_output_that_is_a_file_is_refused(embed):
    write("a.png", PICTURES[0])
    write("out", b"")
    assert "out/ is a file: give a folder" in embed("a.png", exit_code=2)


def test_saved_data_sets_that_cannot_be_opened_say_why(embed):
    datasets.Dataset.from_dict({"image": PICTURES}).save_to_disk("saved")
    assert len(embed("saved")) == 4
    assert "leave out --split train" in embed("saved", options=["--split", "train"], exit_code=2)
    shutil.copytree("saved", "broken")
    write("broken/state.json", b"{")
    assert "broken: the data set cannot be opened: JSONDecodeError" in embed("broken", exit_code=2)


def test_odd_columns(embed):
    write("a.png", PICTURES[0])
    write_parquet("paths.parquet", image=["a.png", "", None, "b.png"], key=["a", "b", "c", "d"])
    kinds = embed("paths.parquet", exit_code=1)
    assert kinds == {"a": None, "b": "MissingImage", "c": "MissingImage", "d": "FileNotFoundError"}
    pyarrow.parquet.write_table(pyarrow.table([PICTURES[:1], PICTURES[1:2]], ["image", "image"]), "two.parquet")
    assert "two.parquet has several columns 'image'" in embed("two.parquet", exit_code=2)


def test_changed_tables_are_refused(embed):
    write_parquet("in.parquet", image=PICTURES[:2])
    embed("in.parquet")
    write_parquet("in.parquet", image=[PICTURES[0], picture(9)[:700]])
    assert "holds the outputs of another run: shard 'in' was of" in embed("in.parquet", exit_code=2)


def test_only_one_of_two_runs_at_once_claims_an_output(tmp_path, monkeypatch):
    writes, goes_on = threading.Event(), threading.Event()
    shards = [FileShard("images-00000", "files", ("a.png",))]
    first, second = (ParquetOutput(f"{tmp_path}/out", ["embedding"]) for _ in range(2))
    put = first.put

    def slow(*arguments):
        writes.set()
        goes_on.wait(10)
        put(*arguments)

    monkeypatch.setattr(first, "put", slow)
    thread = threading.Thread(target=first.prepare, args=({"dtype": "float32"}, shards, {}))
    thread.start()
    writes.wait(10)
    threading.Timer(0.1, goes_on.set).start()
    with pytest.raises(UserError, match="dtype was 'float32' and is 'float16'"):
        second.prepare({"dtype": "float16"}, shards, {})
    thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits the size of files of a process that it forks")
@pytest.mark.parametrize("output", ["out/", "out.npy", "out.safetensors"])
def test_no_space_left_names_the_file_and_leaves_nothing(run, clip, output):
    import resource

    write("a.png", PICTURES[0])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        message = run("embed", clip, "a.png", "-o", output, "--workers", 0, exit_code=1).stderr
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert output.strip("/") in message and "should not happen" not in message
    assert not [path for _, _, files in os.walk(".") for path in files if path != "a.png"]


def test_failed_uploads_leave_nothing(monkeypatch, memory):
    output = ParquetOutput("memory://bucket/out", ["embedding"])
    pipe_file = type(memory).pipe_file

    def full(self, path, value, **settings):
        pipe_file(self, path, value[:3], **settings)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(memory), "pipe_file", full)
    with pytest.raises(OSError, match="No space left"):
        output.put("a.parquet", b"content")
    assert not memory.exists("/bucket/out/a.parquet")


def test_manifest_keeps_what_names_are_no_utf8(tmp_path):
    output = ParquetOutput(f"{tmp_path}/out", ["embedding"])
    output.prepare({}, [FileShard("a\udcff", "files", (NO_UTF8,))], {})
    assert list(output.read_manifest()["shards"]) == ["a\udcff"]
    assert json.loads((tmp_path / "out" / "_manifest.json").read_bytes())


@pytest.mark.parametrize("source", ["photos", "photos/**/*.png", "**/*.png", "file://{}/photos"])
def test_linked_folders_are_read_and_loops_are_not_followed(embed, source):
    os.makedirs("photos/a")
    os.mkdir("elsewhere.d")
    write("photos/a/1.png", PICTURES[0])
    write("elsewhere.d/2.png", PICTURES[1])
    os.symlink(os.path.abspath("elsewhere.d"), "photos/b")
    os.symlink("..", "photos/a/loop")
    keys = embed(source.format(os.getcwd()))
    found = {key.rpartition("photos/")[2] for key in keys if "photos" in key}
    assert found == {"a/1.png", "b/2.png"} and set(keys.values()) == {None}
    assert len(keys) == (3 if source.startswith("**") else 2)


def test_patterns_with_braces_stand_for_files_that_are_all_there(embed, memory):
    for number in (0, 1, 3):
        write_tar(f"{number:05d}.tar", ["a.png"])
    memory.put(os.getcwd(), "/tars", recursive=True)
    for folder in ("", "memory://tars/"):
        message = embed(f"{folder}{{00000..00003}}.tar", exit_code=2)
        assert f"1 of the 4 that it stands for cannot be used, such as {folder}00002.tar: no such file" in message
        assert len(embed(f"{folder}{{00000..00001}}.tar", output=f"out{len(folder)}")) == 1
    assert "{0..1}{.tar: no pattern that can be expanded: Unbalanced" in embed("{0..1}{.tar", exit_code=2)


@pytest.mark.parametrize("key", [".png", "PNG", "jpg;png"])
def test_image_keys_as_people_write_them(embed, key):
    write_tar("in.tar", ["a.png", "b.gif"])
    assert embed("in.tar", options=["--image-key", key], exit_code=1) == {"a": None, "b": "MissingImage"}


@pytest.mark.parametrize("workers", [0, 1])
def test_missing_package_of_images_is_no_row(run, clip, workers, monkeypatch):
    """Such rows would stay when the package is there."""

    def no_package(address):
        raise MissingPackageError(f"{address} needs a package")

    monkeypatch.setattr(images, "open_remote", no_package)
    monkeypatch.setattr(cli_images, "worthwhile_workers", lambda names, workers: workers)
    write("list.txt", b"s3://bucket/a.png\n")
    message = run("embed", clip, "list.txt", "-o", "out/", "--workers", workers, exit_code=1).stderr
    assert message.strip().endswith("Error: s3://bucket/a.png needs a package")
    assert os.listdir("out") == ["_manifest.json"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process that it forks")
def test_killed_readers_are_no_fault_of_ours(run, clip, monkeypatch):
    monkeypatch.setattr(images, "read_image", lambda source: os.kill(os.getpid(), signal.SIGKILL))
    write_tar("in.tar", ["a.png", "b.png"])
    message = run("embed", clip, "in.tar", "-o", "out/", "--workers", 1, exit_code=1).stderr
    assert "A process that reads images was ended from outside" in message and "fewer --workers" in message
    assert "should not happen" not in message and os.listdir("out") == ["_manifest.json"]


def test_failed_uploads_keep_the_manifest_that_was_there(monkeypatch, memory):
    shards = [FileShard(f"images-0000{number}", "files", (f"{number}.png",)) for number in range(2)]
    ParquetOutput("memory://bucket/out", ["embedding"]).prepare({}, shards[:1], {})

    def fails(self, path, value, **settings):
        raise OSError(5, "no answer")

    monkeypatch.setattr(type(memory), "pipe_file", fails)
    output = ParquetOutput("memory://bucket/out", ["embedding"])
    with pytest.raises(OSError, match="no answer"):
        output.prepare({}, shards, {})
    output.prepare({}, shards[:1], {})  # which has nothing to write
    assert list(output.read_manifest()["shards"]) == ["images-00000"]


def test_sweeping_leaves_a_manifest_that_is_being_written(tmp_path):
    output = ParquetOutput(f"{tmp_path}/out", ["embedding"])
    output.prepare({}, [], {})
    temporary = tmp_path / "out" / "._manifest.json.0123.tmp"
    temporary.write_bytes(b"")
    with output._claimed():
        thread = threading.Thread(target=ParquetOutput(f"{tmp_path}/out", ["embedding"]).sweep)
        thread.start()
        thread.join(0.2)
        assert temporary.exists()
    thread.join()
    assert not temporary.exists()


def test_what_was_done_is_counted_by_the_ends_of_files(embed, monkeypatch):
    """The rows of a shard are read only where some have errors."""
    for name, names in (("good", ["a.png", "b.png"]), ("bad", ["a.png", "b.txt"])):
        write_tar(f"{name}.tar", names)
    embed("good.tar", "bad.tar", exit_code=1)
    output, read = ParquetOutput("out", ["embedding"]), []
    read_row_groups = pyarrow.parquet.ParquetFile.read_row_groups
    monkeypatch.setattr(
        pyarrow.parquet.ParquetFile,
        "read_row_groups",
        lambda self, groups, *others: read.append(list(groups)) or read_row_groups(self, groups, *others),
    )
    assert output.found("good", 0) == (2, [])
    ((key, error),) = output.found("bad", 1)[1]
    assert (key, error.kind) == ("b", "MissingImage") and read == [[], [0]]


def test_model_that_vanishes_is_missed_by_the_next_run_alone(run, clip, monkeypatch):
    shutil.copytree(clip, "model")
    write_tar("a.tar", ["a.png"])
    write_tar("b.tar", ["a.png"])
    open_binary = shards.open_binary

    def vanish(address):
        shutil.rmtree("model", ignore_errors=True)
        return open_binary(address)

    command = ["a.tar", "b.tar", "--workers", 0, "-o"]
    run("embed", clip, *command, "expected/")
    with monkeypatch.context() as patch:
        patch.setattr(shards, "open_binary", vanish)
        run("embed", "model", *command, "out/")
    for name in ("a.parquet", "b.parquet"):
        with open(f"expected/{name}", "rb") as one, open(f"out/{name}", "rb") as other:
            assert one.read() == other.read()
    assert "model: there is no such folder" in run("embed", "model", *command, "out/", exit_code=2).stderr
