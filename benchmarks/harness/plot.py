"""Pictures of the times of a record, over those of ours as loaded."""

import io

import suites

from .cells import Record, Result, is_ours


# One colour a contestant on all pages, in contrast to the paper: of our variants a shade of blue by its place here,
# and a shape of its own.
VARIANTS = {
    "ours": "",
    "ours_optimized": "D",
    "ours_compiled": "s",
    "ours_fused": "d",
    "ours_flash": "^",
    "ours_bf16": "p",
    "ours_int8": "v",
    "ours_int8_bf16": "P",
    "ours_int8_dynamic": "X",
    "ours_mini_batches": "<",
    "ours_ray": ">",
    "ours_ray_2": "*",
}
# Peers -> colours without blue; those of one page are told apart whatever colours one sees.
PEERS = {
    "open_clip": "#d55e00",
    "transformers": "#009e73",
    "timm": "#882255",
    "blip": "#9467bd",
    "transformers_pil": "#4b7f1f",
    "torch": "#d6409f",
    "read": "#7f7f7f",
    "onednn": "#c08000",
    "onednn_packed": "#e0342b",
    "onednn_of_columns": "#8c564b",
    "mkl_of_columns": "#117733",
    "copy": "#d6616b",
}
ROW_INCHES = 0.34
# Ticks of the axis for the largest over the smallest ratio.
TICKS = {8: (1, 2, 5), 2: (1, 1.2, 1.5, 2, 3, 4, 6, 8), 0: tuple(1 + tenth / 10 for tenth in range(90))}


def pictures(record: Record) -> dict[str, bytes]:
    """PNGs by name, as the suite's `picture(cell)` splits its cells; none without ratios, or without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        return {}
    suite, split = suites.load(record.suite), {}
    for result in record.results:
        if result.ratios():
            split.setdefault(suite.picture(result.cell) if hasattr(suite, "picture") else "", []).append(result)
    machine = record.machine["gpu"] or record.machine["processor"]
    return {
        name.lower().replace(" ", "-"): draw(", ".join(filter(None, [suite.TITLE, name, machine])), results)
        for name, results in split.items()
    }


def style(contestant: str) -> tuple[tuple[float, ...] | str, str]:
    """Colour and shape of a contestant; black crosses of one that has no place in the lists."""
    from matplotlib import colormaps

    if contestant in VARIANTS:
        return colormaps["Blues"](1 - 0.036 * list(VARIANTS).index(contestant)), VARIANTS[contestant]
    return (PEERS[contestant], "o") if contestant in PEERS else ("black", "x")


def draw(title: str, results: list[Result]) -> bytes:
    """A row for each cell with a mark for each contestant: left of the line at 1 it is faster than ours as loaded."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    figure = Figure((9, 1.9 + ROW_INCHES * len(results)), layout="constrained", dpi=110)
    axes = figure.add_subplot(title=title, xscale="log", ylim=(len(results) - 0.5, -0.5))
    axes.set_xlabel("time over that of ours, as loaded (left of the line is faster, right of it slower)")
    marks = {"ours": axes.axvline(1, color=style("ours")[0], linewidth=1.5)}
    for row, result in enumerate(results):
        ratios = result.ratios()
        for index, (contestant, value) in enumerate(ratios.items()):
            # Contestants of a row a little apart.
            place = row + 0.5 * ((index + 0.5) / len(ratios) - 0.5)
            spread = [[value.median - value.low], [value.high - value.median]]
            color, shape = style(contestant)
            marks[contestant] = axes.errorbar(
                value.median, place, xerr=spread, color=color, marker=shape, linestyle=""
            )
    axes.set_yticks(range(len(results)), [result.cell.name for result in results])
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=next(ticks for least, ticks in TICKS.items() if high / low > least)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    names = sorted(marks, key=lambda name: not is_ours(name))
    figure.legend([marks[name] for name in names], names, loc="outside lower center", ncols=min(5, len(names)))
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
