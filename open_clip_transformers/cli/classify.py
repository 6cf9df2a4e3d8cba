"""`open-clip-transformers classify`."""

from pathlib import Path
from typing import Annotated

import typer

from .images import find_images, read_batches
from .messages import Failures, UsageError, errors_as_messages
from .options import (
    DEFAULT_WORKERS,
    BatchSize,
    Device,
    Dtype,
    Images,
    Json,
    Model,
    ModelDtype,
    Revision,
    Traceback,
    Workers,
    read_lines,
)
from .output import print_columns, print_record


def classify(
    name: Model,
    images: Images,
    labels: Annotated[
        list[str] | None, typer.Option(help="Labels with commas between them; may be given several times.")
    ] = None,
    labels_file: Annotated[Path | None, typer.Option(help="A text file with a label on each line.")] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help="A text with {} for the label, by default 'a photo of a {}.'; several are averaged."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Labels to print for each image.")] = 1,
    batch_size: BatchSize = 16,
    workers: Workers = DEFAULT_WORKERS,
    revision: Revision = None,
    device: Device = "auto",
    dtype: ModelDtype = Dtype.auto,
    as_json: Json = False,
    traceback: Traceback = False,
):
    """Classify images with labels of your own (zero-shot).

    Prints a line `image<TAB>label<TAB>probability` for each of the most probable labels of an image, or with --json
    one {"image": ..., "labels": [{"label": ..., "score": ...}]} for each image. The probabilities of an image add up
    to 1 over the labels; those of a SigLIP are independent of each other. As in open_clip, images are not turned as
    their EXIF data may say, which transformers' zero-shot pipeline does. Images that cannot be read are reported and
    left out; the exit code is then 1.
    """
    with errors_as_messages(traceback):
        failures = Failures()
        all_labels = _split_labels(labels or [], labels_file)
        templates = template or ["a photo of a {}."]
        if lacking := [text for text in templates if "{}" not in text]:
            raise UsageError(f"--template {lacking[0]!r} has no {{}} for the label, as in 'a photo of a {{}}.'")
        names = find_images(images, failures)

        import torch
        from torch.nn import functional as F
        from transformers import AutoModelForZeroShotImageClassification

        from ..acceleration import optimize_for_inference
        from .embeddings import embed_images, embed_texts
        from .load import load_model

        model, processor = load_model(AutoModelForZeroShotImageClassification, name, revision, device, dtype.value)
        if len(names) > batch_size:  # measuring takes about as long as it saves in one batch
            optimize_for_inference(model)
        texts = [text.replace("{}", label) for text in templates for label in all_labels]
        embeds = embed_texts(model, processor, texts, batch_size).view(len(templates), len(all_labels), -1)
        label_embeds = F.normalize(embeds.mean(0), dim=-1).to(model.device)
        sigmoid = "siglip" in model.config.model_type
        for batch, pixel_values in read_batches(names, processor, batch_size, workers, failures):
            with torch.inference_mode():
                logits = model.compute_logits(embed_images(model, pixel_values), label_embeds)
                probabilities = logits.sigmoid() if sigmoid else logits.softmax(-1)
            scores, indices = (tensor.tolist() for tensor in probabilities.topk(min(top, len(all_labels))))
            for image, row_scores, row in zip(batch, scores, indices):
                best = [(all_labels[index], score) for index, score in zip(row, row_scores)]
                if as_json:
                    print_record(
                        {"image": image, "labels": [{"label": label, "score": score} for label, score in best]}
                    )
                else:
                    for label, score in best:
                        print_columns(image, label, f"{score:.4g}")
        raise typer.Exit(failures.exit_code())


def _split_labels(options: list[str], file: Path | None) -> list[str]:
    labels = [label.strip() for option in options for label in option.split(",")]
    if file is not None:
        labels += read_lines(file)
    labels = list(dict.fromkeys(filter(None, labels)))
    if not labels:
        raise UsageError('There are no labels to choose from: give --labels "cat,dog" or --labels-file FILE.')
    return labels
