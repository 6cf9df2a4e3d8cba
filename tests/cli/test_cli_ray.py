"""Data sets on a Ray cluster of two nodes, one of whose workers, then a node, and then the driver is killed."""

import functools
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
from PIL import Image

from open_clip_transformers.cli.data import _load_unchanged, model_fingerprint
from open_clip_transformers.configuration.errors import UserError
from open_clip_transformers.datasets.outputs import ParquetOutput
from open_clip_transformers.datasets.run_on_ray import _Actor, check_address
from open_clip_transformers.datasets.shards import FileShard


ray = pytest.importorskip("ray")
ROOT = Path(__file__).parents[2]
SHARDS = 24


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    generator = numpy.random.default_rng(0)
    for number in range(2 * SHARDS):
        pixels = generator.integers(0, 256, (40, 31 + number, 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number:02d}.png")
    (tmp_path / "photos" / "07.png").write_bytes(b"no image")
    return tmp_path / "photos"


@pytest.fixture
def environment(monkeypatch):
    """The path on which Ray's processes find the package."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    return os.environ


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_for(shards, folder, process):
    deadline = time.monotonic() + 600
    while len(list(folder.glob("*.parquet"))) < shards:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.02)


def actor_processes():
    """Ids of the processes below this one that are actors and work on shards."""
    lines = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout.splitlines()[1:]
    processes = {int(pid): (int(parent), name) for pid, parent, name in (line.split(None, 2) for line in lines)}

    def is_ours(pid):
        return pid == os.getpid() or (pid in processes and is_ours(processes[pid][0]))

    return [
        pid for pid, (_, name) in processes.items() if "ray::MapWorker(MapBatches(_Actor))" in name and is_ours(pid)
    ]


@pytest.mark.slow
def test_lost_workers_nodes_and_drivers_change_nothing(run, clip, photos, tmp_path, environment, monkeypatch):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    node = cluster.add_node(num_cpus=2)
    monkeypatch.chdir(tmp_path)  # which is not where the nodes were started
    command = ["embed", str(clip), photos.name, "--shard-size", "2", "--batch-size", "2", "--workers", "0", "--json"]
    run(*command, "-o", tmp_path / "alone", exit_code=1)
    on_ray = [sys.executable, "-m", "open_clip_transformers", *command, "-o", str(tmp_path / "out"),
              "--engine", "ray", "--address", cluster.address, "--actors", "3"]  # fmt: skip

    def start():
        return subprocess.Popen(on_ray, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    try:
        driver = start()
        wait_for(2, tmp_path / "out", driver)
        os.kill(actor_processes()[0], signal.SIGKILL)
        wait_for(6, tmp_path / "out", driver)
        cluster.remove_node(node, allow_graceful=False)
        wait_for(10, tmp_path / "out", driver)
        driver.kill()
        driver.communicate()
        done = len(list((tmp_path / "out").glob("*.parquet")))
        driver = start()
        stdout, stderr = driver.communicate(timeout=600)
        assert driver.returncode == 1 and stdout, (driver.returncode, stderr)
        summary = json.loads(stdout)
    finally:
        cluster.shutdown()
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert summary["shards"] + summary["shards_done_before"] == SHARDS
    assert summary["shards_done_before"] >= done - 1
    assert summary["rows"] + summary["rows_done_before"] == 2 * SHARDS
    assert summary["errors"] == {"UnidentifiedImageError": 1}


@pytest.mark.slow
def test_gpus_that_no_node_has_are_refused(run, clip, photos, tmp_path, environment):
    command = ["embed", clip, photos, "-o", tmp_path / "out", "--engine", "ray", "--gpus-per-actor", 99]
    message = run(*command, exit_code=1).stderr
    assert "--gpus-per-actor 99 is more than a node of the Ray cluster has" in message


def test_ray_starts_a_cluster_of_its_own(run, clip, photos, tmp_path, environment, monkeypatch):
    command = ["embed", clip, photos, "--shard-size", "8", "--batch-size", "2", "--workers", "0", "--json"]
    run(*command, "-o", tmp_path / "alone", exit_code=1)
    shutdown = ray.shutdown
    monkeypatch.setattr(ray, "shutdown", lambda: (print("(raylet) A node has died."), shutdown()))
    result = run(*command, "-o", tmp_path / "out", "--engine", "ray", "--actors", 1, exit_code=1)
    assert json.loads(result.stdout)["rows"] == 2 * SHARDS
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (FileNotFoundError(2, "No such file", "model"), UserError, "No such file: 'model'"),
        (ZeroDivisionError("by zero"), RuntimeError, "ZeroDivisionError: by zero"),
    ],
    ids=["expected", "fault"],
)
def test_errors_of_actors_reach_the_driver(tmp_path, error, kind, message):
    """Errors of actors are sent to the driver, as Ray would try again to load a model that is gone, for ever."""

    def load():
        raise error

    output = ParquetOutput(f"{tmp_path}/out", ["embedding"])
    actor = _Actor(load, None, output, [(0, FileShard("a", "files", ()))], os.getcwd())
    *_, found = pickle.loads(actor({"place": [0]})["report"][0])
    assert type(found) is kind and message in str(found)


def test_actors_work_in_the_folder_of_the_driver(tmp_path, monkeypatch):
    """Or not at all: names of files are relative to it, and a row each says that a file is not there."""
    monkeypatch.chdir(tmp_path)
    output = ParquetOutput(f"{tmp_path}/out", ["embedding"])

    def report(folder):
        def work(task, places, warn):
            return os.getcwd()

        actor = _Actor(lambda: None, work, output, [(0, FileShard("a", "files", ("a.png",)))], str(folder))
        return pickle.loads(actor({"place": [0]})["report"][0])

    (tmp_path / "here").mkdir()
    assert report(tmp_path / "here") == (str(tmp_path / "here"), [], None)
    *_, error = report(tmp_path / "gone")
    assert "gone, where the command was started, is not on" in str(error)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://unreachable:10001", "Ray Data does not work through a client"),
        ("here", "expected auto, or HOST:PORT"),
        ("unreachable.invalid:6379", "no Ray cluster answers there"),
        ("127.0.0.1:1", "no Ray cluster answers there"),
        ("127.0.0.1:99999", "no Ray cluster answers there"),
    ],
    ids=["client", "no_port", "no_host", "refused", "port"],
)
def test_clusters_that_are_not_there_are_refused_at_once(run, clip, photos, tmp_path, monkeypatch, address, message):
    command = ["embed", clip, photos, "-o", tmp_path / "out", "--engine", "ray", "--address"]
    start = time.monotonic()
    assert message in run(*command, address, exit_code=2).stderr
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert message in run(*command, "auto", exit_code=2).stderr
    assert time.monotonic() - start < 30 and not (tmp_path / "out").exists()


def test_new_clusters_need_no_address():
    for address in (None, "local"):
        check_address(address)


def test_ray_has_actors_in_place_of_ranks(run, clip, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = run("embed", clip, photos, "-o", tmp_path / "out", "--engine", "ray", exit_code=2).stderr
    assert "actors in place of ranks" in message


def test_actors_refuse_a_model_that_changed(clip):
    load = functools.partial(_load_unchanged, lambda device: "task", str(clip), None)
    assert load(model_fingerprint(str(clip), None), "cpu") == "task"
    with pytest.raises(UserError, match="is not the model that it was when the run began"):
        load("another", "cpu")
