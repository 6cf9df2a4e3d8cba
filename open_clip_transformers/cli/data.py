"""Options of the commands that work on whole data sets, and what these commands share."""

import functools
import hashlib
import inspect
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from ..configuration.errors import UserError
from ..datasets.images import is_remote
from ..datasets.outputs import FORMATS, Output
from ..datasets.progress import Report
from ..datasets.run import Place, Ranks, Task, run
from ..datasets.shards import Fields, Shard, find_shards
from .images import read_arguments, useful_workers
from .messages import INPUT_FAILED, Failures, UsageError, warn
from .options import (
    DEFAULT_WORKERS,
    BatchSize,
    Device,
    Dtype,
    Json,
    ModelDtype,
    Revision,
    Traceback,
    Workers,
)
from .output import print_record


DEFAULT_SHARD_SIZE = 1000
READ_AT_ONCE = 16  # outputs of shards that were done before


class Format(str, Enum):
    parquet = "parquet"
    clip_retrieval = "clip-retrieval"


class Engine(str, Enum):
    local = "local"
    ray = "ray"


OUTPUT_HELP = (
    "A folder, or an address such as s3://bucket/folder, that gets a file for each shard of the images. Started "
    "again, the command goes on where it was stopped."
)


@dataclass
class DataOptions:
    """Options of every command that works on images; those of data sets are `None` where not given."""

    batch_size: BatchSize = 32
    workers: Workers = DEFAULT_WORKERS
    revision: Revision = None
    device: Device = "auto"
    dtype: ModelDtype = Dtype.auto
    as_json: Json = False
    traceback: Traceback = False
    format: Annotated[
        Format | None,
        typer.Option(
            help="Of an output folder: parquet, by default, or clip-retrieval's layout of .npy files and metadata."
        ),
    ] = None
    shard_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images in a shard of loose files, lists and tables; 1000 by default. A tar is one."),
    ] = None
    image_key: Annotated[str | None, typer.Option(help="File extension of the images in tars.")] = None
    image_column: Annotated[str | None, typer.Option(help="Column of tables with images: bytes, paths or URLs.")] = (
        None
    )
    key_column: Annotated[str | None, typer.Option(help="Column of tables that names the rows.")] = None
    columns: Annotated[
        list[str] | None,
        typer.Option(
            help="A column of tables, or an entry of the .json files in tars, to keep in the output; may be given "
            "several times."
        ),
    ] = None
    split: Annotated[str | None, typer.Option(help="Split of a Hugging Face data set; train by default.")] = None
    subset: Annotated[
        str | None, typer.Option(help="Subset (configuration) of a data set of the Hub that has several.")
    ] = None
    engine: Annotated[
        Engine | None, typer.Option(help="Where to work: in this process, by default, or in actors of Ray.")
    ] = None
    address: Annotated[
        str | None, typer.Option(help="The Ray cluster to work on, such as auto; by default one is started here.")
    ] = None
    actors: Annotated[int | None, typer.Option(min=1, help="Ray actors, each with a model; 1 by default.")] = None
    gpus_per_actor: Annotated[
        float | None, typer.Option(min=0, help="GPUs of each Ray actor; by default 1 where there are any.")
    ] = None

    def fields(self, text_column: str | None = None) -> Fields:
        """Return where the parts of samples are."""
        return Fields(
            self.image_key,
            self.image_column,
            text_column,
            self.key_column,
            tuple(self.columns or ()),
            self.split,
            self.subset,
        )

    def check(self, output: str | None):
        """Raise `UsageError` where options are given that say nothing about this output or engine.

        Args:
            output: the folder for outputs of shards, if they are written to one.
        """
        of_outputs = ("format", "shard_size", "columns", "engine", "address", "actors", "gpus_per_actor")
        of_ray = ("address", "actors", "gpus_per_actor")
        checks = (
            (of_outputs, output is None, "acts on an output folder: name one with --output FOLDER/"),
            (of_ray, self.engine is not Engine.ray, "acts on --engine ray"),
        )
        for names, unused, does in checks:
            for name in names:
                if unused and getattr(self, name) is not None:
                    raise UsageError(f"--{name.replace('_', '-')} {does}.")


def with_data_options(command: Callable) -> Callable:
    """Give `command`, which takes them as `data: DataOptions`, the options of a command line."""
    own = inspect.signature(command, eval_str=True)
    options = [
        inspect.Parameter(
            option.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=option.default, annotation=option.type
        )
        for option in fields(DataOptions)
    ]

    @functools.wraps(command)
    def with_options(**arguments):
        data = DataOptions(**{option.name: arguments.pop(option.name) for option in options})
        return command(data=data, **arguments)

    parameters = [parameter for name, parameter in own.parameters.items() if name != "data"]
    signature = own.replace(parameters=[*parameters, *options])
    with_options.__signature__ = signature  # type: ignore[attr-defined]
    return with_options


def dataset_folder(output: str | None, suffixes: tuple[str, ...] = ()) -> str | None:
    """Return an output that names a folder for the outputs of shards, `None` where it names a file, or nothing."""
    if output is None:
        return None
    path = Path(output)
    is_folder = is_remote(output) or output.endswith(("/", os.sep)) or not path.suffix
    is_folder |= path.is_dir() and path.suffix.lower() not in suffixes
    return output if is_folder else None


def check_folder(output: str | None, data: DataOptions) -> str | None:
    """Return the folder for the outputs of shards, once it is clear that `output` names one, if it is given."""
    folder = dataset_folder(output)
    if output is not None and folder is None:
        raise UsageError(f"--output {output} names a file: expected a folder, as in {Path(output).stem}/.")
    data.check(folder)
    return folder


def find_data(
    arguments: list[str], failures: Failures, where: Fields | None = None, shard_size: int | None = None
) -> list[Shard]:
    """Find the shards of images that `arguments` stand for, and report those that stand for nothing.

    Raises:
        UsageError: there is nothing, or it cannot be read as it was asked for.
    """
    try:
        shards = find_shards(
            read_arguments(arguments), where or Fields(), shard_size or DEFAULT_SHARD_SIZE, failures.add
        )
    except UserError as error:
        raise UsageError(str(error)) from error
    if arguments and not shards:
        raise UsageError("There is no image to work on: give files, folders, patterns or URLs of images.")
    return shards


def work_on_shards(
    command: str,
    load: Callable[..., Task],
    shards: list[Shard],
    address: str,
    columns: tuple[str, ...],
    settings: dict,
    *,
    name: str,
    data: DataOptions,
    failures: Failures,
) -> NoReturn:
    """Work on shards whose outputs are not there yet, say what was done, and end with its exit code.

    Args:
        command: its name.
        load: loads the model onto a device of that name.
        shards: all shards.
        address: the output.
        columns: columns that are made of the images.
        settings: what these depend on, beside the model and the data.
        name: the model.
        data: options of the command.
        failures: holds the inputs that are not there.
    """
    import torch

    layout = (data.format or Format.parquet).value
    output = FORMATS[layout](address, columns)
    passed = data.columns or []
    if clashing := {"key", "shard", "error", *columns} & set(passed):
        raise UsageError(f"--columns {clashing.pop()}: the output has a column of that name already.")
    workers = useful_workers(shards, data.workers)
    ranks = Ranks()
    _check_engine(data, ranks)
    with ranks:
        fingerprint = model_fingerprint(name, data.revision, captions=command == "caption")
        settings = {
            "command": command,
            "model": fingerprint,
            "dtype": data.dtype.value,
            "device": data.device,
            "batch_size": data.batch_size,
            "format": layout,
            **vars(data.fields()),
            "columns": passed,
            **settings,
        }
        # Sums depend on the number of threads in the last bits, where batches are not computed on one each.
        notes = {
            "model": _absolute(name),
            "revision": data.revision,
            "threads": torch.get_num_threads(),
            "shard_size": data.shard_size or DEFAULT_SHARD_SIZE,
        }
        with _as_usage():
            notes, places = output.prepare(settings, shards, notes)
        unfinished = output.unfinished(places)
        how: dict[str, Any] = {
            "batch_size": data.batch_size,
            "workers": workers,
            "threads": notes["threads"],
            "warn": warn,
        }
        if data.engine is Engine.ray:
            from ..datasets.run_on_ray import run_on_ray

            how |= {"address": data.address, "actors": data.actors or 1, "gpus_per_actor": data.gpus_per_actor}
            load_same = functools.partial(_load_unchanged, load, name, data.revision, fingerprint, data.device)
            report = run_on_ray(load_same, unfinished, output, **how)
        else:
            mine = ranks.part(unfinished)  # without any, no model is needed
            report = run(load(ranks.device(data.device)), mine, output, **how) if mine else Report()
        worked_on = {index for index, _ in unfinished}
        _add_done(report, output, [place for place in ranks.part(places) if place[0] not in worked_on])
        report = ranks.total(report)
        if ranks.rank == 0:
            _say(report, data.as_json)
    failed = report.errors or report.shards_failed or failures.exit_code()
    raise typer.Exit(INPUT_FAILED if failed else 0)


def _check_engine(data: DataOptions, ranks: Ranks):
    """Raise `UsageError` where the Ray cluster that was asked for is not there."""
    if data.engine is not Engine.ray:
        return
    from ..datasets.run_on_ray import check_address

    if ranks.world_size > 1:
        raise UsageError("--engine ray has actors in place of ranks: start one process, without torchrun.")
    with _as_usage():
        check_address(data.address)


def _add_done(report: Report, output: Output, places: list[Place]):
    """Count what was done before."""
    names = [(shard.name, index) for index, shard in places]
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:  # each may wait for an object store
        for (name, _), (num_rows, errors) in zip(names, pool.map(lambda place: output.found(*place), names)):
            report.rows_done_before += num_rows
            report.shards_done_before += 1
            report.add_errors(name, errors)


def _load_unchanged(load: Callable[..., Task], name: str, revision: str | None, fingerprint: str, device: str) -> Task:
    """Load a model, long after its fingerprint was taken."""
    task = load(device)
    if model_fingerprint(name, revision) != fingerprint:
        raise UserError(f"{name} is not the model that it was when the run began.")
    return task


@contextmanager
def _as_usage() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UsageError(str(error)) from error


def _absolute(name: str) -> str:
    """Return the address of a model folder from anywhere on this machine, or a Hub id as it is."""
    return os.path.abspath(os.path.expanduser(name)) if os.path.isdir(os.path.expanduser(name)) else name


def _say(report: Report, as_json: bool):
    for kind, count in report.errors.items():
        warn(
            f"{count} {'image has' if count == 1 else 'images have'} an error {kind}, such as {report.examples[kind]}"
        )
    if report.shards_failed:
        warn(f"{report.shards_failed} shards could not be read, see above: start again to try them again.")
    summary = report.summary()
    if as_json:
        print_record(summary)
    else:
        warn(
            f"{report.rows} images in {report.shards} shards, {summary['images_per_second']} images/s; "
            f"{report.rows_done_before} images in {report.shards_done_before} shards were done before."
        )


def model_fingerprint(name: str, revision: str | None, captions: bool = False) -> str:
    """Return what tells a model and its processor from others: a digest of its files, or the commit on the Hub.

    Raises:
        UsageError: there is no such model, or it must caption and cannot.
    """
    from transformers import PreTrainedConfig

    from .load import find_model

    folder = Path(find_model(name, revision, captions))
    if not folder.is_dir():
        commit = PreTrainedConfig.get_config_dict(name, revision=revision)[0].get("_commit_hash")
        return f"{name}@{commit}"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() not in (".md", ".py") and not path.name.startswith("."):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while part := file.read(1 << 24):
                    digest.update(part)
    return digest.hexdigest()
