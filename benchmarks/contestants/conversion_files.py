"""Conversions of a checkpoint and copies of it, from the disk to the disk."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path

import torch
from harness import machine
from harness.cells import NotRun
from safetensors.torch import load_file

from contestants.weights import weights_folder


SAMPLE_SECONDS = 0.005
# Waits for a line on standard input once everything is imported; prints the seconds of processors.
CHILD = """
import json, time
from transformers.utils import logging
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
logging.disable_progress_bar()
print("ready", flush=True)
settings = json.loads(input())
start = time.process_time()
convert_open_clip_checkpoint(**settings, verify="structure")
print(time.process_time() - start, flush=True)
input()
"""


def checkpoint(settings: dict, folder: Path) -> Path:
    """Return the file to convert, which lies beside its open_clip_config.json."""
    source = weights_folder("open_clip", settings, folder)
    file = source / "open_clip_model.safetensors"
    if settings["format"] == "safetensors":
        return file
    packed = source.with_name(f"{source.name}-pt")
    if not packed.exists():
        unfinished = packed.with_name(f"{packed.name}.unfinished")
        unfinished.mkdir()
        shutil.copy(source / "open_clip_config.json", unfinished)
        torch.save(load_file(file), unfinished / "open_clip_pytorch_model.bin")
        unfinished.rename(packed)
    return packed / "open_clip_pytorch_model.bin"


def drop_from_cache(path: Path):
    """Write a file to the disk and drop it from the system's cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def flush(folder: Path):
    """Wait until the files of a folder are on the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def private_memory(pid: int) -> int:
    """Private resident bytes of a process (RssAnon of Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


class FromDisk(ABC):
    """Work on a file that is in no cache, into a folder that is new each time."""

    def __init__(self, settings: dict, folder: Path):
        if not hasattr(os, "posix_fadvise"):
            raise NotRun("the system's cache of files cannot be emptied")
        self.settings, self.folder = settings, folder
        self.source = checkpoint(settings, folder)

    def timed_run(self) -> float:
        with tempfile.TemporaryDirectory(dir=self.folder) as target:
            drop_from_cache(self.source)
            return self.seconds(Path(target))

    @abstractmethod
    def seconds(self, target: Path) -> float:
        """Do the work and return its time."""


class Copy(FromDisk):
    def seconds(self, target: Path) -> float:
        start = time.perf_counter()
        shutil.copy(self.source, target)
        flush(target)
        return time.perf_counter() - start


class Conversion(FromDisk):
    """In a process of its own, whose memory is watched meanwhile."""

    def __init__(self, settings: dict, folder: Path):
        super().__init__(settings, folder)
        self.peak, self.cpu_seconds = 0, 0.0

    def seconds(self, target: Path) -> float:
        output = target / "converted"
        arguments = {"source": str(self.source.parent), "output_dir": str(output), "dtype": self.settings["dtype"]}
        command = [sys.executable, "-c", CHILD]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            _answer(child)
            with machine.sampled(partial(private_memory, child.pid), SAMPLE_SECONDS) as sizes:
                start = time.perf_counter()
                child.stdin.write(json.dumps(arguments) + "\n")
                child.stdin.flush()
                self.cpu_seconds = float(_answer(child))
            flush(output)
            seconds = time.perf_counter() - start
            child.communicate("\n")
        self.peak = max(self.peak, max(sizes) - sizes[0])
        return seconds

    def peak_bytes(self) -> int:
        return self.peak

    def figures(self) -> dict:
        size = self.source.stat().st_size
        return {
            "checkpoint, GB": size / 1e9,
            "memory, share of the checkpoint": self.peak / size,
            "seconds of processors": self.cpu_seconds,
        }


def _answer(child: subprocess.Popen) -> str:
    line = child.stdout.readline()
    if not line:
        raise OSError(f"The conversion failed with exit code {child.wait()}.")
    return line


CONTESTANTS = {"ours": Conversion, "copy": Copy}
