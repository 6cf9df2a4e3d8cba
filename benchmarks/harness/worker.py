"""The process of one contestant: builds it, runs it and measures it, as lines of JSON on its standard input ask.

A contestant is a class with this interface; it needs no base class. Its module is imported before memory is first
measured, so libraries are imported at its top. Raise `harness.cells.NotRun(reason)` where it cannot run.

Answers are lines of JSON on what was standard output; what is printed goes to standard error. Commands:

    {"command": "describe", "device"}             -> {"versions": {...}, "gpu": its name, or None}
    {"command": "ceilings", "device", "quick"}    -> {"ceilings": {...}}
    {"command": "build", "module", "contestant", "settings", "folder"}  -> {}
    {"command": "run", "repeats"}                 -> {"seconds": of all repeats}
    {"command": "finish"}                         -> {"baseline", "peak", "outputs", "bound", "figures"}

An error is answered with {"error": message, "not_run": bool}, and the process goes on.
"""

import gc
import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Protocol

from . import ceilings, machine, memory
from .cells import NotRun


class Contestant(Protocol):
    """What is measured. All but `__init__` and `run` (or `timed_run`) may be left out.

    settings: the cell's, with "device".
    folder: shared by all processes of the run, which build one after the other; what one makes there, others find.

    What must not be timed (loading, compiling: call `self.run()` once) belongs in `__init__`. After each sample the
    attribute `result` is what the last `run` returned.
    """

    def __init__(self, settings: dict, folder: Path): ...

    def run(self) -> object:
        """The work that is timed; on a GPU it need not wait for the device."""

    def timed_run(self) -> float:
        """In the place of `run`: does the work once and returns the seconds of it that count."""

    def outputs(self) -> list | None:
        """What is compared with the other contestants: floats, or tokens or strings, nested at will."""

    def bound(self) -> dict | list[dict] | None:
        """`{"flops", "bytes", "dtype"}` of one run, or a list of them that follow each other; asked of ours."""

    def figures(self) -> dict:
        """More numbers or words for the report, by name."""

    def peak_bytes(self) -> int | None:
        """The most memory of the work, where it is done in another process."""


class Session:
    """The state of a worker: at most one contestant, and what memory was before the first."""

    def __init__(self):
        self.contestant = None
        self.device = "cpu"
        self.baseline = None

    def describe(self, device: str) -> dict:
        return {"versions": machine.versions(), "gpu": None if device == "cpu" else machine.gpu_name()}

    def ceilings(self, device: str, quick: bool) -> dict:
        return {"ceilings": ceilings.measure(device, quick)}

    def build(self, module: str, contestant: str, settings: dict, folder: str) -> dict:
        """Takes the place of the contestant before."""
        made = importlib.import_module(module).CONTESTANTS[contestant]
        self.contestant = None
        self.device = settings.get("device", "cpu")
        gc.collect()
        if self.baseline is None:
            self.baseline = memory.current(self.device)
        self.contestant = made(settings, Path(folder))
        gc.collect()
        memory.reset_peak(self.device)
        return {}

    def run(self, repeats: int) -> dict:
        contestant = self.contestant
        # What was made before is no part of the memory of this run.
        contestant.result = None
        if hasattr(contestant, "timed_run"):
            return {"seconds": sum(contestant.timed_run() for _ in range(repeats))}
        self._synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            result = contestant.run()
        self._synchronize()
        seconds = time.perf_counter() - start
        contestant.result = result
        return {"seconds": seconds}

    def finish(self) -> dict:
        """Peak memory first: what follows it is no part of the work."""
        peak = memory.peak(self.device)
        own_peak = self._optional("peak_bytes")
        return {
            "baseline": self.baseline if own_peak is None else 0,
            "peak": peak if own_peak is None else own_peak,
            **{name: self._optional(name) for name in ("outputs", "bound", "figures")},
        }

    def _optional(self, name: str):
        return getattr(self.contestant, name)() if hasattr(self.contestant, name) else None

    def _synchronize(self):
        if self.device != "cpu":
            import torch

            torch.accelerator.synchronize()


COMMANDS = ("describe", "ceilings", "build", "run", "finish")


def answer(session: Session, line: str) -> str:
    """The answer to one line, which is an error where the command raises."""
    request = json.loads(line)
    command = request.pop("command")
    try:
        if command not in COMMANDS:
            raise ValueError(f"Command must be one of {', '.join(COMMANDS)}, got {command!r}.")
        # Tensors and arrays become lists.
        return json.dumps(getattr(session, command)(**request), default=lambda value: value.tolist())
    except Exception as error:
        traceback.print_exc()
        not_run = isinstance(error, NotRun | ModuleNotFoundError)
        message = str(error) if not_run else f"{type(error).__name__}: {error}"
        return json.dumps({"error": message, "not_run": not_run})


def main():
    """Serves until standard input ends."""
    # Libraries that print, and processes that they start, must not get between the lines of the protocol.
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    session = Session()
    for line in requests:
        answers.write(answer(session, line) + "\n")
        answers.flush()


if __name__ == "__main__":
    sys.exit(main())
