"""Weights in int8 through torchao: accuracy, bytes and speed."""

from harness.cells import Cell, Options


TITLE = "Quantisation"
ABOUT = """\
Our models in the forms that torchao gives them at load; none is a peer, and a ratio below 1 is faster than fp32.

| Contestant | Weights of linear layers | Products in |
|---|---|---|
| `ours` | fp32 | fp32 |
| `ours_bf16` | bf16 | bf16 |
| `ours_int8` | int8, `Int8WeightOnlyConfig` | fp32 |
| `ours_int8_bf16` | int8, `Int8WeightOnlyConfig` | bf16 |
| `ours_int8_dynamic` | int8, `Int8DynamicActivationInt8WeightConfig`, which also rounds their inputs | int8 |

The caption head, embeddings and norms are not quantised. *Compiled* is `torch.compile` of the image tower. Models at
full size have random weights; what rounding costs a trained one, the digits model shows: a CoCa of 0.9 million
parameters, on pictures that it was not trained on. *Cosine* is the smallest of all rows, with the features in fp32."""

FORMS = ("ours", "ours_bf16", "ours_int8", "ours_int8_bf16", "ours_int8_dynamic")
CAPTION_MODEL, CAPTION_BATCH, CAPTION_LENGTH = "coca_ViT-B-32", 4, 30
IMAGE_MODEL, IMAGE_BATCH = "ViT-B-32", 8
PICTURES, QUICK_PICTURES = 200, 5


def cells(options: Options) -> list[Cell]:
    """Captions and images of models at full size, then the digits model; on a CPU."""
    if options.device != "cpu":
        return []
    captions = {"task": "captions", "model": CAPTION_MODEL, "batch": CAPTION_BATCH, "length": CAPTION_LENGTH}
    images = {"task": "images", "model": IMAGE_MODEL, "batch": IMAGE_BATCH}
    pictures = QUICK_PICTURES if options.quick else PICTURES
    digits = _cell(options, f"Digits, {pictures} pictures", {"task": "digits", "pictures": pictures}, pictures)
    if options.quick:
        return [digits]
    return [
        _cell(options, f"{CAPTION_MODEL} captions, batch {CAPTION_BATCH}, greedy", captions, CAPTION_BATCH),
        _cell(options, f"{IMAGE_MODEL} images, batch {IMAGE_BATCH}", {**images, "compiled": False}, IMAGE_BATCH),
        _cell(
            options, f"{IMAGE_MODEL} images, batch {IMAGE_BATCH}, compiled", {**images, "compiled": True}, IMAGE_BATCH
        ),
        digits,
    ]


def _cell(options: Options, name: str, settings: dict, count: int) -> Cell:
    return Cell(
        suite="quantization",
        name=name,
        settings={**settings, "reduced": options.quick},
        contestants=FORMS,
        unit="images" if settings["task"] == "images" else "captions",
        count=count,
    )
