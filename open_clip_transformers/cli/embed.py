"""`open-clip-transformers embed`."""

import json
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from ..configuration.errors import UserError
from ..convert_scripts.common import failing_as
from ..convert_scripts.outputs import written_whole
from .data import (
    OUTPUT_HELP,
    DataOptions,
    dataset_folder,
    find_data,
    with_data_options,
    work_on_shards,
)
from .images import num_images, read_batches
from .messages import Failures, UsageError, errors_as_messages, warn
from .options import (
    IMAGES_HELP,
    Model,
    read_lines,
)
from .output import check_output_file


if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

    from ..datasets.shards import Sample, Shard

EMBEDDING_SUFFIXES = (".safetensors", ".npy")


class EmbeddingDtype(str, Enum):
    float32 = "float32"
    float16 = "float16"


@with_data_options
def embed(
    name: Model,
    output: Annotated[
        str, typer.Option("--output", "-o", help=f"A .safetensors or .npy file to write. Or: {OUTPUT_HELP}")
    ],
    data: DataOptions,
    inputs: Annotated[list[str] | None, typer.Argument(metavar="IMAGE", help=IMAGES_HELP)] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text to embed; may be given several times.")] = None,
    texts_file: Annotated[Path | None, typer.Option(help="A text file with a text to embed on each line.")] = None,
    text_column: Annotated[
        str | None,
        typer.Option(
            help="Column of tables, extension or .json entry in tars, with a text of each image to embed too."
        ),
    ] = None,
    embedding_dtype: Annotated[
        EmbeddingDtype | None, typer.Option(help="Of the vectors in an output folder; float32 by default.")
    ] = None,
):
    """Embed images and texts as vectors of length 1.

    An output folder gets a parquet file for each shard of the images, with a row for each image in its order: `key`,
    `shard`, `embedding`, with --text-column `text_embedding` and `caption`, and `error` for images that cannot be
    read, which make the exit code 1. With --json, a summary is printed at the end.

    A .safetensors file gets float32 tensors image_embeds and text_embeds of shape (inputs, projection_dim), and in its
    metadata JSON lists, images and texts, of what the rows are. A .npy file gets one of the arrays. Images that cannot
    be read are reported and have no row; the exit code is then 1.
    """
    with errors_as_messages(data.traceback):
        failures = Failures()
        texts = [*(text or []), *(read_lines(texts_file) if texts_file else [])]
        if not inputs and not texts:
            raise UsageError("There is nothing to embed: give images, --text or --texts-file.")
        folder = dataset_folder(output, EMBEDDING_SUFFIXES)
        data.check(folder)
        if folder is not None:
            if texts:
                raise UsageError("--text and --texts-file go into a .safetensors or .npy file of their own.")
            settings = _Settings((embedding_dtype or EmbeddingDtype.float32).value, text_column, data.batch_size)
            work_on_shards(
                "embed",
                partial(_load_embedder, settings, name, data.revision, data.dtype.value),
                find_data(inputs or [], failures, data.fields(text_column), data.shard_size),
                folder,
                settings.columns,
                {"embedding_dtype": settings.embedding_dtype, "text_column": text_column},
                name=name,
                data=data,
                failures=failures,
            )
        file = Path(output)
        _check_file_options(text_column, embedding_dtype, data.as_json)
        _check_embedding_file(file, bool(inputs) + bool(texts))
        shards = find_data(inputs or [], failures, data.fields())

        import torch
        from transformers import AutoModelForZeroShotImageClassification

        from ..acceleration import optimize_for_inference
        from ..training.embeddings import embed_images, embed_texts
        from .load import load_model

        model, processor = load_model(
            AutoModelForZeroShotImageClassification, name, data.revision, data.device, data.dtype.value
        )
        if num_images(shards) > data.batch_size:  # measuring takes about as long as it saves in one batch
            optimize_for_inference(model)
        embeddings, rows = {}, {}
        if shards:
            batches = [
                (batch, embed_images(model, images).cpu())
                for batch, images in read_batches(shards, processor, data.batch_size, data.workers, failures)
            ]
            if not batches:
                raise OSError(f"None of the images can be read: {output} was not written.")
            embeddings["image_embeds"] = torch.cat([embeds for _, embeds in batches])
            rows["images"] = [sample.key for batch, _ in batches for sample in batch]
        if texts:
            embeddings["text_embeds"] = embed_texts(model, processor.tokenizer, texts, data.batch_size, warn)
            rows["texts"] = texts
        _save_embeddings(file, embeddings, rows)
        raise typer.Exit(failures.exit_code())


class _Settings(NamedTuple):
    """Settings that the embeddings of a data set depend on, beside the model."""

    embedding_dtype: str
    text_column: str | None
    batch_size: int

    @property
    def columns(self) -> tuple[str, ...]:
        return ("embedding", "text_embedding", "caption") if self.text_column else ("embedding",)


class Embedder:
    """Embeds images, and their texts where `settings` say so."""

    def __init__(self, model: "PreTrainedModel", processor: "ProcessorMixin", settings: _Settings):
        self.model, self.processor, self.settings = model, processor, settings
        self.image_processor = processor.image_processor
        self.concurrent = model.device.type == "cpu"
        vectors = (settings.embedding_dtype, model.config.projection_dim)
        types: dict[str, str | tuple[str, int]] = {
            "embedding": vectors,
            "text_embedding": vectors,
            "caption": "string",
        }
        self.types = {name: types[name] for name in settings.columns}

    def __call__(
        self, images: "dict[str, torch.Tensor]", samples: "list[Sample]", shard: "Shard"
    ) -> "dict[str, torch.Tensor | list]":
        from ..training.embeddings import embed_images, embed_texts

        columns = {"embedding": embed_images(self.model, images)}
        if self.settings.text_column:
            texts = [sample.text for sample in samples]
            columns["text_embedding"] = embed_texts(
                self.model, self.processor.tokenizer, texts, self.settings.batch_size
            )
            columns["caption"] = texts
        return columns


def _load_embedder(settings: _Settings, name: str, revision: str | None, dtype: str, device: str) -> Embedder:
    from transformers import AutoModelForZeroShotImageClassification

    from .load import load_model

    return Embedder(*load_model(AutoModelForZeroShotImageClassification, name, revision, device, dtype), settings)


def _check_file_options(text_column: str | None, embedding_dtype: EmbeddingDtype | None, as_json: bool):
    given = {"--text-column": text_column, "--embedding-dtype": embedding_dtype, "--json": as_json}
    if unused := [option for option, value in given.items() if value]:
        raise UsageError(f"{unused[0]} acts on an output folder: name one with --output FOLDER/.")


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
    with failing_as(f"{path} cannot be written", UserError), written_whole(path) as temporary:
        if path.suffix.lower() == ".npy":
            import numpy

            (embedding,) = embeddings.values()
            with temporary.open("wb") as file:
                numpy.save(file, embedding.numpy(), allow_pickle=False)
        else:
            from safetensors.torch import save_file

            save_file(embeddings, temporary, {key: json.dumps(rows) for key, rows in names.items()})
