"""Linear layers alone: `torch.nn.Linear`, and the other kernels that PyTorch has for its products."""

from harness.cells import Cell, Options, Record, bound_seconds, spread


TITLE = "Linear layers"
ABOUT = """\
Products with the weights of linear layers, without gradients. Weights are so many that none is still in a cache when
its turn comes again, as in a model. Contestants are processes of their own, and the same kernel in two of them can
differ by 15 %. Which kernel is fastest differs from processor to processor.

| Contestant | Kernel |
|---|---|
| `ours` | `torch.nn.Linear`, of which all models are made: `F.linear`, in float32 mostly MKL |
| `onednn_packed` | oneDNN, with weights that were laid out for it before |
| `onednn` | oneDNN, with the weights as they are |
| `onednn_of_columns` | oneDNN, with the weights as the left matrix |
| `mkl_of_columns` | MKL, with the weights as the left matrix; it has no bfloat16 |
| `read` | no product: `weight.sum()`, which only reads the weights |"""

CONTESTANTS = ("ours", "onednn_packed", "onednn", "onednn_of_columns", "read", "mkl_of_columns")
# In and out features: of projections, of MLPs, and of the words of a step.
SIZES = ((512, 512), (512, 2048), (2048, 512), (768, 768), (768, 3072), (3072, 768), (512, 49408))
# Of decoding (a row for each image or beam), then tokens of images.
ROWS = {"float32": (1, 2, 4, 6, 8, 16, 24, 50, 257), "bfloat16": (1, 8, 50, 257)}
# More than the caches hold.
BYTES = 300e6
ITEMSIZE = {"float32": 4, "bfloat16": 2}


def cells(options: Options) -> list[Cell]:
    """Precisions by sizes by rows; on a CPU."""
    if options.device != "cpu":
        return []
    if options.quick:
        return [_cell(options, "float32", (48, 64), rows) for rows in (2, 12)]
    return [
        _cell(options, dtype, size, rows) for dtype, some_rows in ROWS.items() for size in SIZES for rows in some_rows
    ]


def picture(cell: Cell) -> str:
    return f"{cell.settings['in_features']} to {cell.settings['out_features']}"


def notes(record: Record) -> list[str]:
    """State the share of the bound of one row that is reached where weights are only read, by precision."""
    shares: dict[str, list[str]] = {}
    for result in record.results:
        read, bound = result.of("read"), bound_seconds(result, record.ceilings)
        if result.cell.settings["rows"] == 1 and read is not None and read.seconds and bound:
            share = f"{bound / spread(read.seconds).median:.0%} ({picture(result.cell)})"
            shares.setdefault(result.cell.settings["dtype"], []).append(share)
    return [
        f"`weight.sum()` alone comes to this share of the bound of one row in {dtype}: {', '.join(each)}."
        for dtype, each in shares.items()
    ]


def _cell(options: Options, dtype: str, size: tuple[int, int], rows: int) -> Cell:
    in_features, out_features = size
    weights = 2 if options.quick else max(2, round(BYTES / (in_features * out_features * ITEMSIZE[dtype])))
    return Cell(
        suite="linear",
        name=f"{in_features} to {out_features}, rows {rows}, {dtype}",
        settings={
            "in_features": in_features,
            "out_features": out_features,
            "rows": rows,
            "weights": weights,
            "dtype": dtype,
        },
        contestants=CONTESTANTS if dtype == "float32" else CONTESTANTS[:-1],
        unit="products",
        count=weights,
        group=f"{in_features} to {out_features}, {dtype}",
    )
