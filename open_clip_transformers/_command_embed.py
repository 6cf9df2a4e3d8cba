"""`open-clip-transformers embed`."""

from pathlib import Path
from typing import Annotated

import typer

from ._cli_inputs import find_images, read_lines
from ._cli_messages import Failures, UsageError, errors_as_messages
from ._cli_options import (
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
)
from ._cli_output import check_embedding_file


def embed(
    model: Model,
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
        check_embedding_file(output, bool(inputs) + bool(texts))
        names = find_images(inputs or [], failures)

        from ._cli_embeddings import embed_inputs

        embed_inputs(
            names,
            texts,
            output,
            model_name=model,
            revision=revision,
            device=device,
            dtype=dtype.value,
            batch_size=batch_size,
            workers=workers,
            failures=failures,
        )
        raise typer.Exit(failures.exit_code())
