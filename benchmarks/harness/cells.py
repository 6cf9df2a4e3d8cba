"""The data of a benchmark: what is compared (`Cell`), and what came out (`Measurement`, `Result`).

A suite (suites/__init__.py) makes cells. A cell names its contestants, of which the first is ours and the others are
its peers; each is a class (worker.py says what it has) in a module that the table of contestants/__init__.py names,
and runs in a process of its own.
"""

from dataclasses import asdict, dataclass, field, fields


class NotRun(Exception):
    """A contestant cannot run here (a library, a GPU is missing): its row says "not run" and the reason."""


@dataclass(frozen=True)
class Options:
    """How a run measures.

    device: "cpu" or "cuda".
    threads: of every process, for torch and for tokenizers.
    rounds: the most samples of a contestant in a cell.
    budget: seconds of a cell, shared by its contestants; a slow one gets fewer rounds, but two, or one where a run
        takes two minutes and its share has no room for two.
    processes: of a contestant, one after the other, each with as many rounds and a share of the budget. Two of them
        can differ by 15 % and more for as long as they live.
    quick: tiny sizes, which say that everything runs and nothing of its speed.
    """

    device: str = "cpu"
    threads: int = 1
    rounds: int = 5
    budget: float = 120.0
    processes: int = 1
    quick: bool = False

    @property
    def sample_seconds(self) -> float:
        """A sample repeats the run until it lasts this long, where one run is shorter."""
        return 0.002 if self.quick else 0.1


@dataclass(frozen=True)
class Cell:
    """One row: the same work by several contestants.

    suite: name of the suite.
    name: label of the row, which no other row of the suite has.
    settings: what a contestant needs, as JSON ("device" is added to it by the run).
    contestants: their names; the first is ours, which the others are compared with. Other forms of ours ("ours_fused")
        are compared likewise, and are no peers that a goal is against unless `reference` says so.
    unit: what one run makes, in the plural ("images", "tokens", "calls").
    count: how many of them one run makes.
    bound: `{"flops", "bytes", "dtype"}` of one run, or a list of them that follow each other; asked of ours where
        None (a contestant's `bound`).
    goal: the least ratio (the peer's time over ours) that is aimed at.
    reference: the peer that the goal is against; by default the fastest.
    group: cells that follow each other with one group share the processes of their contestants, and what those keep
        of a model; a cell without one has its own.
    """

    suite: str
    name: str
    settings: dict
    contestants: tuple[str, ...]
    unit: str = "calls"
    count: int = 1
    bound: dict | list[dict] | None = None
    goal: float | None = None
    reference: str | None = None
    group: str | None = None


@dataclass
class Measurement:
    """What was measured of one contestant.

    seconds: samples, in seconds of one run.
    rounds: the round that each sample was taken in, counted on from process to process.
    repeats: runs of a sample.
    baseline, peak: bytes of its process before it held a model, and the most while it ran (RSS, or of the GPU).
    difference: of its outputs to ours: the largest over the largest value of the two, or, of tokens and strings, the
        share that is another.
    exact: the outputs are tokens or strings.
    figures: more numbers, by name, that the contestant reports.
    error: why there are no samples.
    """

    contestant: str
    environment: str
    seconds: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    repeats: int = 1
    baseline: int | None = None
    peak: int | None = None
    difference: float | None = None
    exact: bool = False
    figures: dict = field(default_factory=dict)
    error: str | None = None

    @property
    def memory(self) -> int | None:
        """Bytes that the contestant took beside the libraries."""
        return None if self.peak is None or self.baseline is None else max(0, self.peak - self.baseline)

    def add(self, later: "Measurement", first_round: int):
        """Adds the samples of another process, whose rounds begin at `first_round`; the rest stays the first's."""
        self.seconds += later.seconds
        self.rounds += [first_round + turn for turn in later.rounds]
        self.error = self.error or later.error


@dataclass
class Result:
    """A cell and its measurements, ours first.

    bound: `{"flops", "bytes", "dtype"}` dicts, which follow each other in one run.
    bound_seconds: the least time of them, by the ceilings of the machine.
    date, commit: when it was measured, and of what.
    """

    cell: Cell
    measurements: list[Measurement]
    bound: list[dict] = field(default_factory=list)
    bound_seconds: float | None = None
    date: str = ""
    commit: str = ""

    def of(self, contestant: str) -> Measurement | None:
        """The measurement of a contestant."""
        return next((each for each in self.measurements if each.contestant == contestant), None)

    @property
    def ours(self) -> Measurement:
        return self.measurements[0]

    def add(self, later: "Result", first_round: int):
        """Adds the samples of other processes, see `Measurement.add`."""
        for own, other in zip(self.measurements, later.measurements, strict=True):
            own.add(other, first_round)

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> "Result":
        """The inverse of `to_json`; keys that are no fields are left out."""
        kept = _fields_of(cls, data)
        cell = _fields_of(Cell, data["cell"])
        kept["cell"] = Cell(**{**cell, "contestants": tuple(cell["contestants"])})
        kept["measurements"] = [Measurement(**_fields_of(Measurement, each)) for each in data["measurements"]]
        return cls(**kept)


def _fields_of(cls: type, data: dict) -> dict:
    names = {each.name for each in fields(cls)}
    return {name: value for name, value in data.items() if name in names}
