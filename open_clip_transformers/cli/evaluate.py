"""`open-clip-transformers evaluate`."""

import json
import tempfile
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..convert_scripts.common import failing_as
from ..datasets.shards import HUB_DATASETS
from ..datasets.tables import are_shards, read_shards
from .messages import UsageError, errors_as_messages
from .options import BatchSize, Device, Dtype, Model, ModelDtype, Revision, Traceback, read_lines
from .output import print_columns


class Task(str, Enum):
    zero_shot = "zero-shot"
    retrieval = "retrieval"
    caption = "caption"


# Options that only one task reads.
OPTIONS_OF = {
    "label_column": Task.zero_shot,
    "class_names": Task.zero_shot,
    "templates": Task.zero_shot,
    "num_beams": Task.caption,
}


def evaluate(
    name: Model,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A folder of class folders, or of images with a metadata.jsonl, WebDataset tars "
            "('tars/{00000..00009}.tar'), parquet files, a data set saved by datasets, or an id of the Hub.",
        ),
    ],
    task: Annotated[Task, typer.Option(help="What to measure.")],
    split: Annotated[
        str | None, typer.Option(help="Split of the data set, by default test, validation or the only one.")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Column of images, in tars their extension; by default the only one.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column of labels, by default the only one; in tars an extension, cls.")
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(help="Column of texts, by default text; in tars an extension or an entry of the .json, txt."),
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A text file with the name of a class on each line, by default the data's."),
    ] = None,
    templates: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="openai for the 80 of CLIP's paper (the default), simple for 7 of them, or a text file with one on "
            "each line, {} for the name.",
        ),
    ] = None,
    num_beams: Annotated[int | None, typer.Option(min=1, help="Beams to search captions with.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows to evaluate, the first of the data set.")] = None,
    batch_size: BatchSize = 32,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 0,
    revision: Revision = None,
    device: Device = "auto",
    dtype: ModelDtype = Dtype.auto,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, captions included.")] = False,
    traceback: Traceback = False,
):
    """Measure a model on a data set: zero-shot classification, retrieval, or captions.

    Prints a line `metric<TAB>value` for each metric. Shares are between 0 and 1, bleu and chrf between 0 and 100.
    """
    with errors_as_messages(traceback), tempfile.TemporaryDirectory() as cache:
        given = {"label_column": label_column, "class_names": class_names, "templates": templates}
        _check_options({**given, "num_beams": num_beams}, text_column, task)

        from transformers import AutoModelForImageTextToText, AutoModelForZeroShotImageClassification

        from ..training import evaluation
        from .load import load_model

        if are_shards(data):
            if split is not None:
                raise UsageError(f"--split {split}: tars and parquet files have no splits, name those to evaluate.")
            kind, column = ("label", label_column) if task is Task.zero_shot else ("text", text_column)
            dataset = read_shards(data, kind, column, image_column, cache, limit)
            image_column, label_column, text_column = "image", "label", "text"
        else:
            with failing_as(f"{data} cannot be loaded as a data set", UsageError):
                dataset = evaluation.load_dataset(data.removeprefix(HUB_DATASETS), split)
            dataset = dataset.select(range(min(limit, len(dataset)))) if limit else dataset
        columns: dict[str, Any] = {"image_column": image_column, "batch_size": batch_size, "num_workers": workers}
        captions = task is Task.caption
        auto_class = AutoModelForImageTextToText if captions else AutoModelForZeroShotImageClassification
        model, processor = load_model(auto_class, name, revision, device, dtype.value, captions=captions)
        if task is Task.zero_shot:
            sets = evaluation.IMAGENET["templates"]
            chosen = templates or "openai"
            results = evaluation.evaluate_zero_shot(
                model,
                processor,
                dataset,
                class_names=read_lines(class_names) if class_names else None,
                templates=sets.get(chosen) or read_lines(Path(chosen)),
                label_column=label_column,
                **columns,
            )
        elif task is Task.retrieval:
            results = evaluation.evaluate_retrieval(
                model, processor, dataset, text_column=text_column or "text", **columns
            )
        else:
            beams: dict[str, Any] = {} if num_beams is None else {"num_beams": num_beams}
            results = evaluation.evaluate_captions(
                model, processor, dataset, text_column=text_column or "text", **columns, **beams
            )
        if as_json:
            typer.echo(json.dumps(results))
        else:
            for metric, value in results.items():
                if metric != "captions":
                    print_columns(metric, f"{value:.4f}" if isinstance(value, float) else str(value))


def _check_options(given: dict, text_column: str | None, task: Task):
    """Raise `UsageError` where an option was given that the task does not read."""
    ignored = [name for name, value in given.items() if value is not None and OPTIONS_OF[name] is not task]
    if text_column is not None and task is Task.zero_shot:
        ignored.append("text_column")
    if ignored:
        raise UsageError(f"--task {task.value} does not read --{ignored[0].replace('_', '-')}: leave it out.")
