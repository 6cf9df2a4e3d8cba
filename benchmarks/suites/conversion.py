"""Conversions of checkpoints, against copying the file."""

from harness.cells import Cell, Options


TITLE = "Conversions"
ABOUT = """\
`ours` converts a random fp32 checkpoint with `verify="structure"` in a process of its own: the source is hashed, and
every tensor that was written is compared with it. `copy` copies the file. Both begin once libraries are imported, read
from the disk and not its cache, and end when what they wrote is on the disk. The *ratio* is therefore the share of a
conversion that the disk alone accounts for.

*Memory* is the most private memory (`RssAnon` of Linux) that the conversion took beside that of its libraries. What
it maps of the checkpoint is the system's cache of the file, given back when memory is needed."""

MODELS = ("coca_ViT-B-32", "coca_ViT-L-14")
# Also so large that it shows what memory does; once, as it takes minutes.
LARGE_MODEL = "ViT-bigG-14"
FORMATS = ("safetensors", "pt")
DTYPES = ("float32", "bfloat16")


def cells(options: Options) -> list[Cell]:
    """Models by the source's format by the dtype that is written; on a CPU."""
    if options.device != "cpu":
        return []
    if options.quick:
        return [_cell(options, MODELS[0], "pt", "bfloat16")]
    rows = [_cell(options, model, kind, dtype) for model in MODELS for kind in FORMATS for dtype in DTYPES]
    return [*rows, _cell(options, LARGE_MODEL, "safetensors", "bfloat16")]


def _cell(options: Options, model: str, kind: str, dtype: str) -> Cell:
    return Cell(
        suite="conversion",
        name=f"{model}, .{kind} to {dtype}",
        settings={"model": model, "format": kind, "dtype": dtype, "reduced": options.quick},
        contestants=("ours", "copy"),
        unit="conversions",
        group=model,
    )
