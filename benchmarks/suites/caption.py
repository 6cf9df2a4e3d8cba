"""Captions of CoCa by this package and by open_clip, and of BLIP."""

from itertools import pairwise

from harness.cells import Cell, Options, Record, spread


TITLE = "Captions"
ABOUT = """\
Random images, captioned by CoCa at full size with random weights, the same for us and open_clip. *Beams* is the
default search of open_clip (6 beams in 3 groups), *greedy* takes the likeliest token, *top-p* draws from the likeliest
10 %. No caption ends early: all have 30 tokens, or in the cells of lengths so many new ones.

`ours` is `model.generate(pixel_values=...)` as the model is loaded, `ours_optimized` the same model optimised for
inference, and `ours_compiled` after `model.compile()`, with `cache_implementation="static"`. `open_clip` is 3.3.0
with the last transformers that its `generate` runs on. `blip` is transformers' BlipForConditionalGeneration of base
size with weights of its own, on the same images: patches of 16 pixels, 6 plain beams.

The bound is that of the algorithm with a cache: the image tower once for an image, then for each token the weights of
the decoder and what it keeps, for 2 beams an image where equal groups search alike. A step is mostly products of few
rows with weights that no cache holds; how much of the bound these reach alone is on the page of
[linear layers](linear.md)."""

MODELS = ("coca_ViT-B-32", "coca_ViT-L-14")
BATCHES = {"cpu": (1, 4, 16), "cuda": (1, 32, 256)}
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
STRATEGIES = {"beams": "beams", "greedy": "greedy", "top_p": "top-p"}
LENGTH = 30
QUICK_LENGTH = 8
# (model, batch, strategy) -> the least ratio to open_clip on two cores.
GOALS = {
    ("coca_ViT-B-32", 4, "beams"): 15.0,
    ("coca_ViT-B-32", 4, "greedy"): 3.0,
    ("coca_ViT-L-14", 4, "beams"): 15.0,
    ("coca_ViT-L-14", 4, "greedy"): 3.0,
}
# Of greedy captions, to see what a token costs late in a caption.
NEW_TOKENS = (10, 20, 40, 70)
LENGTHS_MODEL = "coca_ViT-B-32"
LENGTHS_BATCH = {"cpu": 4, "cuda": 32}


def cells(options: Options) -> list[Cell]:
    """Models by batches by strategies, then greedy captions of several lengths."""
    if options.quick:
        return [_cell(options, LENGTHS_MODEL, 2, strategy, QUICK_LENGTH) for strategy in ("beams", "greedy")]
    rows = [
        _cell(options, model, batch, strategy, LENGTH)
        for model in MODELS
        for batch in BATCHES[options.device]
        for strategy in STRATEGIES
    ]
    return rows + [_length_cell(options, new_tokens) for new_tokens in NEW_TOKENS]


def picture(cell: Cell) -> str:
    return "new tokens" if "new_tokens" in cell.settings else cell.settings["model"]


def notes(record: Record) -> list[str]:
    """State the cost of one more token, between each two lengths that follow each other."""
    measured = [result for result in record.results if "new_tokens" in result.cell.settings]
    lines = []
    for name in dict.fromkeys(each.contestant for result in measured for each in result.measurements):
        points = [
            (result.cell.settings["new_tokens"], spread(own.seconds).median)
            for result in measured
            if (own := result.of(name)) is not None and own.seconds
        ]
        costs = [
            f"{1e3 * (later - earlier) / (last - first):.2f} ms from {first} to {last}"
            for (first, earlier), (last, later) in pairwise(points)
        ]
        if costs:
            lines.append(f"A further token of {name} takes {', '.join(costs)} new tokens.")
    return lines


def _cell(options: Options, model: str, batch: int, strategy: str, length: int) -> Cell:
    contestants = ["ours", "ours_optimized"]
    # Compiling takes a minute and more on two cores.
    if strategy != "top_p" and model == LENGTHS_MODEL and not options.quick:
        contestants.append("ours_compiled")
    contestants.append("open_clip")
    if "ViT-B" in model:
        contestants.append("blip")
    return Cell(
        suite="caption",
        name=f"{model}, batch {batch}, {STRATEGIES[strategy]}",
        settings=_settings(options, model, batch, strategy, length),
        contestants=tuple(contestants),
        unit="captions",
        count=batch,
        goal=GOALS.get((model, batch, strategy)) if options.device == "cpu" and not options.quick else None,
        reference="open_clip",
        group=model,
    )


def _length_cell(options: Options, new_tokens: int) -> Cell:
    batch = LENGTHS_BATCH[options.device]
    settings = _settings(options, LENGTHS_MODEL, batch, "greedy", new_tokens + 1)
    return Cell(
        suite="caption",
        name=f"{LENGTHS_MODEL}, batch {batch}, greedy, {new_tokens} new tokens",
        settings={**settings, "new_tokens": new_tokens},
        contestants=("ours", "ours_optimized", "open_clip"),
        unit="tokens",
        count=batch * new_tokens,
        group="lengths",
    )


def _settings(options: Options, model: str, batch: int, strategy: str, length: int) -> dict:
    return {
        "model": model,
        "reduced": options.quick,
        "batch": batch,
        "strategy": strategy,
        "length": length,
        "dtype": DTYPES[options.device],
    }
