"""Runs over data sets that are killed at random moments and started again, by one process and by several ranks."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
from PIL import Image


pytestmark = [
    pytest.mark.usefixtures("models_loaded_once"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes that it forks"),
]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def photos(tmp_path):
    """Images in 11 shards of two, one of which cannot be read."""
    (tmp_path / "photos").mkdir()
    generator = numpy.random.default_rng(0)
    for number in range(22):
        pixels = generator.integers(0, 256, (40, 31 + number, 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number:02d}.png")
    (tmp_path / "photos" / "07.png").write_bytes(b"no image")
    return tmp_path / "photos"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start(*arguments):
    """Runs the command line in a fork of this process, which has imported everything; returns its id."""
    sys.stdout.flush()
    if (pid := os.fork()) == 0:
        code = 70
        try:
            from typer.testing import CliRunner

            from open_clip_transformers.cli import app

            code = CliRunner().invoke(app, [str(argument) for argument in arguments]).exit_code
        finally:
            os._exit(code)
    return pid


def finish(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_and_resume(command, output, kills):
    """Kills a run at `kills` random moments, each time at another number of workers, and lets it end."""
    began = time.monotonic()
    assert finish(start(*command, "-o", output / "whole", "--workers", 0)) == 1
    duration = time.monotonic() - began
    expected = contents(output / "whole")
    left = []
    for number in range(kills):
        place = output / f"{number}"
        # Several times into one output, so that it is killed at other places too.
        for _ in range(2):
            pid = start(*command, "-o", place, "--workers", random.choice([0, 2]))
            time.sleep(random.uniform(0.3, 1) * duration)
            os.kill(pid, signal.SIGKILL)
            finish(pid)
        left.append(len(contents(place)))
        assert finish(start(*command, "-o", place, "--workers", random.choice([0, 1, 2]))) == 1
        assert contents(place) == expected
    assert min(left) < len(expected) or kills < 4, "no run was killed before its end"


@pytest.mark.parametrize("layout", ["parquet", "clip-retrieval"])
def test_killed_runs_end_with_the_same_bytes(run, clip, photos, tmp_path, layout):
    run("embed", clip, photos, "-o", tmp_path / "imports.npy", exit_code=1)
    command = ["embed", clip, photos, "--shard-size", 2, "--batch-size", 2, "--format", layout]
    kill_and_resume(command, tmp_path, kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["parquet", "clip-retrieval"])
def test_fifty_killed_runs_end_with_the_same_bytes(run, clip, photos, tmp_path, layout):
    run("embed", clip, photos, "-o", tmp_path / "imports.npy", exit_code=1)
    command = ["embed", clip, photos, "--shard-size", 2, "--batch-size", 2, "--format", layout]
    kill_and_resume(command, tmp_path, kills=25)


def test_killed_labels_end_with_the_same_bytes(run, clip, photos, tmp_path, kills=1):
    run("classify", clip, photos, "--labels", "cat,dog", exit_code=1)
    command = ["classify", clip, photos, "--labels", "cat,dog", "--top", 2, "--shard-size", 2, "--batch-size", 2]
    kill_and_resume(command, tmp_path, kills)


@pytest.mark.slow
def test_labels_killed_at_many_moments_end_with_the_same_bytes(run, clip, photos, tmp_path):
    test_killed_labels_end_with_the_same_bytes(run, clip, photos, tmp_path, kills=13)  # twice each


@pytest.mark.slow
def test_killed_captions_end_with_the_same_bytes(run, coca, photos, tmp_path):
    run("caption", coca, photos, exit_code=1)
    command = ["caption", coca, photos, "--shard-size", 2, "--batch-size", 2, "--temperature", 2, "--seed", 3]
    kill_and_resume(command, tmp_path, kills=10)


def test_two_runs_at_once_write_the_same(run, clip, photos, tmp_path):
    command = ["embed", clip, photos, "--shard-size", 2, "--batch-size", 2]
    run(*command, "-o", tmp_path / "alone", exit_code=1)
    pids = [start(*command, "-o", tmp_path / "shared", "--workers", 0) for _ in range(2)]
    assert [finish(pid) for pid in pids] == [1, 1]
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def start_ranks(number, *arguments):
    """Runs the command line as torchrun does, in that many ranks with their variables; returns their ids."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(random.randint(20000, 60000)), "WORLD_SIZE": str(number)}
    pids = []
    for rank in range(number):
        os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
        pids.append(start(*arguments))
    for name in (*place, "RANK", "LOCAL_RANK"):
        del os.environ[name]
    return pids


def wait_for(files, folder):
    """Waits for shards, and then for a random moment more."""
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.parquet"))) < files:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.05))


def test_ranks_share_the_shards(run, clip, photos, tmp_path):
    """And have an exit code that all of them share; killed, others go on, be they fewer or more."""
    command = ["embed", clip, photos, "--shard-size", 2, "--batch-size", 2, "--json", "--workers", 0]
    run(*command, "-o", tmp_path / "alone", exit_code=1)
    pids = start_ranks(2, *command, "-o", tmp_path / "ranks")
    assert [finish(pid) for pid in pids] == [1, 1]
    assert contents(tmp_path / "ranks") == contents(tmp_path / "alone")
    for number in (1, 3):
        output = tmp_path / f"killed{number}"
        pids = start_ranks(2, *command, "-o", output)
        wait_for(number, output)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            finish(pid)
        assert [finish(pid) for pid in start_ranks(number, *command, "-o", output)] == [1] * number
        assert contents(output) == contents(tmp_path / "alone")


def family(pid):
    """Ids of a process and of all below it."""
    lines = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True).stdout.splitlines()[1:]
    parents = dict(map(int, line.split()) for line in lines)
    found = [pid]
    for parent in found:
        found += [child for child, above in parents.items() if above == parent]
    return found


def launch(launcher, number, script, *arguments):
    how = {"torch.distributed.run": f"--nproc_per_node={number}", "accelerate.commands.launch": "--cpu"}
    more = (
        [] if launcher.startswith("torch") else [f"--num_processes={number}", f"--main_process_port={23400 + number}"]
    )
    script.write_text("from open_clip_transformers.cli import main\nmain()\n")
    return subprocess.Popen(
        [sys.executable, "-m", launcher, how[launcher], *more, script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torch.distributed.run", "accelerate.commands.launch"])
def test_killed_launchers_end_with_the_same_bytes(run, clip, photos, tmp_path, launcher):
    command = ["embed", clip, photos, "--shard-size", 2, "--batch-size", 2, "--json", "--workers", 0]
    run(*command, "-o", tmp_path / "alone", exit_code=1)
    for moment in range(5):
        output = tmp_path / str(moment)
        ranks = launch(launcher, 2, tmp_path / "script.py", *command, "-o", output)
        wait_for(random.randint(0, 9), output)
        for pid in family(ranks.pid):
            os.kill(pid, signal.SIGKILL)
        ranks.communicate()
        stdout, _ = launch(launcher, (1, 3)[moment % 2], tmp_path / "script.py", *command, "-o", output).communicate()
        summary = json.loads(stdout)
        assert summary["rows"] + summary["rows_done_before"] == 22
        assert contents(output) == contents(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torch.distributed.run", "accelerate.commands.launch"])
def test_launchers_start_ranks(run, clip, photos, tmp_path, launcher):
    command = ["embed", str(clip), str(photos), "--shard-size", "2", "--batch-size", "2", "--json"]
    run(*command, "-o", tmp_path / "alone", exit_code=1)
    number = "--nproc_per_node=2" if launcher.startswith("torch") else "--num_processes=2"
    cpu = [] if launcher.startswith("torch") else ["--cpu", "--multi_gpu"][:1]
    script = tmp_path / "script.py"
    script.write_text("from open_clip_transformers.cli import main\nmain()\n")
    result = subprocess.run(
        [sys.executable, "-m", launcher, number, *cpu, script, *command, "-o", tmp_path / "ranks"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert '"rows": 22' in result.stdout, result.stderr
    assert contents(tmp_path / "ranks") == contents(tmp_path / "alone")
