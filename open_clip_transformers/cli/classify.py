"""`open-clip-transformers classify`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .data import (
    OUTPUT_HELP,
    DataOptions,
    check_folder,
    find_data,
    with_data_options,
    work_on_shards,
)
from .images import num_images, read_batches
from .messages import Failures, UsageError, errors_as_messages, warn
from .options import (
    Images,
    Model,
    read_lines,
)
from .output import print_columns, print_record


if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

    from ..datasets.shards import Sample, Shard


@with_data_options
def classify(
    name: Model,
    images: Images,
    data: DataOptions,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="FOLDER", help=OUTPUT_HELP)] = None,
    labels: Annotated[
        list[str] | None, typer.Option(help="Labels with commas between them; may be given several times.")
    ] = None,
    labels_file: Annotated[Path | None, typer.Option(help="A text file with a label on each line.")] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help="A text with {} for the label, by default 'a photo of a {}.'; several are averaged."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Labels to print for each image.")] = 1,
):
    """Classify images with labels of your own (zero-shot).

    Prints a line `image<TAB>label<TAB>probability` for each of the most probable labels of an image, or with --json
    one {"image": ..., "labels": [{"label": ..., "score": ...}]} for each image. The probabilities of an image add up
    to 1 over the labels; those of a SigLIP are independent of each other. As in open_clip, images are not turned as
    their EXIF data may say, which transformers' zero-shot pipeline does. Images that cannot be read are reported and
    left out; the exit code is then 1.

    With --output, a folder gets a parquet file for each shard of the images, with a row for each image in its order:
    `key`, `shard`, `label` and `score`, lists of such with --top, and `error` for those that cannot be read; --json
    prints a summary at the end.
    """
    with errors_as_messages(data.traceback):
        failures = Failures()
        all_labels = _split_labels(labels or [], labels_file)
        templates = template or ["a photo of a {}."]
        if lacking := [text for text in templates if "{}" not in text]:
            raise UsageError(f"--template {lacking[0]!r} has no {{}} for the label, as in 'a photo of a {{}}.'")
        folder = check_folder(output, data)
        shards = find_data(images, failures, data.fields(), data.shard_size)
        load = partial(
            load_classifier, all_labels, templates, top, data.batch_size, name, data.revision, data.dtype.value
        )
        if folder is not None:
            work_on_shards(
                "classify",
                load,
                shards,
                folder,
                ("label", "score"),
                {"labels": all_labels, "template": templates, "top": top},
                name=name,
                data=data,
                failures=failures,
            )

        from ..acceleration import optimize_for_inference

        classifier = load(data.device)
        if num_images(shards) > data.batch_size:  # measuring takes about as long as it saves in one batch
            optimize_for_inference(classifier.model)
        for batch, pixels in read_batches(shards, classifier.processor, data.batch_size, data.workers, failures):
            for sample, best in zip(batch, classifier.best_labels(pixels)):
                if data.as_json:
                    labels = [{"label": label, "score": score} for label, score in best]
                    print_record({"image": sample.key, "labels": labels})
                else:
                    for label, score in best:
                        print_columns(sample.key, label, f"{score:.4g}")
        raise typer.Exit(failures.exit_code())


class Classifier:
    """Labels images.

    Args:
        labels: the labels.
        label_embeds: vectors (labels, projection_dim) of them, of length 1.
        top: how many of the most probable labels an image gets.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        processor: "ProcessorMixin",
        labels: list[str],
        label_embeds: "torch.Tensor",
        top: int,
    ):
        self.model, self.processor, self.image_processor = model, processor, processor.image_processor
        self.labels, self.label_embeds, self.top = labels, label_embeds, top
        self.concurrent = model.device.type == "cpu"
        self.types = {"label": "string", "score": "float32"}
        if top > 1:
            self.types = {name: f"{element}[]" for name, element in self.types.items()}

    def best_labels(self, images: "dict[str, torch.Tensor]") -> list[list[tuple[str, float]]]:
        """Return the most probable labels of each image, with their probabilities."""
        import torch

        from ..training.embeddings import embed_images

        with torch.inference_mode():
            logits = self.model.compute_logits(embed_images(self.model, images), self.label_embeds)
            probabilities = logits.sigmoid() if "siglip" in self.model.config.model_type else logits.softmax(-1)
        scores, indices = (tensor.tolist() for tensor in probabilities.topk(min(self.top, len(self.labels))))
        return [
            [(self.labels[index], score) for index, score in zip(row, row_scores)]
            for row, row_scores in zip(indices, scores)
        ]

    def __call__(self, images: "dict[str, torch.Tensor]", samples: "list[Sample]", shard: "Shard") -> dict[str, list]:
        columns = [tuple(zip(*best)) for best in self.best_labels(images)]
        labels, scores = ([list(row[part]) for row in columns] for part in (0, 1))
        if self.top > 1:
            return {"label": labels, "score": scores}
        return {"label": [row[0] for row in labels], "score": [row[0] for row in scores]}


def load_classifier(
    labels: list[str],
    templates: list[str],
    top: int,
    batch_size: int,
    name: str,
    revision: str | None,
    dtype: str,
    device: str,
) -> Classifier:
    """Load a model, and embed each of `labels` as the mean of its texts."""
    from torch.nn import functional as F
    from transformers import AutoModelForZeroShotImageClassification

    from ..training.embeddings import embed_texts
    from .load import load_model

    model, processor = load_model(AutoModelForZeroShotImageClassification, name, revision, device, dtype)
    texts = [text.replace("{}", label) for text in templates for label in labels]
    embeds = embed_texts(model, processor.tokenizer, texts, batch_size, warn).view(len(templates), len(labels), -1)
    label_embeds = F.normalize(embeds.mean(0), dim=-1).to(model.device)
    return Classifier(model, processor, labels, label_embeds, top)


def _split_labels(options: list[str], file: Path | None) -> list[str]:
    labels = [label.strip() for option in options for label in option.split(",")]
    if file is not None:
        labels += read_lines(file)
    labels = list(dict.fromkeys(filter(None, labels)))
    if not labels:
        raise UsageError('There are no labels to choose from: give --labels "cat,dog" or --labels-file FILE.')
    return labels
