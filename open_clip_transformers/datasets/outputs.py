"""Outputs of a data set: a file or two for each shard, whole or not there, and a manifest of what made them."""

import json
import os
import posixpath
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from typing import IO, TYPE_CHECKING, cast

from ..configuration.errors import UserError
from .extras import file_system_of, import_extra
from .images import Unreadable
from .shards import MANIFEST, Sample, Shard, as_text, as_unicode


try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import numpy
    import pyarrow

VERSION_OF_FILE = ("size", "mtime", "ETag", "etag")  # as file systems call it
MANIFEST_VERSION, MANIFEST_PARTS = 1, {"settings", "notes", "shards"}


@dataclass
class Rows:
    """The results of a shard: its samples, and columns of values made of them.

    Args:
        samples: all samples, in their order.
        values: column -> the values of the samples that have no error, in their order: an array (samples, dim) or a
            list.
        types: column -> its type in pyarrow's words, such as `"string"`, `"string[]"` for lists of such, or
            `("float32", 512)` for vectors.
    """

    shard: Shard
    types: "Mapping[str, str | tuple[str, int]]"
    samples: list[Sample] = field(default_factory=list)
    values: "dict[str, numpy.ndarray | list]" = field(default_factory=dict)

    @property
    def errors(self) -> list[tuple[str, Unreadable]]:
        """Keys and errors of the samples that have one."""
        return [(sample.key, sample.error) for sample in self.samples if sample.error is not None]


class Output:
    """A place on any file system of fsspec that gets the outputs of shards.

    Args:
        address: a folder, or an address such as `s3://bucket/folder`.
        columns: names of the columns that are made of the samples.
    """

    def __init__(self, address: str, columns: Sequence[str]):
        self.address = address
        self.columns = tuple(columns)
        self.file_system, self.root = file_system_of(os.path.expanduser(address))
        self.is_local = "file" in self.file_system.protocol
        import_extra("pyarrow.parquet", "data")  # takes a second, and what is missing is better missed now

    def files(self, name: str, index: int) -> list[str]:
        """List the files of the shard of that name and place, the one that is written last at the end."""
        raise NotImplementedError

    def contents(self, rows: Rows, index: int) -> list[bytes]:
        """Make what the `files` of a shard hold."""
        raise NotImplementedError

    def prepare(self, settings: dict, shards: Sequence[Shard], notes: dict) -> tuple[dict, list[tuple[int, Shard]]]:
        """Write the manifest, or compare that of an earlier run and add the shards that are new.

        Args:
            settings: what the outputs follow from, beside the data.
            shards: all shards, in their order.
            notes: what else to keep, of the run that began.

        Returns:
            The notes of the run that began, and the shards with the places that the manifest gives them: those of new
            ones follow on those of all that were there before.

        Raises:
            UserError: this output is of other data, other settings, or of something else.
        """
        if self.file_system.isfile(self.root):
            raise UserError(f"{self.address} is a file: give a folder.")
        with self._claimed():
            return self._extend_manifest(settings, shards, notes)

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """Let no other process of this machine look at the manifest, or write it, in here."""
        if not self.is_local or fcntl is None:
            yield
            return
        os.makedirs(self.root, exist_ok=True)
        folder = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _extend_manifest(
        self, settings: dict, shards: Sequence[Shard], notes: dict
    ) -> tuple[dict, list[tuple[int, Shard]]]:
        found = self.read_manifest()
        manifest = found or {"version": MANIFEST_VERSION, "settings": settings, "notes": notes, "shards": {}}
        known_before = len(manifest["shards"])
        differences = [
            f"{name} was {manifest['settings'].get(name)!r} and is {settings.get(name)!r}"
            for name in {**manifest["settings"], **settings}
            if manifest["settings"].get(name) != settings.get(name)
        ]
        entries = manifest["shards"]
        known = {entry["data"]: name for name, entry in entries.items()}
        for shard in shards:
            data, before = shard.identity, len(entries)
            there = entries.setdefault(shard.name, {"index": before, "data": data, "source": shard.source})
            if there["data"] != data and not differences:
                sizes = [about.get("shard_size") for about in (manifest["notes"], notes)]
                differences += [f"shard_size was {sizes[0]} and is {sizes[1]}"] if sizes[0] != sizes[1] else []
                of = "other files" if shard.source == "files" else f"{there['data']} and is of {data}"
                differences.append(f"shard {shard.name!r} was of {of}")
            elif known.get(data, shard.name) != shard.name and not differences:
                differences.append(f"{data} was shard {known[data]!r} and is {shard.name!r}")
        if differences:
            raise UserError(
                f"{self.address} holds the outputs of another run: {'; '.join(differences)}. Give another output, or "
                "the same settings and data."
            )
        if found is None or len(entries) > known_before:
            text = json.dumps(manifest, indent=1, ensure_ascii=False)
            self.put(MANIFEST, text.encode("utf-8", "backslashreplace"))
        return manifest["notes"], [(entries[shard.name]["index"], shard) for shard in shards]

    def read_manifest(self) -> dict | None:
        """Read the manifest, if there is one.

        Raises:
            UserError: there are files without one, or it is damaged, or of another release.
        """
        path = posixpath.join(self.root, MANIFEST)
        if self.file_system.exists(path):
            try:
                manifest = json.loads(self.file_system.cat_file(path))
                version, is_whole = manifest["version"], manifest.keys() >= MANIFEST_PARTS
            except (ValueError, LookupError, TypeError):
                version, is_whole = None, False
            if version not in (None, MANIFEST_VERSION):
                raise UserError(f"{path} is not of this release: its version is {version}.")
            if not is_whole:
                raise UserError(f"{path} is damaged, or no file of these commands: give a new or an empty folder.")
            return manifest
        if self.file_system.exists(self.root) and self._names() and not self.file_system.exists(path):
            raise UserError(f"{self.address} holds other files and no {MANIFEST}: give a new or an empty folder.")
        return None

    def _names(self) -> list[str]:
        names = (posixpath.relpath(path, self.root) for path in self.file_system.find(self.root))
        return [name for name in names if not _is_temporary(name)]

    def unfinished(self, places: Iterable[tuple[int, Shard]]) -> list[tuple[int, Shard]]:
        """List the shards, with their places, whose outputs are not there."""
        self.sweep()
        self.file_system.invalidate_cache()  # others may have written since it was read
        there = set(self._names())
        return [(index, shard) for index, shard in places if self.files(shard.name, index)[-1] not in there]

    def has(self, name: str, index: int) -> bool:
        """Whether the output of a shard is there."""
        return self.exists(self.files(name, index)[-1])

    def versions(self) -> dict[str, list[str]]:
        """List the files that are there, each with what differs after it is written again."""
        found = self.file_system.find(self.root, detail=True)
        return {
            posixpath.relpath(path, self.root): [f"{name}={about[name]}" for name in VERSION_OF_FILE if name in about]
            for path, about in found.items()
        }

    def exists(self, file: str) -> bool:
        return self.file_system.exists(posixpath.join(self.root, file))

    def get(self, file: str, path: str):
        """Copy a file of the output to a path on this machine."""
        self.file_system.get_file(posixpath.join(self.root, file), path)

    def count(self, name: str, index: int) -> int:
        """Count the samples in the output of a shard."""
        tables = [file for file in self.files(name, index) if file.endswith(".parquet")]
        return sum(self._read_table(table, []).num_rows for table in tables)

    def found(self, name: str, index: int) -> tuple[int, list[tuple[str, Unreadable]]]:
        """Read the number of samples, and keys and errors of those that have one, in the output of a shard."""
        num_rows, errors = 0, []
        for file in self.files(name, index):
            if file.endswith(".parquet"):
                with self._opened(file) as opened:
                    table = import_extra("pyarrow.parquet", "data").ParquetFile(opened)
                    num_rows += table.metadata.num_rows
                    # Hardly any has errors, which its end says: to read them of 10^5 shards takes minutes.
                    groups = [group for group in range(table.num_row_groups) if _may_have_errors(table, group)]
                    rows = table.read_row_groups(groups, ["key", "error"]).to_pylist()
                texts = [(row["key"], row["error"]) for row in rows if row["error"]]
                errors += [(key, Unreadable(*error.split(": ", 1))) for key, error in texts]
        return num_rows, errors

    def embeddings(self, name: str, index: int) -> "tuple[list[str], numpy.ndarray]":
        """Read keys and vectors (keys, dim) of the samples in the output of a shard that have no error."""
        raise NotImplementedError

    @contextmanager
    def _opened(self, file: str) -> Iterator[IO[bytes]]:
        """Open a file of the output; what is wrong with its content is a `UserError`."""
        path = posixpath.join(self.root, file)
        try:
            with self.file_system.open(path) as opened:
                yield opened
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}. Remove it, and start again to make it anew.") from error

    def _read_table(self, file: str, columns: list[str]) -> "pyarrow.Table":
        with self._opened(file) as opened:
            return import_extra("pyarrow.parquet", "data").ParquetFile(opened).read(columns)  # those that there are

    def write(self, rows: Rows, index: int):
        """Write the files of a shard. The last one makes it finished."""
        for name, content in zip(self.files(rows.shard.name, index), self.contents(rows, index)):
            self.put(name, content)

    def put(self, name: str, content: bytes):
        """Write a file that is there once it is whole.

        Object stores take whole objects only, and keep an earlier one, which manifests have, where that fails; what is
        left elsewhere is removed. On this machine the file gets its name at the end; where another process
        wrote the same meanwhile, it may have swept this one's.
        """
        path = posixpath.join(self.root, name)
        if not self.is_local:
            is_new = name != MANIFEST or not self.file_system.exists(path)
            try:
                self.file_system.pipe_file(path, content)
            except BaseException:
                with suppress(Exception):  # which says less than the first
                    if is_new:
                        self.file_system.rm_file(path)
                raise
            return
        folder, base = os.path.split(path)
        os.makedirs(folder, exist_ok=True)
        temporary = os.path.join(folder, f".{base}.{uuid.uuid4().hex}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except FileNotFoundError:
            if not os.path.exists(path):
                raise
        except OSError as error:  # which writing gives no name
            raise OSError(error.errno, error.strerror or str(error), path) from error
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)

    def sweep(self):
        """Remove what killed processes left of files that are whole meanwhile."""
        if not self.is_local:
            return
        with self._claimed():  # so that no manifest is being written
            for folder, _, files in os.walk(self.root):
                for name in filter(_is_temporary, files):
                    if os.path.exists(os.path.join(folder, name[1:].rsplit(".", 2)[0])):
                        with suppress(FileNotFoundError):
                            os.unlink(os.path.join(folder, name))

    def table(self, rows: Rows, keep: Callable[[Sample], bool], columns: Iterable[str]) -> "pyarrow.Table":
        """Make a table of those samples with `key`, `shard`, the given columns, `error` and what is passed through."""
        pa = import_extra("pyarrow", "data")
        kept = [keep(sample) for sample in rows.samples]
        samples = [sample for sample, wanted in zip(rows.samples, kept) if wanted]
        usable = [sample.error is None for sample in rows.samples]
        arrays = {
            "key": pa.array([sample.key for sample in samples], pa.string()),
            "shard": pa.array([as_unicode(rows.shard.name)] * len(samples), pa.string()),
        }
        for name in columns:
            column = _spread(rows.values.get(name, []), usable, rows.types[name])
            arrays[name] = column.filter(pa.array(kept, pa.bool_()))
        errors = [sample.error and as_unicode(str(sample.error)) for sample in samples]
        arrays["error"] = pa.array(errors, pa.string())
        for name, kind in rows.shard.column_types().items():
            values = [sample.columns.get(name) for sample in samples]
            arrays[name] = pa.array(map(as_text, values) if kind == pa.string() else values, kind)
        return pa.table(arrays)


def _may_have_errors(table: "pyarrow.parquet.ParquetFile", number: int) -> bool:
    """Whether the column `error` of a row group is there, and not empty for all that its statistics tell."""
    group = table.metadata.row_group(number)
    columns = [group.column(place) for place in range(group.num_columns)]
    found = [column.statistics for column in columns if column.path_in_schema == "error"]
    return any(statistics is None or statistics.null_count != group.num_rows for statistics in found)


def _is_temporary(name: str) -> bool:
    base = os.path.basename(name)
    return base.startswith(".") and base.endswith(".tmp")


def _spread(values: "numpy.ndarray | list", usable: list[bool], kind: "str | tuple[str, int]") -> "pyarrow.Array":
    """Make a column of the values of usable samples, with nulls between them where the others are."""
    import numpy

    pa = import_extra("pyarrow", "data")
    if isinstance(kind, str):
        remaining = iter(values)
        element = kind.removesuffix("[]")
        arrow = pa.type_for_alias(element)
        return pa.array(
            [next(remaining) if use else None for use in usable], arrow if element == kind else pa.list_(arrow)
        )
    dtype, dim = kind
    whole = numpy.zeros((len(usable), dim), dtype)
    if len(values):
        whole[usable] = values
    return pa.FixedSizeListArray.from_arrays(
        pa.array(whole.reshape(-1)), dim, mask=pa.array(numpy.logical_not(usable), pa.bool_())
    )


def _parquet_bytes(table: "pyarrow.Table") -> bytes:
    file = BytesIO()
    import_extra("pyarrow.parquet", "data").write_table(table, file)
    return file.getvalue()


class ParquetOutput(Output):
    """A parquet file for each shard, with a row for each of its samples."""

    def files(self, name: str, index: int) -> list[str]:
        return [f"{name}.parquet"]

    def contents(self, rows: Rows, index: int) -> list[bytes]:
        return [_parquet_bytes(self.table(rows, lambda sample: True, self.columns))]

    def embeddings(self, name: str, index: int) -> "tuple[list[str], numpy.ndarray]":
        table = self._read_table(self.files(name, index)[0], ["key", "embedding"]).drop_null()
        vectors = table["embedding"].combine_chunks()
        return table["key"].to_pylist(), vectors.flatten().to_numpy().reshape(len(table), vectors.type.list_size)


class ClipRetrievalOutput(Output):
    """The layout of clip-retrieval: `img_emb/img_emb_0.npy` beside `metadata/metadata_0.parquet`, and `text_emb`.

    Its readers expect a vector for each row of the metadata: samples with an error are in `errors/errors_0.parquet`.
    """

    ARRAYS = {"text_embedding": "text_emb", "embedding": "img_emb"}

    def files(self, name: str, index: int) -> list[str]:
        arrays = [folder for column, folder in self.ARRAYS.items() if column in self.columns]
        return [
            f"errors/errors_{index}.parquet",
            f"metadata/metadata_{index}.parquet",
            *(f"{folder}/{folder}_{index}.npy" for folder in arrays),
        ]

    def contents(self, rows: Rows, index: int) -> list[bytes]:
        import numpy

        columns = [name for name in self.columns if name not in self.ARRAYS]
        metadata = self.table(rows, lambda sample: sample.error is None, columns).drop_columns("error")
        contents = [
            _parquet_bytes(self.table(rows, lambda sample: sample.error is not None, columns)),
            _parquet_bytes(metadata.append_column("image_path", metadata["key"])),  # its own name of it
        ]
        for column in filter(self.columns.__contains__, self.ARRAYS):
            file = BytesIO()
            dtype, dim = cast(tuple[str, int], rows.types[column])
            values = rows.values.get(column, [])
            numpy.save(file, numpy.asarray(values, dtype).reshape(-1, dim), allow_pickle=False)
            contents.append(file.getvalue())
        return contents

    def embeddings(self, name: str, index: int) -> "tuple[list[str], numpy.ndarray]":
        import numpy

        _, metadata, *_, images = self.files(name, index)
        with self._opened(images) as opened:
            vectors = numpy.load(BytesIO(opened.read()))
        return self._read_table(metadata, ["key"])["key"].to_pylist(), vectors


FORMATS = {"parquet": ParquetOutput, "clip-retrieval": ClipRetrievalOutput}
