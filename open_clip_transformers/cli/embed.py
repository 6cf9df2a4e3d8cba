"""`open-clip-transformers embed`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..convert_scripts.outputs import written_whole
from .images import find_images, read_batches
from .messages import Failures, UsageError, errors_as_messages
from .options import (
    DEFAULT_WORKERS,
    IMAGES_HELP,
    BatchSize,
    Device,
    Dtype,
    Model,
    ModelDtype,
    Revision,
    Traceback,
    Workers,
    read_lines,
)
from .output import check_output_file


EMBEDDING_SUFFIXES = (".safetensors", ".npy")


def embed(
    name: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="A .safetensors or .npy file to write.")],
    inputs: Annotated[list[str] | None, typer.Argument(metavar="IMAGE", help=IMAGES_HELP)] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text to embed; may be given several times.")] = None,
    texts_file: Annotated[Path | None, typer.Option(help="A text file with a text to embed on each line.")] = None,
    batch_size: BatchSize = 16,
    workers: Workers = DEFAULT_WORKERS,
    revision: Revision = None,
    device: Device = "auto",
    dtype: ModelDtype = Dtype.auto,
    traceback: Traceback = False,
):
    """Embed images and texts as vectors of length 1.

    A .safetensors file gets float32 tensors image_embeds and text_embeds of shape (inputs, projection_dim), and in its
    metadata JSON lists, images and texts, of what the rows are. A .npy file gets one of the arrays. Images that cannot
    be read are reported and have no row; the exit code is then 1.
    """
    with errors_as_messages(traceback):
        failures = Failures()
        texts = [*(text or []), *(read_lines(texts_file) if texts_file else [])]
        if not inputs and not texts:
            raise UsageError("There is nothing to embed: give images, --text or --texts-file.")
        _check_embedding_file(output, bool(inputs) + bool(texts))
        names = find_images(inputs or [], failures)

        import torch
        from transformers import AutoModelForZeroShotImageClassification

        from ..acceleration import optimize_for_inference
        from .embeddings import embed_images, embed_texts
        from .load import load_model

        model, processor = load_model(AutoModelForZeroShotImageClassification, name, revision, device, dtype.value)
        if len(names) > batch_size:  # measuring takes about as long as it saves in one batch
            optimize_for_inference(model)
        embeddings, rows = {}, {}
        if names:
            batches = [
                (batch, embed_images(model, pixel_values).cpu())
                for batch, pixel_values in read_batches(names, processor, batch_size, workers, failures)
            ]
            if not batches:
                raise OSError(f"None of the images can be read: {output} was not written.")
            embeddings["image_embeds"] = torch.cat([embeds for _, embeds in batches])
            rows["images"] = [image for batch, _ in batches for image in batch]
        if texts:
            embeddings["text_embeds"] = embed_texts(model, processor, texts, batch_size)
            rows["texts"] = texts
        _save_embeddings(output, embeddings, rows)
        raise typer.Exit(failures.exit_code())


def _check_embedding_file(path: Path, num_kinds: int):
    """Raise `UsageError` where embeddings of that many kinds (images, texts) cannot be written to `path`."""
    check_output_file(path, EMBEDDING_SUFFIXES)
    if path.suffix.lower() == ".npy" and num_kinds > 1:
        raise UsageError(
            "A .npy file holds one array: embed images and texts one after the other, or into a .safetensors file."
        )


def _save_embeddings(path: Path, embeddings: dict, names: dict[str, list[str]]):
    """Write embeddings to a file that takes its name once it is whole.

    Args:
        path: a `.safetensors` file, which gets all tensors, and `names` as JSON lists in its metadata; or a `.npy`
            file, which gets the one array there is.
        embeddings: name -> float32 tensor (inputs, projection_dim) on the CPU.
        names: metadata key -> name of each row.
    """
    with written_whole(path) as temporary:
        if path.suffix.lower() == ".npy":
            import numpy

            (embedding,) = embeddings.values()
            with temporary.open("wb") as file:
                numpy.save(file, embedding.numpy(), allow_pickle=False)
        else:
            from safetensors.torch import save_file

            save_file(embeddings, temporary, {key: json.dumps(rows) for key, rows in names.items()})
