"""Pages of results: one in Markdown for each suite, with a section, a table and pictures for each machine."""

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import suites

from .cells import Limits, Record, Result, bound_seconds, goal_peer, is_ours, limit_verdicts, spread, verdicts, write
from .plot import pictures


NOTHING = "-"
DISTURBED = 0.1
LEGEND = """\
Each contestant runs in a process of its own, in turn with the others, in an order that each round rotates. `ours` is
this package with models as they are loaded, `ours_...` are variants of it; all others are peers. Times are medians of
the samples with their quartiles (least and largest of fewer than four). A ratio, "x", is the contestant's time over
that of `ours` in the same rounds: more than 1 is slower than `ours`. *Of bound* is the least time that the counted
operations and bytes need at the measured ceilings, over the time. *Difference* is the largest of the outputs to those
of `ours`, over their largest value (of tokens, the share that is another). *Memory* is the most that the process held
while it ran, beside its libraries. *Goal* is the ratio of a peer's time to ours that is aimed at, *within noise* where
its upper quartile reaches it. Two processes of one contestant can differ by 15 % and more, which quartiles show only
where samples come from several (`--processes`). Ratios of one processor say nothing of another."""


def stored_records(suite: str, folder: Path) -> list[Record]:
    """The records of all machines in `folder/suite`."""
    return [Record.read(path) for path in sorted((folder / suite).glob("*.json"))]


def write_page(suite: str, folder: Path):
    """Write the page of a suite and its pictures, from the records of all machines."""
    module, records = suites.load(suite), stored_records(suite, folder)
    parts = [f"# {module.TITLE}", module.ABOUT.strip(), LEGEND]
    for picture in (folder / suite).glob("*.png"):
        picture.unlink()
    for record in records:
        names = []
        for name, content in pictures(record).items():
            names.append("-".join(filter(None, [f"{suite}/{record.stem}", name])) + ".png")
            write(folder / names[-1], content)
        parts += section(record, names)
    write(folder / f"{suite}.md", ("\n\n".join(parts) + "\n").encode())


def section(record: Record, names: list[str]) -> list[str]:
    """The paragraphs of a machine, with the pictures of those names."""
    machine, dates = record.machine, sorted(result.date for result in record.results)
    details = [
        f"{machine['processor']}, instruction set: {', '.join(machine['instruction_set']) or 'not recorded'}",
        f"{machine['threads']} threads on {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}",
    ]
    for name, versions in record.environments.items():
        details.append(f"`{name}`: " + ", ".join(f"{package} {version}" for package, version in versions.items()))
    for rate in record.ceilings.get("before", {}):
        values = " before and ".join(f"{rates[rate] / 1e9:.4g}" for rates in record.ceilings.values() if rate in rates)
        details.append(f"{rate.replace('_', ' in ')}: {values} {'GB' if rate == 'bandwidth' else 'GFLOP'}/s after")
    when = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    return [
        f"## {', '.join([machine['gpu'] or machine['processor'], *machine['instruction_set']])}",
        f"Measured by `{record.command}` on {when}, at commit {', '.join(commits(record))}.",
        bullets(details),
        *record.notes,
        markdown(table(record)),
        *(f"![Times over ours, {machine['processor']}]({name})" for name in names),
        *(["### More figures", markdown(figures)] if (figures := figures_table(record)) else []),
        *(["### Notes", bullets(found)] if (found := notes(record)) else []),
    ]


def commits(record: Record) -> list[str]:
    return list(dict.fromkeys(result.commit or "unknown" for result in record.results))


def notes(record: Record) -> list[str]:
    """Remarks on the results, a warning where the machine was not quiet, and the contestants that failed."""
    found = getattr(suites.load(record.suite), "notes", lambda record: [])(record)
    for rate in record.ceilings.get("before", {}):
        values = [rates[rate] for rates in record.ceilings.values() if rate in rates]
        if "--quick" not in record.command and (apart := 1 - min(values) / max(values)) > DISTURBED:
            found.append(f"The rates of {rate} before and after differ by {apart:.0%}: the machine was not quiet.")
    return found + [
        f"{result.cell.name}, {each.contestant}: {' / '.join(each.error.splitlines())}"
        for result in record.results
        for each in result.measurements
        if each.error
    ]


def table(record: Record) -> list[list[str]]:
    """The results as rows of text, under a row of headings; empty columns are left out."""
    names = dict.fromkeys(name for result in record.results for name in result.cell.contestants)
    columns: dict[str, Callable[[Result], str]] = {"Cell": lambda result: result.cell.name}
    for name in sorted(names, key=lambda name: not is_ours(name)):
        columns[name] = lambda result, name=name: _time(result, name)
    columns |= {
        "Throughput": _throughput,
        "Of bound": lambda result: _bound(result, record.ceilings),
        "Difference": _difference,
        "Memory": _memory,
        "Goal": lambda result: _goal(result, getattr(suites.load(record.suite), "LIMITS", {})),
    }
    if len(commits(record)) > 1:
        columns["Commit"] = lambda result: result.commit
    rows = [list(columns), *([text(result) for text in columns.values()] for result in record.results)]
    kept = [index for index in range(len(columns)) if any(row[index] != NOTHING for row in rows[1:])]
    return [[row[index] for index in kept] for row in rows]


def figures_table(record: Record) -> list[list[str]]:
    """Tabulate the figures that contestants report beside their times; no rows where none does."""

    def text(value: object) -> str:
        return NOTHING if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    pairs = [(result, each) for result in record.results for each in result.measurements if each.figures]
    names = list(dict.fromkeys(name for _, each in pairs for name in each.figures))
    rows = [[row.cell.name, each.contestant, *(text(each.figures.get(name)) for name in names)] for row, each in pairs]
    return [["Cell", "Contestant", *names], *rows] if rows else []


def markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" + "|---:" * (len(rows[0]) - 1) + "|", *lines[1:]])


def bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _time(result: Result, name: str) -> str:
    """The time and the ratio of a contestant, or why there is none."""
    own, ratio = result.of(name), result.ratios().get(name)
    if own is None or not own.seconds:
        return NOTHING if own is None else f"**{(own.error or 'failed').split(':')[0]}**"
    taken = spread(own.seconds)
    scale, unit = next((each for each in ((1, "s"), (1e3, "ms")) if taken.median * each[0] >= 1), (1e6, "µs"))
    median, low, high = (_digits(seconds * scale) for seconds in taken[:3])
    text = f"{median} {unit} ({low}-{high})" + (f", n={taken.count}" if taken.count < 4 else "")
    if ratio is not None:
        median, low, high = (f"{value:.2f}" if value < 10 else _digits(value) for value in ratio[:3])
        text += f", **{median} x** ({low}-{high})"
    return text


def _throughput(result: Result) -> str:
    seconds = result.measurements[0].seconds
    return f"{_digits(result.cell.count / statistics.median(seconds))} {result.cell.unit}/s" if seconds else NOTHING


def _bound(result: Result, ceilings: dict[str, dict[str, float]]) -> str:
    bound = bound_seconds(result, ceilings)
    forms = [own for own in result.measurements if bound and is_ours(own.contestant) and own.seconds]
    return _listed({own.contestant: f"{bound / statistics.median(own.seconds):.0%}" for own in forms})


def _difference(result: Result) -> str:
    measured = [own for own in result.measurements if own.difference is not None]
    forms = [f"{own.difference:.0%} of tokens" if own.exact else f"{own.difference:.1e}" for own in measured]
    return _listed({own.contestant: text for own, text in zip(measured, forms)})


def _memory(result: Result) -> str:
    measured = [own for own in result.measurements if own.peak is not None and own.baseline is not None]
    return _listed({own.contestant: f"{max(0, own.peak - own.baseline) / 1e6:.0f} MB" for own in measured})


def _goal(result: Result, limits: Limits) -> str:
    if result.cell.goal is None:
        return NOTHING
    peer = result.cell.reference or f"fastest ({goal_peer(result) or NOTHING})"
    goals = [f"{result.cell.goal:g} x {peer}: {_listed(verdicts(result, limits))}"]
    for name, measure, most, verdict in limit_verdicts(result, limits):
        goals.append(f"{name} at most {most:.3g} x the {measure} of ours: {verdict}")
    return "; ".join(goals)


def _listed(texts: dict[str, str]) -> str:
    """Join texts of several contestants, each after its name except for ours; a single text where all are equal."""
    if len(texts) > 1 and len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(text if name == "ours" else f"{name} {text}" for name, text in texts.items()) or NOTHING


def _digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"
