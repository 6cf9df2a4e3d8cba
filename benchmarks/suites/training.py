"""Steps of contrastive training, with all activations at once and part by part."""

from harness.cells import Cell, Options


TITLE = "Training"
ABOUT = """\
Two steps of AdamW on a batch of images and texts, from the same random weights in fp32 (on a GPU with bf16 autocast).
The learning rate is zero, so that the losses of all contestants can be compared. What a `Trainer` does once, before
its first step, is left out.

`ours` is `ContrastiveTrainer.train()`, `ours_mini_batches` the same with `mini_batch_size` an eighth of the batch (the
gradients are those of the whole batch), `transformers` its own CLIPModel in its `Trainer`, and `open_clip` a loop of
model, `ClipLoss`, `backward()` and `step()`. The memory of a step, under "More figures", is its peak above what
is kept between steps: weights and optimizer states, which parts of a batch make no smaller. Nor do they make the
gradients of all weights smaller, 605 MB for ViT-B-32.

Parts have a goal of their own, a share of what `ours` takes. They cost a third of the time at least, that of one more
forward pass where a backward pass takes as long as two. Of a batch of 16 a part is two pairs, and each part reads all
weights three times and adds to all gradients."""

# Device -> model, its batches, and the dtype of autocast.
MEASURED = {"cpu": ("ViT-B-32", (16, 64), "float32"), "cuda": ("ViT-L-14", (256,), "bfloat16")}
STEPS = 2
GOAL = 1.0
LIMITS = {"ours_mini_batches": {"time": 1.5, "memory of a step": 1 / 3}}


def cells(options: Options) -> list[Cell]:
    """A model by batches."""
    model, batches, dtype = MEASURED[options.device]
    return [_cell(options, model, batch, dtype) for batch in ((4,) if options.quick else batches)]


def _cell(options: Options, model: str, batch: int, dtype: str) -> Cell:
    return Cell(
        suite="training",
        name=f"{model}, batch {batch}",
        settings={"model": model, "reduced": options.quick, "batch": batch, "steps": STEPS, "dtype": dtype},
        contestants=("ours", "ours_mini_batches", "open_clip", "transformers"),
        unit="pairs",
        count=STEPS * batch,
        goal=None if options.quick else GOAL,
    )
