"""Image and text towers of this package, open_clip, transformers and timm."""

from harness.cells import Cell, Options


TITLE = "Image and text towers"
ABOUT = """\
Random images and texts of full length to features, in inference mode, with random weights that are the same for all:
`open_clip` 3.3.0, `transformers`' own CLIPModel and SiglipModel (converted with `--target native`), and `timm`'s image
towers. `ours` is `get_image_features` or `get_text_features` as the model is loaded, `ours_optimized` the same with
the tower optimised for inference. In bfloat16 all weights are, for open_clip `precision="pure_bf16"`; the *error
against fp32* is the largest of the first row, over the largest of open_clip's features in fp32.

*Compiled* is `torch.compile` of that call, on a GPU with `mode="reduce-overhead"`. The text towers of ViT-B-16 and
RN50 are that of ViT-B-32.

In bfloat16 open_clip's image towers attend by products that round the scores to bfloat16. Ours keep them in float32,
as `torch.nn.functional.scaled_dot_product_attention` does. On an AMD EPYC that takes up to 9 % longer, and where
attention is sharp (queries and keys four times as large) is 8 to 12 % nearer to fp32."""

TOWERS = {
    "ViT-B-32": ("image", "text"),
    "ViT-B-16": ("image",),
    "ViT-L-14": ("image", "text"),
    "ViT-SO400M-14-SigLIP": ("image", "text"),
    "RN50": ("image",),
}
BATCHES = {"cpu": (1, 8, 32), "cuda": (1, 32, 256)}
DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16",)}
# Compiling takes long: by device, model and tower the batches.
COMPILED = {
    "cpu": {("ViT-B-32", "image"): (8,), ("ViT-B-32", "text"): (8,), ("ViT-B-16", "image"): (8,)},
    "cuda": {
        ("ViT-B-32", "image"): (1, 32, 256),
        ("ViT-B-32", "text"): (1, 32, 256),
        ("ViT-B-16", "image"): (32,),
        ("ViT-L-14", "image"): (32,),
    },
}
# As fast as the fastest peer.
GOAL = 1.0


def cells(options: Options) -> list[Cell]:
    """Models by precisions by towers by batches, and of some also compiled."""
    if options.quick:
        return [
            _cell(options, "ViT-B-32", "image", 3, "float32", compiled=False),
            _cell(options, "ViT-B-32", "text", 2, "bfloat16", compiled=False),
        ]
    compiled = COMPILED[options.device]
    return [
        _cell(options, model, tower, batch, dtype, is_compiled)
        for model, towers in TOWERS.items()
        for dtype in DTYPES[options.device]
        for tower in towers
        for is_compiled in (False, True)
        for batch in (compiled.get((model, tower), ()) if is_compiled else BATCHES[options.device])
    ]


def picture(cell: Cell) -> str:
    return f"{cell.settings['tower']}s {cell.settings['dtype']}"


def _cell(options: Options, model: str, tower: str, batch: int, dtype: str, compiled: bool) -> Cell:
    contestants = ["ours"]
    # Optimising is for eager models; on a GPU nothing of it is left within torch.compile.
    if not compiled or options.device == "cpu":
        contestants.append("ours_optimized")
    if not compiled and options.device == "cuda":
        contestants.append("ours_flash")
    contestants.append("open_clip")
    if model != "RN50":
        contestants.append("transformers")
    if tower == "image":
        contestants.append("timm")
    return Cell(
        suite="encoder",
        name=f"{model} {tower}, batch {batch}, {dtype}{', compiled' if compiled else ''}",
        settings={
            "model": model,
            "reduced": options.quick,
            "tower": tower,
            "batch": batch,
            "dtype": dtype,
            "compiled": compiled,
        },
        contestants=tuple(contestants),
        unit=f"{tower}s",
        count=batch,
        goal=None if options.quick else GOAL,
        group=f"{model} {tower} {dtype}",
    )
