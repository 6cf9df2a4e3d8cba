"""Shards of data sets: of folders, WebDataset tars, parquet files, Hugging Face data sets and lists of images.

A shard is the unit of work. It has a name, from which that of its output follows, and gives its samples in an order
that is always the same.
"""

import glob
import gzip
import hashlib
import json
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import count, groupby, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar

from ..configuration.errors import MissingPackageError, UserError
from .extras import file_system_of, import_extra, open_remote
from .images import Unreadable, is_remote, is_url


if TYPE_CHECKING:
    import pyarrow

# What folders and patterns are searched for. A file that is named itself may end in anything.
IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"),
    *(".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
# Where images and keys are unless told: as img2dataset, webdataset and datasets call them.
IMAGE_KEYS = ("jpg", "jpeg", "png", "webp", *(suffix[1:] for suffix in IMAGE_SUFFIXES))
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "image_path", "path", "file_name", "url")
KEY_COLUMNS = ("key", "__key__")

HUB_DATASETS = "hf://datasets/"
DEFAULT_SPLIT = "train"
SAVED_DATASET = ("state.json", "dataset_dict.json")  # what `save_to_disk` of datasets leaves
ROWS_READ_AT_ONCE = 32
CHECKED_AT_ONCE = 1 << 20  # bytes
MANIFEST = "_manifest.json"  # of an output; readers of folders of parquet files pass over names that begin so


@dataclass
class Sample:
    """One input.

    Args:
        key: names it within its shard.
        image: what [`read_image`] takes, or `None` where `error` says why there is none.
        text: its text, where texts were asked for.
        columns: further values of it, by the names they were asked for with.
        error: why it cannot be used.
    """

    key: str
    image: str | bytes | None
    text: str | None = None
    columns: dict[str, object] = field(default_factory=dict)
    error: Unreadable | None = None

    def __post_init__(self):
        self.key = as_unicode(self.key)


def as_unicode(text: str) -> str:
    """Write as escapes what no file can hold: of names that are no UTF-8, and half characters in JSON."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class Fields:
    """Where the parts of a sample are; `None` is the default of each kind of data set.

    Args:
        image_key: the file extension of images in tars, or several, as in `"jpg;png"`; by default [`IMAGE_KEYS`]. The
            first there is.
        image_column: the column of images; by default [`IMAGE_COLUMNS`], the first there is.
        text_column: the column, extension in tars, or entry of their `.json` with a text; by default no text is read.
        key_column: the column of keys; by default [`KEY_COLUMNS`], else rows are counted.
        columns: what else to read of each sample, like `text_column`.
        split: the split of a Hugging Face data set.
        subset: the configuration of one on the Hub, where it has several.
    """

    image_key: str | None = None
    image_column: str | None = None
    text_column: str | None = None
    key_column: str | None = None
    columns: tuple[str, ...] = ()
    split: str | None = None
    subset: str | None = None


@dataclass(frozen=True)
class Shard:
    """A part of a data set; iterating over it reads its samples.

    Args:
        name: names the output.
        source: the address that it is read from.
    """

    # The fields of `Fields` that say something about shards of a kind.
    USES: ClassVar[frozenset[str]] = frozenset()

    name: str
    source: str

    def __iter__(self) -> Iterator[Sample]:
        raise NotImplementedError

    @property
    def identity(self) -> str:
        """Tell the data of this shard from other data."""
        return self.source

    def column_types(self) -> "dict[str, pyarrow.DataType]":
        """Types of the columns that are passed through."""
        return {}


@dataclass(frozen=True)
class FileShard(Shard):
    """Images in files of their own, and on the web."""

    names: tuple[str, ...]

    def __iter__(self) -> Iterator[Sample]:
        return (Sample(name, name) for name in self.names)

    @property
    def identity(self) -> str:
        return _digest("\n".join(self.names))


@dataclass(frozen=True)
class ListShard(Shard):
    """Lines of a text file that name images: those that hold anything, of the `count` from byte `start` on."""

    start: int
    count: int

    def __iter__(self) -> Iterator[Sample]:
        return (Sample(name, name) for name in self._lines())

    def _lines(self) -> Iterator[str]:
        with open_binary(self.source) as file:
            file.seek(self.start)
            for line in islice(file, self.count):
                if name := line.decode("utf-8", "surrogateescape").removeprefix("\ufeff").strip():
                    yield name

    @property
    def identity(self) -> str:
        return _digest("\n".join(self._lines()))


@dataclass(frozen=True)
class TarShard(Shard):
    """A tar in WebDataset's layout: files of one name and several extensions, one after the other, are a sample."""

    USES = frozenset({"image_key", "text_column", "columns"})

    fields: Fields

    def __iter__(self) -> Iterator[Sample]:
        members = _tar_members(self.source)
        key, files = None, {}
        while True:
            try:
                name, extension, data = next(members)
            except StopIteration:
                break
            except tarfile.TarError as error:
                if key is not None:
                    yield self._whole_sample(key, files)
                yield Sample(f"{self.name}@{error.args[1]}", None, error=Unreadable("BrokenTar", error.args[0]))
                return
            if name != key or extension in files:
                if key is not None:
                    yield self._whole_sample(key, files)
                key, files = name, {}
            files[extension] = data
        if key is not None:
            yield self._whole_sample(key, files)

    def _whole_sample(self, key: str, files: dict[str, bytes]) -> Sample:
        key_of_image = self.fields.image_key
        wanted = tuple(map(_extension, key_of_image.split(";"))) if key_of_image else IMAGE_KEYS
        image = next((files[extension] for extension in wanted if extension in files), None)
        text = as_text(self._value(files, self.fields.text_column)) if self.fields.text_column else None
        sample = Sample(key, image, text, {name: self._value(files, name) for name in self.fields.columns})
        if image is None:
            looked = f".{' or .'.join(wanted)}" if key_of_image else "image"
            sample.error = Unreadable("MissingImage", f"no {looked} file, only .{', .'.join(files)}")
        elif self.fields.text_column and text is None:
            sample.error = Unreadable("MissingText", f"no {self.fields.text_column!r}, only .{', .'.join(files)}")
        return sample

    def _value(self, files: dict[str, bytes], name: str) -> object:
        """Return a value of a sample: the text of the file of that extension, or that entry of its `.json`."""
        if (extension := _extension(name)) in files:
            return files[extension].decode("utf-8", "replace")
        try:
            return json.loads(files["json"])[name]
        except (KeyError, ValueError, TypeError):
            return None

    @property
    def identity(self) -> str:
        return _with_size(self.source)

    def column_types(self) -> "dict[str, pyarrow.DataType]":
        return dict.fromkeys(self.fields.columns, import_extra("pyarrow", "data").string())


def _extension(name: str) -> str:
    """Write a file extension as [`_tar_members`] does."""
    return name.strip().removeprefix(".").lower()


class _CheckedTarInfo(tarfile.TarInfo):
    """Headers that are checked: `tarfile` takes a damaged one for the end of the archive, and so is silent."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


class _CheckedGzip(gzip.GzipFile):
    """A gzip file whose checksum is compared, which `tarfile` does not do; gives all that is before a damage."""

    def read(self, size: int | None = -1) -> bytes:
        return self.read1(-1 if size is None else size)


def _tar_members(address: str) -> Iterator[tuple[str, str, bytes]]:
    """Read (name without extensions, extensions, bytes) of the files in a tar.

    Raises:
        tarfile.ReadError: it is damaged. `args` are a message and the offset of the first file that is lost.
    """
    base_plus_ext = import_extra("webdataset.tariterators", "data").base_plus_ext
    offset = 0
    with open_binary(address) as file:
        content = _CheckedGzip(fileobj=file) if address.lower().endswith("gz") else file
        try:
            # As a stream, which any file system and compression allows.
            with tarfile.open(fileobj=content, mode="r|*", tarinfo=_CheckedTarInfo) as archive:
                for member in archive:
                    archive.members = []  # type: ignore[attr-defined]  # it keeps the headers of all files otherwise
                    name, extension = base_plus_ext(member.name)
                    if name is not None and member.isfile():
                        data = archive.extractfile(member).read()
                        if len(data) < member.size:
                            raise tarfile.ReadError("unexpected end of data")
                        yield name, extension.lower(), data
                    offset = archive.offset
            while content is not file and content.read(CHECKED_AT_ONCE):
                pass
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            reason = f"{error or 'the file ends too early'}"
            message = f"the tar is damaged from byte {offset} on, and what follows is left out: {reason}"
            raise tarfile.ReadError(message, offset) from error


@dataclass(frozen=True)
class ParquetShard(Shard):
    """Row groups of a parquet file, with images as bytes, as paths from the file on, or as datasets stores them."""

    USES = frozenset({"image_column", "text_column", "key_column", "columns"})

    fields: Fields
    first: int
    last: int
    rows: int

    def __iter__(self) -> Iterator[Sample]:
        with open_parquet(self.source) as file:
            fields = complete_fields(self.fields, file.schema_arrow.names, self.source)
            groups = range(self.first, self.last)
            row = sum(file.metadata.row_group(index).num_rows for index in range(self.first))
            for batch in file.iter_batches(ROWS_READ_AT_ONCE, list(groups), columns=_columns_of(fields)):
                for values in batch.to_pylist():
                    yield sample_of_row(values, fields, f"{self.name.split('/')[-1]}/{row}", self.source)
                    row += 1

    @property
    def identity(self) -> str:
        return f"{_with_size(self.source)}#{self.first}-{self.last}:{self.rows}"

    def column_types(self) -> "dict[str, pyarrow.DataType]":
        with open_parquet(self.source) as file:
            return {name: file.schema_arrow.field(name).type for name in self.fields.columns}


def open_parquet(address: str) -> "pyarrow.parquet.ParquetFile":
    parquet = import_extra("pyarrow.parquet", "data")
    source = open_remote(address) if is_remote(address) else address
    try:
        # Column chunks are read in parts: a row group may hold more images than there is memory.
        return parquet.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20)
    except (import_extra("pyarrow", "data").ArrowInvalid, UnicodeEncodeError) as error:
        raise OSError(f"{address} cannot be read as parquet: {error}") from error


@dataclass(frozen=True)
class DatasetShard(Shard):
    """A part of a Hugging Face data set.

    Args:
        split: its split; by default train, or the only one that there is.
        revision: the commit of a data set of the Hub; `None` for one that was saved on this machine.
        index: the part of `count` that this shard is.
        count: parts of the data set.
    """

    USES = frozenset({"image_column", "text_column", "key_column", "columns", "split", "subset"})

    fields: Fields
    split: str | None
    revision: str | None
    index: int
    count: int

    def __iter__(self) -> Iterator[Sample]:
        dataset = self._open()
        fields = complete_fields(self.fields, list(dataset.features), self.source)
        part = dataset.shard(self.count, self.index, contiguous=True).select_columns(_columns_of(fields))
        image = import_extra("datasets", "data").Image
        if isinstance(part.features[fields.image_column], image):
            part = part.cast_column(fields.image_column, image(decode=False))
        for row, values in enumerate(part):
            yield sample_of_row(values, fields, f"{self.name}/{row}", self.source)

    @property
    def identity(self) -> str:
        version = self.revision or self._open()._fingerprint
        subset = f"{self.fields.subset}/" if self.fields.subset else ""
        return f"{self.source}@{version}:{subset}{self.split or DEFAULT_SPLIT}#{self.index}/{self.count}"

    def _open(self):
        return _open_dataset(self.source, self.fields.subset, self.split, self.revision)

    def column_types(self) -> "dict[str, pyarrow.DataType]":
        schema = self._open().features.arrow_schema
        return {name: schema.field(name).type for name in self.fields.columns}


@lru_cache(maxsize=1)
def _open_dataset(address: str, subset: str | None, split: str | None, revision: str | None):
    datasets = import_extra("datasets", "data")
    if address.startswith(HUB_DATASETS):
        name = address.removeprefix(HUB_DATASETS)
        try:
            dataset = datasets.load_dataset(
                name, subset, revision=revision, split=split or DEFAULT_SPLIT, streaming=True
            )
        except ValueError as error:  # it lists splits and subsets that there are
            raise UserError(f"{address} cannot be opened, see --split and --subset: {error}") from error
        return dataset if dataset.features else dataset._resolve_features()
    if subset:
        raise UserError(f"{address} was saved on this machine and has no subsets: leave out --subset {subset}.")
    dataset = datasets.load_from_disk(address)
    if not isinstance(dataset, datasets.DatasetDict):
        if split and split != str(dataset.split):
            raise UserError(f"{address} is one data set, and not of split {split!r}: leave out --split {split}.")
        return dataset
    name = split or DEFAULT_SPLIT
    if name not in dataset:
        raise UserError(f"{address} has no split {name!r}: it has {', '.join(map(repr, dataset))}.")
    return dataset[name]


def complete_fields(fields: Fields, names: Sequence[str], source: str) -> Fields:
    """Fill in the image and the key column of a table.

    Raises:
        UserError: the table lacks a column.
    """
    wanted = (fields.image_column, fields.text_column, fields.key_column, *fields.columns)
    image = fields.image_column or next((name for name in IMAGE_COLUMNS if name in names), None)
    missing = [name for name in wanted if name is not None and name not in names]
    if several := [name for name in (image, *wanted) if name is not None and list(names).count(name) > 1]:
        raise UserError(f"{source} has several columns {several[0]!r}, of which one cannot be told from the others.")
    if missing or image is None:
        lacks = f"column {missing[0]!r}" if missing else "column of images that is known"
        raise UserError(
            f"{source} has no {lacks}: it has {', '.join(map(repr, names))}. --image-column, --text-column, "
            "--key-column and --columns name columns."
        )
    key = fields.key_column or next((name for name in KEY_COLUMNS if name in names), None)
    return Fields(None, image, fields.text_column, key, fields.columns)


def _columns_of(fields: Fields) -> list[str]:
    names = (fields.image_column, fields.text_column, fields.key_column, *fields.columns)
    return list(dict.fromkeys(name for name in names if name is not None))


def sample_of_row(row: dict, fields: Fields, default_key: str, source: str) -> Sample:
    """Make a sample of a row of a table whose image is bytes, a path or URL, or `{"bytes": ..., "path": ...}`."""
    key = row[fields.key_column] if fields.key_column else None
    image = row[fields.image_column]
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str) and image and not is_remote(image) and not os.path.isabs(image):
        folder = source.rpartition("/")[0] if is_remote(source) else os.path.dirname(source)
        image = os.path.join(folder, image)
    text = row[fields.text_column] if fields.text_column else None
    sample = Sample(default_key if key is None else str(key), None, text, {name: row[name] for name in fields.columns})
    if not isinstance(image, str | bytes) or not image:
        got = "nothing" if not image else f"a {type(image).__name__}"
        sample.error = Unreadable("MissingImage", f"{got} in column {fields.image_column!r}")
    elif fields.text_column and not isinstance(text, str):
        sample.error = Unreadable("MissingText", f"no text in column {fields.text_column!r}")
    else:
        sample.image = image
    return sample


def as_text(value: object) -> str | None:
    """Return an entry of a `.json` as text: what is no text as JSON."""
    if value is None:
        return None
    return as_unicode(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def open_binary(address: str) -> IO[bytes]:
    return open_remote(address) if is_remote(address) else open(address, "rb")


def _with_size(address: str) -> str:
    """An address and, of a file on this machine, its size: others would have to be asked for theirs one by one."""
    return address if is_remote(address) else f"{address}:{os.path.getsize(address)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


# Finding shards


def find_shards(
    arguments: Iterable[str], fields: Fields, shard_size: int, report: Callable[[str, Exception], None]
) -> list[Shard]:
    """Find the shards of all data that `arguments` stand for, in their order.

    Args:
        arguments: each an image; a folder, searched with its subfolders in alphabetical order for images or, where it
            holds such, for tars and parquet files; a `.tar`, `.parquet` or `.txt` (a path or URL of an image on each
            line); a data set that datasets saved, or `hf://datasets/org/name[@revision]`; a pattern such as
            `"scans/**/*.png"` or `"tars/{00000..00009}.tar"`. All of them are paths, http(s) URLs or addresses of
            fsspec.
        fields: where the parts of a sample are.
        shard_size: images in a shard, where the data is not in shards already.
        report: gets the arguments that stand for nothing, and why.

    Raises:
        UserError: a field says nothing about any of this data, a table lacks a column, or two shards have one name.
    """
    shards: list[Shard] = []
    names = (f"images-{number:05d}" for number in count())
    for kind, files in groupby(_files_of(arguments, report), _kind):
        if kind is None:
            shards += [FileShard(next(names), "files", part) for part in _parts(files, shard_size)]
            continue
        for file in files:
            try:
                shards += kind(file, fields, shard_size)
            except OSError as error:
                report(file, error)
    used = {name for shard in shards for name in shard.USES}
    for name, value in vars(fields).items():
        if value and shards and name not in used:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} {value} says nothing about this data, which has no such part: leave it out.")
    return _with_distinct_names(shards)


def _files_of(arguments: Iterable[str], report: Callable[[str, Exception], None]) -> Iterator[str]:
    for argument in arguments:
        try:
            yield from find_files(argument)
        except OSError as error:
            report(argument, error)


def _parts(names: Iterator[str], size: int) -> Iterator[tuple[str, ...]]:
    while part := tuple(islice(names, size)):
        yield part


def find_files(argument: str) -> list[str]:
    """List the files that an argument stands for: images, tars, parquet files, lists and data sets."""
    path = argument if is_remote(argument) else os.path.expanduser(argument)
    # A file may have a name that reads like a pattern.
    if not is_remote(path) and os.path.exists(path):
        if os.path.isdir(path):
            return _in_folder(path)
        if os.path.isfile(path):
            return [path]
        raise OSError("neither a file nor a folder, but a pipe or a device")
    if is_url(path) and not path.lower().endswith(tuple(KINDS)):
        return [path]
    if "{" in path and "}" in path:
        try:
            addresses = import_extra("webdataset.shardlists", "data").expand_urls(path)
        except ValueError as error:
            raise OSError(f"no pattern that can be expanded: {error}") from error
        if addresses != [path]:
            return _find_each(addresses)
    if is_remote(path):
        return _find_remote(path)
    if not glob.has_magic(path):
        raise OSError("no such file or folder")
    matches = _matches(path)
    if found := [match for match in matches if os.path.isfile(match) and _is_data(match)]:
        return found
    raise OSError(f"{len(matches)} matches, none of them an image file" if matches else "nothing matches this pattern")


def _find_each(addresses: list[str]) -> list[str]:
    """List the files of what a pattern with braces was expanded to, all of which has to be there."""
    find = _listing(addresses) if all(map(_is_far_file, addresses)) else find_files
    found, missing = [], []
    for address in addresses:
        try:
            found += find(address)
        except OSError as error:
            missing.append(f"{address}: {error}")
    if missing:
        raise OSError(
            f"{len(missing)} of the {len(addresses)} that it stands for cannot be used, such as {missing[0]}"
        )
    return found


def _is_far_file(address: str) -> bool:
    return is_remote(address) and not is_url(address) and not glob.has_magic(address) and _is_data(address)


def _listing(addresses: list[str]) -> Callable[[str], list[str]]:
    """Do as `find_files` does of these files, by one list of each folder: to ask for each of thousands takes hours."""
    paths = {address: file_system_of(address)[1] for address in addresses}
    file_system, _ = file_system_of(addresses[0])
    folders = {path.rpartition("/")[0] for path in paths.values()}
    there = {file for folder in folders for file in file_system.find(folder, maxdepth=1)}

    def find(address: str) -> list[str]:
        if paths[address] in there:
            return [address]
        raise OSError("no such file")

    return find


def _matches(pattern: str) -> list[str]:
    """List what a pattern stands for on this machine, in linked folders too."""
    matches = sorted(glob.glob(pattern, recursive=True))
    if "**" not in pattern:
        return matches
    depth = len(Path(pattern[: pattern.index("**")]).parts)
    by_folder = groupby(matches, os.path.dirname)
    return [match for folder, found in by_folder if not _goes_round(folder, depth) for match in found]


def _goes_round(folder: str, depth: int) -> bool:
    """Whether the path of a folder, after its first `depth` parts, comes back to one of its folders by a link."""
    parts = Path(folder).parts
    folders = [os.path.realpath(Path(*parts[:end])) for end in range(depth, len(parts) + 1)]
    return len(set(folders)) < len(folders)


def _in_folder(folder: str) -> list[str]:
    if any(os.path.exists(os.path.join(folder, name)) for name in SAVED_DATASET):
        return [folder]
    if found := _data_or_images(list(_files_below(folder))):
        return found
    raise OSError("no images in this folder")


def _find_remote(address: str) -> list[str]:
    if _is_hub_dataset(address):
        return [address]
    if is_url(address):
        return [address]
    file_system, path = file_system_of(address)
    is_here = "file" in file_system.protocol
    if glob.has_magic(address):
        files = _matches(path) if is_here else sorted(file_system.glob(path))
    elif file_system.isdir(path):
        files = list(_files_below(path)) if is_here else sorted(file_system.find(path))
    elif file_system.exists(path):
        return [address]
    else:
        raise OSError("no such file or folder")
    if found := _data_or_images(files):
        return [file_system.unstrip_protocol(file) for file in found]
    raise OSError("no images in this place")


def _files_below(folder: str) -> Iterator[str]:
    """List files in `folder` and below, in linked folders too, without hidden ones and outputs of these commands."""
    for parent, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        # What a link to a folder above leads to is listed already.
        if MANIFEST in files or _goes_round(parent, len(Path(folder).parts)):
            folders[:] = []
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (os.path.join(parent, name) for name in sorted(files) if not name.startswith("."))
        # A link to nothing is an image that cannot be read.
        yield from (path for path in paths if os.path.isfile(path) or not os.path.exists(path))


def _raise(error: OSError):
    raise error


def _data_or_images(files: list[str]) -> list[str]:
    """Pick the images and tars of a folder, else its parquet files.

    img2dataset leaves a parquet file with the texts beside each tar, and imagefolder has one beside the images.
    """
    found = [file for file in files if file.lower().endswith((*IMAGE_SUFFIXES, *TAR_SUFFIXES))]
    return found or [file for file in files if file.lower().endswith(".parquet")]


def _is_data(path: str) -> bool:
    # A text file is taken for a list only where it is named itself.
    return path.lower().endswith((*IMAGE_SUFFIXES, *TAR_SUFFIXES, ".parquet"))


def _is_hub_dataset(address: str) -> bool:
    parts = address.removeprefix(HUB_DATASETS).split("/")
    return address.startswith(HUB_DATASETS) and len(parts) <= 2 and not glob.has_magic(address)


def _kind(path: str) -> "Callable[[str, Fields, int], list[Shard]] | None":
    """Return what makes shards of a file, or `None` of an image."""
    if _is_hub_dataset(path) or os.path.isdir(path):
        return _dataset_shards
    return next((kind for suffix, kind in KINDS.items() if path.lower().endswith(suffix)), None)


def _tar_shards(path: str, fields: Fields, shard_size: int) -> list[Shard]:
    name = os.path.basename(path)
    suffix = next(suffix for suffix in TAR_SUFFIXES if name.lower().endswith(suffix))
    return [TarShard(name[: -len(suffix)], _absolute(path), fields)]


def _parquet_shards(path: str, fields: Fields, shard_size: int) -> list[Shard]:
    with open_parquet(path) as file:
        complete_fields(fields, file.schema_arrow.names, path)
        rows = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
    parts, first, size = [], 0, 0
    for index, num_rows in enumerate(rows):
        size += num_rows
        if size >= shard_size or index == len(rows) - 1:
            parts.append((first, index + 1, size))
            first, size = index + 1, 0
    stem = os.path.basename(path)[: -len(".parquet")]
    names = [stem] if len(parts) < 2 else [f"{stem}-{index:05d}" for index in range(len(parts))]
    return [ParquetShard(name, _absolute(path), fields, *part) for name, part in zip(names, parts or [(0, 0, 0)])]


def _list_shards(path: str, fields: Fields, shard_size: int) -> list[Shard]:
    starts, position = [], 0
    with open_binary(path) as file:
        for number, line in enumerate(file):
            if number % shard_size == 0:
                starts.append(position)
            position += len(line)
    if not starts:
        raise OSError("no names of images in this list")
    stem = os.path.basename(path)[: -len(".txt")]
    return [ListShard(f"{stem}-{index:05d}", _absolute(path), start, shard_size) for index, start in enumerate(starts)]


def _dataset_shards(path: str, fields: Fields, shard_size: int) -> list[Shard]:
    revision = None
    try:
        if path.startswith(HUB_DATASETS):
            name, _, wanted = path.removeprefix(HUB_DATASETS).partition("@")
            from huggingface_hub import HfApi

            path, revision = f"{HUB_DATASETS}{name}", HfApi().dataset_info(name, revision=wanted or None).sha
        else:
            path = _absolute(path)
        dataset = _open_dataset(path, fields.subset, fields.split, revision)
    except (UserError, MissingPackageError):
        raise
    except Exception as error:  # the library and the network raise nearly everything
        raise OSError(f"the data set cannot be opened: {type(error).__name__}: {error}") from error
    complete_fields(fields, list(dataset.features), path)
    parts = dataset.num_shards if revision else -(-len(dataset) // shard_size)
    name = "-".join(filter(None, [path.rstrip("/").rpartition("/")[2], fields.subset]))
    split = fields.split or DEFAULT_SPLIT
    return [
        DatasetShard(f"{name}-{split}-{index:05d}-of-{parts:05d}", path, fields, fields.split, revision, index, parts)
        for index in range(parts)
    ]


TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
KINDS = {**dict.fromkeys(TAR_SUFFIXES, _tar_shards), ".parquet": _parquet_shards, ".txt": _list_shards}


def _absolute(path: str) -> str:
    return path if is_remote(path) else os.path.abspath(path)


def _with_distinct_names(shards: list[Shard]) -> list[Shard]:
    """Give shards of one name the names of their folders too: `a/00000.tar` and `b/00000.tar`, `a-00000`, `b-00000`.

    Raises:
        UserError: two still have one name, under which one of their outputs would be lost.
    """
    counts = Counter(shard.name for shard in shards)
    clashing = [shard for shard in shards if counts[shard.name] > 1]
    folders = [shard.source.split("/")[:-1] for shard in clashing]
    common = next((depth for depth, names in enumerate(zip(*folders)) if len(set(names)) > 1), 0)
    named = [
        replace(shard, name="-".join([*shard.source.split("/")[common:-1], shard.name]))
        if counts[shard.name] > 1
        else shard
        for shard in shards
    ]
    name, number = Counter(shard.name for shard in named).most_common(1)[0] if named else ("", 0)
    if number > 1:
        sources = [shard.source for shard in named if shard.name == name]
        raise UserError(
            f"{number} shards are called {name!r}, and so would be their outputs: {', '.join(sources[:2])}. Name each "
            "once, or rename the files."
        )
    return named
