"""The parent's side of a worker: starts the process, asks it, and turns whatever goes wrong into one exception."""

import contextlib
import json
import select
import subprocess
from pathlib import Path

from .environments import python_of, variables


# Building may compile; a run of the slowest contestant takes minutes.
LIMIT_SECONDS = 1800.0
EXIT_SECONDS = 30.0
STDERR_LINES = 12


class WorkerError(Exception):
    """What a worker could not do. `not_run`: it cannot be done here at all, which is no failure."""

    def __init__(self, message: str, not_run: bool = False):
        super().__init__(message)
        self.not_run = not_run


class Worker:
    """A process of an environment that waits for commands (worker.py); a context manager, which ends it.

    environment: a name of environments.py.
    folder: where its standard error is kept while it lives, and which it runs in.
    name: of that file.
    """

    def __init__(self, environment: str, folder: Path, name: str, threads: int):
        self.environment = environment
        self.alive = True
        self._log = folder / f"{name}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python_of(environment), "-m", "harness.worker"],
                cwd=folder,
                env=variables(threads),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def ask(self, command: str, limit: float = LIMIT_SECONDS, **arguments) -> dict:
        """The answer to a command; raises WorkerError for an error, a death, or no answer within `limit` seconds."""
        try:
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):  # the pipe is broken, or was closed here
            self._raise_death()
        # One answer to one command, so nothing waits in the buffer of the pipe's reader.
        if not select.select([self._process.stdout], [], [], limit)[0]:
            self.close()
            raise WorkerError(f'no answer to "{command}" within {limit:.0f} s')
        line = self._process.stdout.readline()
        if not line:
            self._raise_death()
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"], reply["not_run"])
        return reply

    def run(self, repeats: int) -> float:
        """Seconds of `repeats` runs of the contestant that was built."""
        return self.ask("run", repeats=repeats)["seconds"]

    def close(self):
        """Ends the process and frees its memory before it returns."""
        if not self.alive:
            return
        self.alive = False
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception):
        self.close()

    def _raise_death(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=EXIT_SECONDS)
        self.close()
        code = self._process.returncode
        ending = f"signal {-code}" if code < 0 else f"exit code {code}"
        lines = self._log.read_text(errors="replace").splitlines()[-STDERR_LINES:]
        raise WorkerError("\n".join([f"the process died ({ending})", *lines]))
