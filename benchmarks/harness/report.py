"""Pages of results: one table for the console and for Markdown, and what a reader must know beside it."""

import json
import math
from collections.abc import Callable

from .cells import Measurement, Result
from .records import Record
from .samples import OURS, Spread, bound_share, goal_peer, ratio, spread, throughput, verdicts


NOTHING = "-"
DISTURBED = 0.1
LEGEND = (
    "Each contestant runs in a process of its own, in turn with the others, in an order that each round rotates. "
    "Times are medians of the samples with their quartiles (least and largest of fewer than four; one, *n=1*, says "
    "nothing of its spread). A ratio is the peer's time over ours in the same round: more than 1 is faster than the "
    "peer. *Of bound* is the least time that the counted operations and bytes need at the measured ceilings, over "
    "ours and our variants'. *Difference* is the largest of the outputs over their largest value (of tokens, the "
    "share that is another). *Memory* is the most that the process held while it ran, beside its libraries. "
    "*Goal* is against the peer that it names, *within noise* where the upper quartile of the ratio reaches it. "
    "Two processes of the same contestant can differ by 15 % and more, which quartiles show only where samples come "
    "from several (`--processes`)."
)
OTHER_RUN = (
    " *Commit* is that of rows of another run, on the same machine with the same versions; its rounds "
    "and processes may have been fewer or more."
)


def seconds_text(value: Spread) -> str:
    """A median with its spread, in the unit that suits it."""
    unit, scale = next((unit for unit in (("s", 1.0), ("ms", 1e3)) if value.median * unit[1] >= 1), ("µs", 1e6))
    median, low, high = (_digits(each * scale) for each in (value.median, value.low, value.high))
    return f"{median} {unit} ({low}-{high})"


def ratio_text(value: float) -> str:
    """A ratio without its "x": two decimals where it is small, none where it is large."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def rate_text(value: float) -> str:
    """A rate, with a prefix of a thousand where it is long."""
    return f"{_digits(value)}" if value < 1e5 else f"{_digits(value / 1e3)}k"


def table(record: Record) -> list[list[str]]:
    """The results as rows of text, under a row of headings."""
    peers = list(dict.fromkeys(name for result in record.results for name in result.cell.contestants[1:]))
    columns: list[tuple[str, Callable[[Result], str]]] = [
        ("Cell", lambda result: result.cell.name),
        ("Ours", lambda result: _time(result.ours, record)),
        ("Throughput", _throughput),
        ("Of bound", _bound),
    ]
    for name in peers:
        columns.append((name, lambda result, name=name: _time(result.of(name), record)))
        columns.append(("ratio", lambda result, name=name: _ratio_to(result, name)))
    columns += [("Difference", _difference), ("Memory", _memory), ("Goal", _goal)]
    columns.append(("Commit", lambda result: _earlier_commit(result, record)))
    rows = [[text(result) for _, text in columns] for result in record.results]
    # Columns in which nothing is said are left out; the ratio stays beside its peer.
    kept = [index for index in range(len(columns)) if index < 2 or any(row[index] != NOTHING for row in rows)]
    return [[columns[index][0] for index in kept], *([row[index] for index in kept] for row in rows)]


def figures_table(record: Record) -> list[list[str]]:
    """What contestants report beside their times; no rows where none does."""
    pairs = [(result, each) for result in record.results for each in result.measurements if each.figures]
    names = list(dict.fromkeys(name for _, each in pairs for name in each.figures))
    rows = [
        [result.cell.name, each.contestant, *(_figure(each.figures.get(name)) for name in names)]
        for result, each in pairs
    ]
    return [["Cell", "Contestant", *names], *rows] if rows else []


def markdown(record: Record, picture: str | None = None) -> str:
    """The page of a suite, with the picture of that name beside it."""
    machine = record.machine
    environments = [
        f"- `{name}`: " + ", ".join(f"{package} {version}" for package, version in versions.items())
        for name, versions in record.environments.items()
    ]
    place = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}"
    if machine.get("gpu"):
        place = f"{machine['gpu']}; {place}"
    parts = [
        f"# {record.title}",
        record.about,
        f"Made by `{record.command}` on {record.date}" + (f", at commit {record.commit}." if record.commit else "."),
        "\n".join([f"- {place}; threads: {machine['threads']}", *environments, *_ceilings(record)]),
        _markdown_table(table(record)),
        LEGEND + (OTHER_RUN if any(_earlier_commit(each, record) != NOTHING for each in record.results) else ""),
    ]
    if picture:
        parts.append(f"![Ratios of {record.suite}]({picture})")
    figures = figures_table(record)
    if figures:
        parts += ["## More figures", _markdown_table(figures)]
    if notes(record):
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes(record))]
    return "\n\n".join(parts) + "\n"


def console(record: Record) -> str:
    """The table of a suite, aligned, with its notes."""
    rows = table(record)
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([record.title, "", *lines, *(f"- {note}" for note in notes(record))])


def to_json(record: Record) -> str:
    """The record with every sample, a line for each result."""
    data = record.to_json()
    rows = ",\n".join(json.dumps(row) for row in data.pop("results"))
    return json.dumps(data, indent=1).removesuffix("\n}") + f',\n "results": [\n{rows}\n ]\n}}\n'


def notes(record: Record) -> list[str]:
    """What the suite says of its results, what could not be measured, and whether the machine was quiet."""
    disturbed = [
        f"The rates of {name} before and after differ by {1 - low / high:.0%}: the machine was not quiet."
        for name in record.ceilings.get("before", {})
        for low, high in [_extremes(record, name)]
        if low < (1 - DISTURBED) * high and not record.options["quick"]
    ]
    failures = [
        f"{result.cell.name}, {each.contestant}: {' / '.join(each.error.split(chr(10)))}"
        for result in record.results
        for each in result.measurements
        if each.error
    ]
    return [*record.notes, *disturbed, *failures]


def _extremes(record: Record, rate: str) -> tuple[float, float]:
    values = [rates[rate] for rates in record.ceilings.values() if rate in rates]
    return min(values), max(values)


def _ceilings(record: Record) -> list[str]:
    """A line for each rate: before and after."""
    lines = []
    for name in record.ceilings.get("before", {}):
        if name == "bandwidth":
            label, unit = "memory bandwidth", "GB/s"
        else:
            label, unit = f"matrix multiply in {name.removeprefix('matmul_')}", "GFLOP/s"
        rates = [f"{rates[name] / 1e9:.4g}" for rates in record.ceilings.values() if name in rates]
        lines.append(f"- {label}: {' before and '.join(rates)} {unit}{' after' if len(rates) > 1 else ''}")
    return lines


def _time(measurement: Measurement | None, record: Record) -> str:
    if measurement is None:
        return NOTHING
    taken = spread(measurement.seconds)
    if taken is None:
        return (measurement.error or "failed").split(":")[0]
    fewer = f", n={taken.count}" if taken.count < record.options["rounds"] else ""
    return seconds_text(taken) + fewer


def _throughput(result: Result) -> str:
    value = throughput(result.cell, result.ours)
    return NOTHING if value is None else f"{rate_text(value)} {result.cell.unit}/s"


def _bound(result: Result) -> str:
    shares = {each.contestant: bound_share(result, each) for each in result.measurements}
    texts = {name: f"{share:.0%}" for name, share in shares.items() if share is not None and name.startswith(OURS)}
    return _of_forms({result.ours.contestant: NOTHING} | texts)


def _ratio_to(result: Result, peer: str) -> str:
    measurement = result.of(peer)
    value = measurement and ratio(result.ours, measurement)
    if not value:
        return NOTHING
    return f"{ratio_text(value.median)}x ({ratio_text(value.low)}-{ratio_text(value.high)})"


def _difference(result: Result) -> str:
    texts = {
        each.contestant: f"{each.difference:.0%} of tokens" if each.exact else f"{each.difference:.1e}"
        for each in result.measurements
        if each.difference is not None
    }
    if len(set(texts.values())) < 2:
        return next(iter(texts.values()), NOTHING)
    return ", ".join(f"{text} ({name})" for name, text in texts.items())


def _memory(result: Result) -> str:
    values = [each.memory for each in result.measurements]
    if not any(values):
        return NOTHING
    ours, *peers = (NOTHING if value is None else f"{value / 1e6:.0f} MB" for value in values)
    return "; ".join([ours, *(f"{name} {text}" for name, text in zip(result.cell.contestants[1:], peers))])


def _goal(result: Result) -> str:
    if result.cell.goal is None:
        return NOTHING
    peer = goal_peer(result)
    against = result.cell.reference or (f"fastest ({peer})" if peer else "fastest")
    return f"{result.cell.goal:g}x {against}: {_of_forms(verdicts(result))}"


def _of_forms(texts: dict[str, str]) -> str:
    """What is said of ours, then of its other forms by their names."""
    ours, *others = texts.items()
    return "; ".join([ours[1], *(f"{name} {text}" for name, text in others)])


def _earlier_commit(result: Result, record: Record) -> str:
    return NOTHING if result.commit in ("", record.commit) else result.commit


def _figure(value: object) -> str:
    if value is None:
        return NOTHING
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def _markdown_table(rows: list[list[str]]) -> str:
    escaped = [[text.replace("|", "\\|") for text in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in escaped]
    lines.insert(1, "|---" + "|---:" * (len(rows[0]) - 1) + "|")
    return "\n".join(lines)
