"""A bar chart of the ratios of a suite."""

import io

from .records import Record
from .report import ratio_text
from .samples import ratios


BAR_INCHES = 0.22
MOST_INCHES = 40.0
POINTS = 72
ERROR_LINE = {"elinewidth": 1, "ecolor": "0.25"}
# Between cells, in bars.
GAP = 0.6
# Beyond this ratio the axis is logarithmic.
LINEAR = 10.0


def plot(record: Record) -> bytes | None:
    """A PNG with a bar for each peer of each cell, which ends at the peer's time over ours.

    None where no ratio was measured, or matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
        from matplotlib.ticker import LogLocator, NullLocator
    except ModuleNotFoundError:
        return None
    measured = {result.cell.name: ratios(result) for result in record.results}
    measured = {name: found for name, found in measured.items() if found}
    if not measured:
        return None
    peers = list(dict.fromkeys(peer for found in measured.values() for peer in found))
    places = sum(len(found) + GAP for found in measured.values())
    height = min(BAR_INCHES, MOST_INCHES / places)
    figure = Figure((9, 1.6 + height * places), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    place, centres = 0.0, []
    for found in measured.values():
        centres.append(place + (len(found) - 1) / 2)
        for peer, value in found.items():
            spread = [[value.median - value.low], [value.high - value.median]]
            # From the line at 1: to its right we are faster, to its left the peer.
            axes.barh(place, value.median - 1, left=1, xerr=spread, color=f"C{peers.index(peer)}", error_kw=ERROR_LINE)
            label = (max(value.high, 1), place)
            axes.annotate(f" {ratio_text(value.median)}", label, va="center", fontsize=min(8, 0.9 * POINTS * height))
            place += 1
        place += GAP
    axes.set_yticks(centres, measured)
    axes.set_ylim(place - GAP, -1)
    axes.axvline(1, color="black", linewidth=1)
    if max(value.high for found in measured.values() for value in found.values()) > LINEAR:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.1)
    axes.set_xlabel("time of the peer over ours (right of the line ours is faster)")
    axes.set_title(f"{record.title} ({record.machine.get('gpu') or record.machine['cpu']})")
    handles = [Patch(color=f"C{index}", label=peer) for index, peer in enumerate(peers)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(peers))
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
