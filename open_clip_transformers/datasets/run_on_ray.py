"""Run a model over shards in a pool of Ray actors. Ray schedules the shards, and repeats those of actors that die."""

import pickle
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
        address: of the Ray cluster; `None` starts one on this machine that ends with the work.
        actors: number of actors.
        gpus_per_actor: GPUs of each; `None` is one where the cluster has any.
    """
    if not places:
        return Report()
    data = import_extra("ray.data", "ray")
    with _cluster(address) as ray:
        report, start = Report(), time.perf_counter()
        if gpus_per_actor is None:
            gpus_per_actor = float(ray.cluster_resources().get("GPU", 0) > 0)
        data.DataContext.get_current().enable_progress_bars = False
        work = partial(run, output=output, batch_size=batch_size, workers=workers, threads=threads)
        shards = data.from_items([{"place": number} for number in range(len(places))], override_num_blocks=len(places))
        done = shards.map_batches(
            _Actor,
            fn_constructor_args=(load, work, output, list(places)),
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
    return report


@contextmanager
def _cluster(address: str | None) -> Iterator[ModuleType]:
    """Join a cluster, or start one. What Ray says of lost nodes goes to stderr: stdout is the summary's."""
    ray = import_extra("ray", "ray")
    with redirect_stdout(sys.stderr):
        # Without an address Ray would join whatever cluster it finds.
        ray.init(address=address or "local", log_to_driver=False)
        try:
            yield ray
        finally:
            ray.shutdown()


class _Actor:
    """A model that is loaded once, and works on one shard after the other.

    Errors go to the driver as what it returns: Ray would load a model again and again, and print each traceback.
    """

    def __init__(self, load: Callable[[], Task], work: Callable, output: Output, places: list[Place]):
        self.load, self.work, self.output, self.places = cache(load), work, output, places

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
        if self.output.has(shard.name, index):  # where Ray repeats a block of several, after an actor died
            num_rows, errors = self.output.found(shard.name, index)
            report = Report(rows=num_rows, shards=1)
            report.add_errors(shard.name, errors)
            return report, []
        warnings: list[str] = []
        return self.work(self.load(), [place], warn=warnings.append), warnings
