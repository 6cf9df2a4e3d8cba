"""Run a model over shards in a pool of Ray actors. Ray schedules the shards, and repeats those of actors that die."""

import os
import pickle
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from functools import cache, partial
from types import ModuleType

from ..configuration.errors import UserError
from .extras import import_extra
from .outputs import Output
from .progress import Progress, Report
from .run import Place, Task, run


CONNECTION_TIMEOUT = 10  # seconds


def run_on_ray(
    load: Callable[[], Task],
    places: Sequence[Place],
    output: Output,
    *,
    batch_size: int,
    workers: int,
    threads: int,
    warn: Callable[[str], None],
    address: str | None,
    actors: int,
    gpus_per_actor: float | None,
) -> Report:
    """Work on shards as [`run`] does, in actors.

    Args:
        load: loads the model, once in each actor.
        address: of the Ray cluster, as [`check_address`] takes it; a new one on this machine ends with the work.
        actors: number of actors.
        gpus_per_actor: GPUs of each; `None` is one where the cluster has any.

    Raises:
        UserError: no cluster can be joined or none has such GPUs, or a node lacks the folder of this process or its
            outputs cannot be seen from here.
    """
    if not places:
        return Report()
    data = import_extra("ray.data", "ray")
    with _cluster(address) as ray:
        report, start = Report(), time.perf_counter()
        gpus = max((node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
        if gpus_per_actor is None:
            gpus_per_actor = float(gpus > 0)
        if gpus_per_actor > gpus:
            problem = f"--gpus-per-actor {gpus_per_actor:g} is more than a node of the Ray cluster has ({gpus:g})"
            if address is None:
                raise UserError(f"{problem}: give less, or leave it out.")
            warn(f"{problem}: the work begins once it has grown.")
        data.DataContext.get_current().enable_progress_bars = False
        work = partial(run, output=output, batch_size=batch_size, workers=workers, threads=threads)
        shards = data.from_items([{"place": number} for number in range(len(places))], override_num_blocks=len(places))
        done = shards.map_batches(
            _Actor,
            fn_constructor_args=(load, work, output, list(places), os.getcwd()),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=actors),
            num_gpus=gpus_per_actor,
        )
        with closing(Progress(len(places))) as progress:
            for row in done.iter_rows():
                part, warnings, error = pickle.loads(row["report"])
                if error is not None:
                    raise error
                for warning in warnings:
                    warn(warning)
                report += part
                report.cores, report.lanes = actors * part.cores, actors * part.lanes
                progress.shard(part.rows)
        report.seconds = time.perf_counter() - start
    lost = [shard for _, shard in output.unfinished(places)]
    if len(lost) > report.shards_failed:
        raise UserError(
            f"{output.address} lacks {len(lost)} shards that were written, such as {lost[0].name!r}: actors on other "
            "machines cannot write to a folder of this one. Give one that all nodes share, or an address of fsspec."
        )
    return report


def check_address(address: str | None):
    """Raise `UserError` where no cluster can be at an address: Ray itself looks for it for minutes.

    Args:
        address: `HOST:PORT` of a cluster, `"auto"` for the one that Ray finds, `None` or `"local"` for a new one.
    """
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    if address in (None, "auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if address.startswith("ray://") or not host or not port.isdecimal():
        raise UserError(
            f"--address {address} is not of a Ray cluster: expected auto, or HOST:PORT as `ray start` prints it, such "
            "as 10.0.0.1:6379. Ray Data does not work through a client (ray://): start the command on a node."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECTION_TIMEOUT).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: no Ray cluster answers there: {error}.") from error


@contextmanager
def _cluster(address: str | None) -> Iterator[ModuleType]:
    """Join a cluster, or start one. What Ray says of lost nodes goes to stderr: stdout is the summary's."""
    ray = import_extra("ray", "ray")
    with redirect_stdout(sys.stderr):
        try:
            # Without an address Ray would join whatever cluster it finds.
            ray.init(address=address or "local", log_to_driver=False)
        except (ValueError, RuntimeError, ConnectionError) as error:  # versions that differ among them
            raise UserError(f"The Ray cluster {address or 'of its own'} cannot be used: {error}") from error
        try:
            yield ray
        finally:
            ray.shutdown()


class _Actor:
    """A model that is loaded once, and works on one shard after the other.

    Errors go to the driver as what it returns: Ray would load a model again and again, and print each traceback.
    """

    def __init__(self, load: Callable[[], Task], work: Callable, output: Output, places: list[Place], folder: str):
        self.load, self.work, self.output, self.places = cache(load), work, output, places
        self.folder = folder

    def __call__(self, batch: dict) -> dict:
        return {"report": [pickle.dumps(self._report(self.places[number])) for number in batch["place"]]}

    def _report(self, place: Place) -> tuple[Report, list[str], Exception | None]:
        try:
            return *self._work_on(place), None
        except (UserError, OSError) as error:
            return Report(), [], UserError(str(error))
        except Exception as error:  # not all of which can be sent
            return Report(), [], RuntimeError(f"{type(error).__name__}: {error}")

    def _work_on(self, place: Place) -> tuple[Report, list[str]]:
        index, shard = place
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise UserError(
                f"{self.folder}, where the command was started, is not on {socket.gethostname()}, and names of files "
                f"may be relative to it: start it in a folder that all nodes have, such as /. {error}"
            ) from error
        if self.output.has(shard.name, index):  # where Ray repeats a block of several, after an actor died
            num_rows, errors = self.output.found(shard.name, index)
            report = Report(rows=num_rows, shards=1)
            report.add_errors(shard.name, errors)
            return report, []
        warnings: list[str] = []
        return self.work(self.load(), [place], warn=warnings.append), warnings
