"""Tars and parquet files as a data set of the library datasets, for what needs one that has a length."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..configuration.errors import UserError
from .extras import import_extra
from .shards import TAR_SUFFIXES, Fields, find_files, find_shards, open_parquet


if TYPE_CHECKING:
    import datasets

# Where labels and texts are unless told; in tars as clip_benchmark and img2dataset write them.
TAR_COLUMNS = {"label": "cls", "text": "txt"}


def are_shards(address: str) -> bool:
    """Whether an address that `find_shards` takes stands for tars or parquet files."""
    try:
        return find_files(address)[0].lower().endswith((*TAR_SUFFIXES, ".parquet"))
    except OSError:
        return False


def read_shards(
    address: str,
    kind: str,
    column: str | None,
    image_column: str | None,
    cache_dir: str,
    limit: int | None = None,
) -> "datasets.Dataset":
    """Copy tars or parquet files to a data set with the columns `image` and, as `kind` says, `label` or `text`.

    Args:
        address: tars or parquet files, as `find_shards` takes them.
        kind: "label" for an integer, "text" for a list of texts. A text in a tar is several, one on each line, as for
            clip_benchmark.
        column: where these are: a column, in tars an extension or an entry of the `.json`. By default `cls` and `txt`
            in tars, elsewhere the only column of type `ClassLabel`, and `text`.
        image_column: the column or extension of images, by default the first that is known.
        cache_dir: an empty folder for the copy.
        limit: rows to read, the first.

    Raises:
        ImportError: a library that reads them is missing.
        OSError: a file that cannot be read, a row without an image.
        ValueError: a column that is missing, a label that is no integer, an image without texts.
    """
    datasets = import_extra("datasets", "evaluate")
    first = find_files(address)[0]
    in_tars = first.lower().endswith(TAR_SUFFIXES)
    types = datasets.Features() if in_tars else _column_types(first)
    column = column or (TAR_COLUMNS[kind] if in_tars else _default_column(kind, types, first))
    fields = Fields(**{"image_key" if in_tars else "image_column": image_column}, columns=(column,))
    shards = find_shards([address], fields, 1, _raise)

    def rows() -> Iterator[dict[str, Any]]:
        samples = ((shard, sample) for shard in shards for sample in shard)
        for shard, sample in islice(samples, limit):
            if sample.error is not None:
                raise OSError(f"{shard.source}: {sample.key}: {sample.error}")
            is_bytes = isinstance(sample.image, bytes)
            image = {"bytes": sample.image if is_bytes else None, "path": None if is_bytes else sample.image}
            value = sample.columns[column]
            if in_tars and kind == "text" and isinstance(value, str):
                value = value.splitlines()
            try:
                yield {"image": image, kind: CONVERSIONS[kind](value)}
            except ValueError as error:
                raise UserError(f"{shard.source}: {sample.key}: {column!r} {error}.") from None

    label = types.get(column)
    kinds = {
        "label": label if isinstance(label, datasets.ClassLabel) else datasets.Value("int64"),
        "text": [datasets.Value("string")],
    }
    try:
        return datasets.Dataset.from_generator(
            rows, features=datasets.Features({"image": datasets.Image(), kind: kinds[kind]}), cache_dir=cache_dir
        )
    except datasets.exceptions.DatasetGenerationError as error:
        raise (error.__cause__ or error) from None


def _column_types(address: str) -> "datasets.Features":
    """The types of the columns of a parquet file, with the names of classes where datasets wrote it."""
    with open_parquet(address) as file:
        return import_extra("datasets", "evaluate").Features.from_arrow_schema(file.schema_arrow)


def _default_column(kind: str, types: "datasets.Features", address: str) -> str:
    if kind == "text":
        return "text"
    found = [name for name, feature in types.items() if type(feature).__name__ == "ClassLabel"]
    if len(found) != 1:
        raise UserError(
            f"{address} has {len(found) or 'no'} columns of labels with names, and the columns "
            f"{', '.join(map(repr, types))}: name the right one by --label-column."
        )
    return found[0]


def _to_label(value: object) -> int:
    try:
        if isinstance(value, str | int) and not isinstance(value, bool):
            return int(value)
    except ValueError:
        pass
    raise ValueError(f"is {value!r:.80}, expected an integer, the label")


def _to_texts(value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        texts = [text for text in texts if text.strip()]
        if texts:
            return texts
    raise ValueError(f"is {value!r:.80}, expected texts")


CONVERSIONS = {"label": _to_label, "text": _to_texts}


def _raise(argument: str, error: Exception):
    raise error
