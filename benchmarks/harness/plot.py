"""A bar chart of the ratios of a suite."""

import io

from .records import Record
from .samples import ratios


BAR_INCHES = 0.22
# Beyond this ratio the axis is logarithmic.
LINEAR = 10.0


def plot(record: Record) -> bytes | None:
    """A PNG with a bar for each peer of each cell, as long as the peer's time over ours.

    None where no ratio was measured, or matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return None
    measured = {result.cell.name: ratios(result) for result in record.results}
    measured = {name: found for name, found in measured.items() if found}
    if not measured:
        return None
    peers = list(dict.fromkeys(peer for found in measured.values() for peer in found))
    bars = sum(len(found) for found in measured.values())
    figure = Figure(figsize=(9, 1.4 + BAR_INCHES * (bars + 0.6 * len(measured))), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    place, centres, labelled = 0.0, [], set()
    for found in measured.values():
        first = place
        for peer, value in found.items():
            error = [[value.median - value.low], [value.high - value.median]]
            axes.barh(
                place,
                value.median,
                xerr=error,
                color=f"C{peers.index(peer)}",
                label=None if peer in labelled else peer,
                error_kw={"elinewidth": 1, "ecolor": "0.25"},
            )
            labelled.add(peer)
            place += 1
        centres.append((first + place - 1) / 2)
        place += 0.6
    axes.set_yticks(centres, measured)
    axes.set_ylim(place - 1, -0.6)
    axes.axvline(1, color="black", linewidth=1)
    if max(value.high for found in measured.values() for value in found.values()) > LINEAR:
        axes.set_xscale("log")
    axes.set_xlabel("time of the peer over ours (more than 1: ours is faster)")
    axes.set_title(f"{record.title}\n{record.machine.get('gpu') or record.machine['cpu']}")
    axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
