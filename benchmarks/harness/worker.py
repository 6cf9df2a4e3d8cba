"""The process of one contestant: build it, run it and measure it, as the parent (measure.py) asks.

A contestant is a class, or another callable, of `settings` (the cell's, with "device") and `folder` (shared by all
processes of the run, which build one after the other). What must not be timed, loading and compiling, belongs in its
`__init__`; its module is imported before memory is first measured. It raises `NotRun` where it cannot run. It has

    run() -> object           the work that is timed; on a GPU it need not wait for the device
    timed_run() -> float      in the place of `run`: do the work and return the seconds of it that count

and may have, of which `self.result` is what the last `run` returned,

    outputs() -> list | None  what is compared with the other contestants: floats, or tokens or strings, nested at will
    bound() -> dict | list    `{"flops", "bytes", "dtype"}` of one run, or a list of such steps; asked of ours
    figures() -> dict         more numbers or words for the report, by name
    peak_bytes() -> int       the most memory of the work, where it is done in another process
"""

import gc
import importlib
import os
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from . import machine
from .cells import NotRun


class Session:
    """The commands of a worker: at most one contestant, and what memory was before the first."""

    contestant: object = None
    baseline: int | None = None
    device = "cpu"

    def describe(self, device: str) -> dict:
        return {"machine": machine.describe(device), "versions": machine.versions()}

    def ceilings(self, device: str, quick: bool) -> dict[str, float]:
        return machine.ceilings(device, quick)

    def build(self, module: str, contestant: str, settings: dict, folder: Path):
        """Put a contestant in the place of the one before."""
        made = importlib.import_module(module).CONTESTANTS[contestant]
        self.contestant, self.device = None, settings["device"]
        gc.collect()
        if self.baseline is None:
            self.baseline, _ = machine.memory(self.device)
        self.contestant = made(settings, folder)
        gc.collect()
        machine.reset_peak_memory(self.device)

    def run(self, repeats: int) -> float:
        """Seconds of `repeats` runs."""
        contestant = self.contestant
        # What was made before is no part of the memory of this run.
        contestant.result = None
        if hasattr(contestant, "timed_run"):
            return sum(contestant.timed_run() for _ in range(repeats))
        machine.synchronize(self.device)
        start = time.perf_counter()
        for _ in range(repeats):
            result = contestant.run()
        machine.synchronize(self.device)
        seconds = time.perf_counter() - start
        contestant.result = result
        return seconds

    def finish(self) -> dict:
        """Memory first: what follows it is no part of the work."""
        report = {"baseline": self.baseline, "peak": machine.memory(self.device)[1]}
        for name in ("peak_bytes", "outputs", "bound", "figures"):
            report[name] = getattr(self.contestant, name, lambda: None)()
        return report


def main():
    """Answer ("answer", value), ("not run", reason) or ("failed", message) until the parent is gone."""
    # Processes that contestants start do not hold the line open.
    os.set_inheritable(handle := int(sys.argv[1]), False)
    connection, session = Connection(handle), Session()
    while True:
        try:
            command, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = "answer", getattr(session, command)(**arguments)
        except (NotRun, ModuleNotFoundError) as error:
            answer = "not run", str(error)
        except Exception as error:
            traceback.print_exc()
            answer = "failed", f"{type(error).__name__}: {error}"
        connection.send(answer)


if __name__ == "__main__":
    main()
