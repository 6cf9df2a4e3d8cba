"""Zero-shot classification of one photograph, from the image and the labels to the scores."""

from harness.cells import Cell, Options


TITLE = "Zero-shot classification"
ABOUT = """\
A photograph of 640 x 480 pixels and candidate labels of one to three words, from the PIL image and the strings to the
scores, with random weights, the same for all.

`ours` is `pipeline("zero-shot-image-classification")` on a converted folder, `ours_optimized` the same with the model
optimised for inference, and `transformers` the same pipeline with its own CLIPModel, CLIPTokenizer and image
processor.
`open_clip` is its transform, tokenizer and model. It pads labels to the model's full length, the pipelines pad them to
the longest."""

MODELS = ("ViT-B-32", "ViT-L-14")
LABELS = (3, 10, 100)
QUICK_LABELS = (3,)
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
GOAL = 1.0


def cells(options: Options) -> list[Cell]:
    """Models by numbers of labels."""
    if options.quick:
        return [_cell(options, MODELS[0], labels) for labels in QUICK_LABELS]
    return [_cell(options, model, labels) for model in MODELS for labels in LABELS]


def _cell(options: Options, model: str, labels: int) -> Cell:
    return Cell(
        suite="zero_shot",
        name=f"{model}, {labels} labels",
        settings={
            "model": model,
            "reduced": options.quick,
            "labels": labels,
            "dtype": DTYPES[options.device],
        },
        contestants=("ours", "ours_optimized", "open_clip", "transformers"),
        unit="images",
        goal=None if options.quick else GOAL,
        group=model,
    )
