"""Folders that are being written: where they may lie, who may write them, and what is left of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.outputs import check_output, new_folder, written_whole


ROOT = Path(__file__).parents[2]
# Another process, which writes weights for as long as it is let.
WRITER = """
import sys, time
from pathlib import Path
from open_clip_transformers.convert_scripts.outputs import new_folder
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "model.safetensors").write_text("half")
    (folder / "deeper").mkdir()
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def hangup_ends_processes():
    """As by default, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def write(output: Path):
    with new_folder(output) as folder:
        (folder / "config.json").write_text("{}")
        (folder / "deeper").mkdir()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def start(tmp_path):
    """Starts the other process, which writes to a folder; it is ended with the test."""
    started = []

    def start(output: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", WRITER, str(output)]
        writer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        started.append(writer)
        assert writer.stdout.readline() == "writing\n"
        return writer

    yield start
    for writer in started:
        writer.kill()
        writer.wait()
        writer.stdout.close()


def test_output_may_be_where_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path())
    # Still the same folder, as a shell that stands in it needs.
    assert names(tmp_path) == sorted(os.listdir()) == ["config.json", "deeper"]


@pytest.mark.parametrize("exists", [True, False], ids=["empty-folder", "nothing-there"])
def test_output_may_be_a_link(tmp_path, exists):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    if exists:
        (tmp_path / "target").mkdir()
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "target") == ["config.json", "deeper"]
    assert names(tmp_path) == ["link", "target"]


def test_output_that_is_no_place_for_a_folder_is_refused_first(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for output, message in (("file", "not an empty folder"), ("file/out", "is not a folder"), ("loop", "loop")):
        with pytest.raises(ConversionError, match=message):
            check_output(tmp_path / output)
    assert names(tmp_path) == ["file", "loop"]


@pytest.mark.parametrize("exists", [True, False], ids=["empty-folder", "nothing-there"])
def test_failure_leaves_what_was_there(tmp_path, exists):
    output = tmp_path / "new" / "out"
    if exists:
        output.mkdir(parents=True)
    with pytest.raises(RuntimeError), new_folder(output) as folder:
        (folder / "config.json").write_text("{}")
        raise RuntimeError
    assert names(tmp_path) == (["new"] if exists else [])
    assert not exists or names(output) == []


@pytest.mark.parametrize("exists", [True, False], ids=["empty-folder", "nothing-there"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signal_that_ends_the_process_leaves_nothing(tmp_path, start, number, exists):
    if exists:
        (tmp_path / "out").mkdir()
    writer = start(tmp_path / "out")
    writer.send_signal(number)
    assert writer.wait(30) == 128 + number
    assert names(tmp_path) == (["out"] if exists else [])
    assert not exists or names(tmp_path / "out") == []


@pytest.mark.parametrize("exists", [True, False], ids=["empty-folder", "nothing-there"])
def test_place_is_taken_until_its_writer_is_gone_and_then_swept(tmp_path, start, exists):
    if exists:
        (tmp_path / "out").mkdir()
    (tmp_path / ".other.open_clip_transformers").mkdir()
    writer = start(tmp_path / "out")
    for attempt in (check_output, write):
        with pytest.raises(ConversionError, match="is being written by another process"):
            attempt(tmp_path / "out")
    writer.kill()
    writer.wait()
    assert len(list(tmp_path.rglob("model.safetensors"))) == 1
    write(tmp_path / "out")
    assert names(tmp_path / "out") == ["config.json", "deeper"]
    assert names(tmp_path) == [".other.open_clip_transformers", "out"]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_not_ours_is_never_swept(tmp_path, kind):
    in_the_way, precious = tmp_path / ".out.open_clip_transformers", tmp_path / "precious"
    (in_the_way if kind == "folder" else precious).mkdir()
    for folder in (in_the_way, precious):
        if folder.is_dir():
            (folder / "mine.txt").write_text("mine")
            (folder / ".unfinished").write_text("") if folder == precious else None
    if kind == "file":
        in_the_way.write_text("mine")
    if kind == "link":
        in_the_way.symlink_to(precious)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConversionError, match="is in the way"):
        write(tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_handlers_of_others_stay(tmp_path):
    def handler(*args):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with new_folder(tmp_path / "out"):
            assert signal.getsignal(signal.SIGTERM) is handler
            assert signal.getsignal(signal.SIGHUP) not in (signal.SIG_DFL, handler)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_file_is_there_as_a_whole_or_as_it_was(tmp_path):
    path = tmp_path / "e.npy"
    path.write_text("before")
    with pytest.raises(SystemExit), written_whole(path) as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert path.read_text() == "before"
    assert names(tmp_path) == ["e.npy"]


def test_what_is_left_of_a_file_is_swept_by_its_next_writer(tmp_path):
    path = tmp_path / "e.npy"
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from open_clip_transformers.convert_scripts.outputs import written_whole\n"
        "with written_whole(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, path], cwd=ROOT).returncode == -signal.SIGKILL
    assert not path.exists() and len(names(tmp_path)) == 1
    with written_whole(path) as temporary:
        temporary.write_text("whole")
        with pytest.raises(ConversionError, match=r"e\.npy is being written by another process"), written_whole(path):
            pass
    assert names(tmp_path) == ["e.npy"] and path.read_text() == "whole"
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "missing" / "e.npy"):
        pass
