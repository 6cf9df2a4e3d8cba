"""Linear layers alone: the kernel that is chosen for each size, against the others that PyTorch has."""

from harness.cells import Cell, Options, Result
from harness.samples import spread


TITLE = "Linear layers"
ABOUT = """\
Products with the weights of linear layers, without gradients, which is where the choices of
`modeling/linear_kernels.py` come from. Weights are so many that none is still in a cache when its turn comes again,
as in a model. Contestants are processes of their own, and the same kernel in two of them can differ by 15 %.

| Contestant | Kernel |
|---|---|
| `ours` | what `cpu_linear` chooses of those below |
| `ours_fused` | oneDNN, with weights that `model.fuse()` has laid out for it |
| `torch` | `F.linear`: MKL in float32, oneDNN in bfloat16 |
| `onednn` | oneDNN, with the weights as they are |
| `onednn_of_columns` | oneDNN, with the weights as the left matrix |
| `read` | no product: `weight.sum()`, which only reads the weights |
| `mkl_of_columns` | MKL, with the weights as the left matrix; it has no bfloat16 |"""

CONTESTANTS = ("ours", "ours_fused", "torch", "onednn", "onednn_of_columns", "read", "mkl_of_columns")
# In and out features: of projections, of MLPs, and of the words of a step.
SIZES = ((512, 512), (512, 2048), (2048, 512), (768, 768), (768, 3072), (3072, 768), (512, 49408))
# Of decoding (a row for each image or beam), then tokens of images.
ROWS = {"float32": (1, 2, 4, 6, 8, 16, 24, 50, 257), "bfloat16": (1, 8, 50, 257)}
# More than the caches hold.
BYTES = 300e6
ITEMSIZE = {"float32": 4, "bfloat16": 2}
# As fast as what PyTorch runs by itself.
GOAL = 1.0


def cells(options: Options) -> list[Cell]:
    """Precisions by sizes by rows; on a CPU."""
    if options.device != "cpu":
        return []
    if options.quick:
        return [_cell(options, "float32", (48, 64), rows) for rows in (2, 12)]
    return [
        _cell(options, dtype, size, rows) for dtype, some_rows in ROWS.items() for size in SIZES for rows in some_rows
    ]


def notes(results: list[Result]) -> list[str]:
    """What share of the bound of one row is reached where weights are only read, by precision."""
    shares: dict[str, list[str]] = {}
    for result in results:
        settings, read = result.cell.settings, result.of("read")
        if settings["rows"] == 1 and read is not None and read.seconds and result.bound_seconds:
            share = result.bound_seconds / spread(read.seconds).median
            size = f"{settings['in_features']} to {settings['out_features']}"
            shares.setdefault(settings["dtype"], []).append(f"{share:.0%} ({size})")
    return [
        f"`weight.sum()` alone comes to this share of the bound of one row in {dtype}: {', '.join(each)}."
        for dtype, each in shares.items()
    ]


def _cell(options: Options, dtype: str, size: tuple[int, int], rows: int) -> Cell:
    in_features, out_features = size
    weights = 2 if options.quick else max(2, round(BYTES / (in_features * out_features * ITEMSIZE[dtype])))
    contestants = CONTESTANTS if dtype == "float32" else CONTESTANTS[:-1]
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
        contestants=contestants,
        unit="products",
        count=weights,
        goal=None if options.quick else GOAL,
        reference="torch",
        group=f"{in_features} to {out_features}, {dtype}",
    )
