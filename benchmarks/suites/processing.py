"""Images to pixels and texts to token ids: open_clip's transform and tokenizers, and transformers' own."""

from harness.cells import Cell, Options


TITLE = "Images and texts"
ABOUT = """\
Images that look like photographs, from PIL images, JPEG files in memory or decoded uint8 tensors to `pixel_values` of
224 x 224 pixels; and captions to `input_ids`. Images of *mixed* sizes are 640 x 480, 1024 x 768 and 333 x 500 pixels.

`ours` is the image processor on Pillow (`backend="pil"`), whose pixels equal open_clip's, but in the cells *on
torchvision*; there it is the one that `AutoImageProcessor` loads. `open_clip` is its evaluation transform, image by
image, stacked; from tensors it needs PIL images first. `transformers` is CLIPImageProcessor and `transformers_pil` the
one of its Pillow back end, which crop otherwise. Of a batch we process as many images at once as there are threads.

Captions are drawn from CLIP's vocabulary, *mixed* ones with other scripts, emoji and HTML entities; words that were
met before lie in the caches of the tokenizers. CLIP's is compared with open_clip's SimpleTokenizer and transformers'
CLIPTokenizer, SigLIP's with open_clip's HFTokenizer on the same folder and transformers' own class, which does not
clean texts."""

SIZES = {"640x480": [(640, 480)], "1024x768": [(1024, 768)], "333x500": [(333, 500)]}
MIXED = [size for sizes in SIZES.values() for size in sizes]
BATCH = 32
QUICK_SIZE, QUICK_BATCH = (64, 48), 3
TEXT_BATCHES = (1, 256, 4096)
# Texts of a run one by one.
SINGLE_TEXTS = 256
# Against open_clip: as fast where every pixel and id is the same, and twice as fast on torchvision.
EXACT_GOAL, TORCHVISION_GOAL = 1.0, 2.0


def cells(options: Options) -> list[Cell]:
    """Images by their form and size, then texts by tokenizer, kind and number; on a GPU, tensors alone."""
    if options.quick:
        return [
            _image_cell(options, "PIL image", "pil", [QUICK_SIZE], 1),
            _image_cell(options, f"{QUICK_BATCH} tensors, on torchvision", "tensor", [QUICK_SIZE], QUICK_BATCH),
            _text_cell(options, "clip", "ascii", 4),
            _text_cell(options, "siglip", "mixed", 4),
        ]
    tensors = [
        _image_cell(options, f"{BATCH} decoded tensors, {name}, on torchvision", "tensor", sizes, BATCH)
        for name, sizes in {**SIZES, "mixed": MIXED}.items()
    ]
    tensors.append(_image_cell(options, f"Tensor of {BATCH}, 640x480, on torchvision", "stacked", [MIXED[0]], BATCH))
    if options.device != "cpu":
        return tensors
    images = [_image_cell(options, f"PIL image, {name}", "pil", sizes, 1) for name, sizes in SIZES.items()]
    images.append(_image_cell(options, f"{BATCH} PIL images, mixed", "pil", MIXED, BATCH))
    images.append(_image_cell(options, f"{BATCH} JPEG files, mixed", "jpeg", MIXED, BATCH))
    texts = [
        _text_cell(options, tokenizer, kind, batch)
        for tokenizer in ("clip", "siglip")
        for kind in ("ascii", "mixed")
        for batch in TEXT_BATCHES
    ]
    return images + tensors + texts


def picture(cell: Cell) -> str:
    return cell.settings["task"]


def _image_cell(options: Options, name: str, form: str, sizes: list[tuple[int, int]], count: int) -> Cell:
    on_torchvision = form in ("tensor", "stacked")
    peers = ("open_clip", "transformers") if on_torchvision else ("open_clip", "transformers", "transformers_pil")
    return Cell(
        suite="processing",
        name=name,
        settings={
            "task": "images",
            "form": form,
            "sizes": [list(size) for size in sizes],
            "count": count,
            "on_torchvision": on_torchvision,
        },
        contestants=("ours", *peers),
        unit="images",
        count=count,
        goal=None if options.quick else TORCHVISION_GOAL if on_torchvision else EXACT_GOAL,
        reference="open_clip",
        group="images",
    )


def _text_cell(options: Options, tokenizer: str, kind: str, batch: int) -> Cell:
    count = SINGLE_TEXTS if batch == 1 else batch
    form = f"{count} texts one by one" if batch == 1 else f"Batch of {batch} texts"
    return Cell(
        suite="processing",
        name=f"{form}, {kind}, {'CLIP' if tokenizer == 'clip' else 'SigLIP'}",
        settings={"task": "texts", "tokenizer": tokenizer, "kind": kind, "batch": batch, "count": count},
        contestants=("ours", "open_clip", "transformers"),
        unit="texts",
        count=count,
        goal=None if options.quick else EXACT_GOAL,
        reference="open_clip",
        group=f"texts {tokenizer}",
    )
