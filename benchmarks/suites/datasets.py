"""Embed and caption folders of JPEG files: our commands, a loop with open_clip, and transformers' pipelines."""

from harness.cells import Cell, Options


TITLE = "Whole data sets"
ABOUT = """\
Folders of JPEG files that look like photographs, of 256 x 256, 333 x 500, 480 x 640, 640 x 480 and 1024 x 768 pixels
in turn, 500 different ones under many names. Models are in fp32 with the same random weights. Every sample is a
process of its own; its time is that from the first image to the last vector in a file, without imports and loading.

`ours` is `open-clip-transformers embed` or `caption` with `--output FOLDER/`, `ours_ray` the same with `--engine ray`
on a cluster of its own with one actor, `ours_ray_2` with two. `open_clip` is the loop of its users: its transform in a
DataLoader with a process a core, batches of 64, `encode_image` in `inference_mode`; for captions `generate` by the
last transformers that it runs on. `transformers` is its pipeline with batches of 64 and as many processes:
`image-feature-extraction` on its own CLIPVisionModelWithProjection, whose pixels are others, or `image-text-to-text`
on BLIP of base size with weights of its own. Captions are greedy, of 20 tokens.

*Memory* is the most that all processes of a contestant took together (proportional set size, sampled once a second).
*Cores* are the seconds of processors over those of the clock, of all processes. *Model busy* is the share of the time
in which each core has a batch in the model: the rest is reading's, which takes the same cores.

Rates of a loop do not depend on the number of images: 20,000 are worked on once, by ours and by the faster peer."""

SMALL, LARGE, CAPTIONER = "ViT-S-32-alt", "ViT-B-32", "coca_ViT-B-32"
PEERS = ("open_clip", "transformers")
GOAL = 1.2


def cells(options: Options) -> list[Cell]:
    """Embeddings by a small model of few and many images, by a larger one, by Ray, and captions; on a CPU."""
    if options.device != "cpu":
        return []
    if options.quick:
        rows = [("embed", SMALL, 40, PEERS), ("caption", CAPTIONER, 6, PEERS)]
        return [_cell(options, *row, None) for row in rows]
    return [
        _cell(options, "embed", SMALL, 2000, PEERS, GOAL),
        _cell(options, "embed", SMALL, 20000, ("transformers",), GOAL),
        _cell(options, "embed", LARGE, 300, PEERS, GOAL),
        _cell(options, "embed", SMALL, 1000, ("ours_ray", "ours_ray_2"), None),
        _cell(options, "caption", CAPTIONER, 32, PEERS, GOAL),
    ]


def _cell(options: Options, command: str, model: str, count: int, others: tuple[str, ...], goal: float | None) -> Cell:
    return Cell(
        suite="datasets",
        name=f"{command} {count} JPEG files, {model}{', on Ray' if 'ours_ray' in others else ''}",
        settings={
            "command": command,
            "model": model,
            "reduced": options.quick,
            "count": count,
            "threads": options.threads,
        },
        contestants=("ours", *others),
        unit="images",
        count=count,
        goal=goal,
    )
