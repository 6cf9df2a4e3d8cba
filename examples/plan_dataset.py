"""Simulate a data set on many workers that fail now and then: hours, shards, files and bytes.

    python examples/plan_dataset.py --images 1e8 1e9 --workers 8 64 --rate 1000 --hours-between-failures 24

It simulates the clock alone. What is done again, and who does what, is decided by the code of the commands
`embed`, `caption` and `classify`: which shards are done (`Output.unfinished`), which a rank takes (`Ranks.part`).
`--rate` and the failures are assumptions: measure the rate of your model on one of your workers, on one shard.
"""

import argparse
import heapq
import json
import random
from dataclasses import dataclass

import fsspec
import numpy

from open_clip_transformers.datasets.outputs import ParquetOutput, Rows
from open_clip_transformers.datasets.run import Ranks
from open_clip_transformers.datasets.shards import FileShard, Sample


MEASURED_ROWS = 10_000


@dataclass
class Plan:
    """Assumptions about a run.

    Args:
        images: number of images.
        shard_size: images in a shard.
        workers: ranks or actors, each with one device.
        rate: images a second of a worker, reading included.
        hours_between_failures: of one worker, on average.
        restart: seconds until a worker, or a job of ranks, is back at work.
    """

    images: int
    shard_size: int
    workers: int
    rate: float
    hours_between_failures: float
    restart: float

    @property
    def shards(self) -> int:
        return -(-self.images // self.shard_size)

    @property
    def failures_per_second(self) -> float:
        """Of one worker."""
        return 1 / (3600 * self.hours_between_failures)

    @property
    def seconds_of_shard(self) -> float:
        return self.shard_size / self.rate


@dataclass
class Outcome:
    """Result of a simulated run: seconds of the clock, number of failures, and images that were worked on again."""

    seconds: float
    failures: int
    repeated: float


class SimulatedOutput(ParquetOutput):
    """An output whose files are there, and empty."""

    def __init__(self, shards: int):
        super().__init__("memory://plan", ("embedding",))
        self.file_system.store.clear()
        self.places = [(number, FileShard(f"{number:06d}", "files", ())) for number in range(shards)]

    def finish(self, index: int):
        self.put(self.files(self.places[index][1].name, index)[-1], b"")


def simulate_actors(plan: Plan, generator: random.Random) -> Outcome:
    """A pool of actors: each takes the next shard, and one that fails loses what it did of its own."""
    output = SimulatedOutput(plan.shards)
    waiting = [index for index, _ in output.unfinished(output.places)][::-1]
    free = [(0.0, worker) for worker in range(plan.workers)]
    failures, repeated, end = 0, 0.0, 0.0
    while waiting:
        now, worker = heapq.heappop(free)
        index = waiting.pop()
        lives = generator.expovariate(plan.failures_per_second)
        if lives < plan.seconds_of_shard:
            failures, repeated = failures + 1, repeated + lives * plan.rate
            waiting.append(index)
            heapq.heappush(free, (now + lives + plan.restart, worker))
            continue
        output.finish(index)
        end = max(end, now + plan.seconds_of_shard)
        heapq.heappush(free, (now + plan.seconds_of_shard, worker))
    assert not output.unfinished(output.places)
    return Outcome(end, failures, repeated)


def simulate_ranks(plan: Plan, generator: random.Random) -> Outcome:
    """Ranks of one job: where one fails all end, and the job starts again with the shards that are not done."""
    output, ranks = SimulatedOutput(plan.shards), Ranks()
    ranks.world_size = plan.workers
    now, failures, repeated = 0.0, 0, 0.0
    while places := output.unfinished(output.places):
        parts = []
        for ranks.rank in range(plan.workers):
            parts.append([index for index, _ in ranks.part(places)])
        needed = max(map(len, parts)) * plan.seconds_of_shard
        lasts = min(needed, generator.expovariate(plan.failures_per_second * plan.workers))
        for part in parts:
            whole = min(len(part), int(lasts / plan.seconds_of_shard + 1e-9))
            for index in part[:whole]:
                output.finish(index)
            if whole < len(part):
                repeated += (lasts - whole * plan.seconds_of_shard) * plan.rate
        now += lasts
        if lasts < needed:
            failures, now = failures + 1, now + plan.restart
    return Outcome(now, failures, repeated)


def bytes_of_row(dim: int) -> float:
    """Bytes that an image takes in a parquet file of float16 vectors, measured on one of random ones."""
    names = tuple(f"{number:09d}" for number in range(MEASURED_ROWS))
    shard = FileShard("000000", "files", names)
    vectors = numpy.random.default_rng(0).normal(size=(MEASURED_ROWS, dim)).astype(numpy.float16)
    rows = Rows(shard, {"embedding": ("float16", dim)}, [Sample(name, None) for name in names], {"embedding": vectors})
    (content,) = ParquetOutput("memory://plan", ("embedding",)).contents(rows, 0)
    return len(content) / MEASURED_ROWS


def bytes_of_manifest(shards: int) -> int:
    entry = {"index": 41407, "data": f"/data/tars/41407.tar:{10**9}", "source": "/data/tars/41407.tar"}
    return shards * len(json.dumps({"41407": entry}, indent=1))


def table(plans: list[Plan], dim: int, seed: int) -> list[str]:
    """Rows of Markdown: what each plan comes to, by a pool of actors and by the ranks of one job."""
    per_row = bytes_of_row(dim)
    head = "images | shards of | files | workers | without failures | actors | ranks | failures | done again | output"
    lines = [f"| {head} |", "|---:" * 10 + "|"]
    for plan in plans:
        actors = simulate_actors(plan, random.Random(seed))
        ranks = simulate_ranks(plan, random.Random(seed))
        hours = [plan.images / plan.rate / plan.workers, actors.seconds, ranks.seconds]
        texts = [
            *(f"{plan.images:.0e}", f"{plan.shard_size:,}", f"{plan.shards:,}", str(plan.workers)),
            *(f"{seconds / 3600:,.1f} h" for seconds in hours),
            f"{actors.failures}; {ranks.failures}",
            f"{actors.repeated / plan.images:.2%}; {ranks.repeated / plan.images:.2%}",
            f"{plan.images * per_row / 1e12:.2f} TB, manifest {bytes_of_manifest(plan.shards) / 1e6:.1f} MB",
        ]
        lines.append(f"| {' | '.join(texts)} |")
    fsspec.filesystem("memory").store.clear()
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=float, nargs="+", default=[1e8, 1e9])
    parser.add_argument("--shard-size", type=int, nargs="+", default=[10_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--rate", type=float, default=1000.0, help="images a second of a worker: an assumption")
    parser.add_argument("--hours-between-failures", type=float, default=24.0, help="of one worker: an assumption")
    parser.add_argument("--restart", type=float, default=300.0, help="seconds until a worker is back")
    parser.add_argument("--dim", type=int, default=512, help="of the embeddings")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    plans = [
        Plan(int(images), size, workers, arguments.rate, arguments.hours_between_failures, arguments.restart)
        for images in arguments.images
        for size in arguments.shard_size
        for workers in arguments.workers
    ]
    print("\n".join(table(plans, arguments.dim, arguments.seed)))


if __name__ == "__main__":
    main()
