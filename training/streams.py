"""Streamed data, of which each rank and each worker reads its share (open_clip: `get_wds_dataset` in `data.py`)."""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import gather, gather_object
from torch.utils.data import IterableDataset

from .losses import check_even


def rank_share(dataset: IterableDataset, rank: int, num_ranks: int) -> IterableDataset | None:
    """Return the part of a streamed data set that a rank reads; `None` where all ranks may read the same.

    A data set of datasets is shared out here, by its `split_dataset_by_node`, unless it has been. Tars of webdataset
    are shared out by a stage of their pipeline, or drawn anew on each rank.

    Raises:
        ValueError: a pipeline of webdataset that gives all ranks the same, or shards that each rank shuffles its way.
    """
    if num_ranks == 1 or is_shared_by_rank(dataset):
        return dataset
    if _is_webdataset(dataset):
        raise ValueError(
            f"Each of {num_ranks} ranks would read all of these tars: pass nodesplitter=webdataset.split_by_node to "
            "WebDataset, or put that function behind the list of shards of a pipeline."
        )
    if not hasattr(dataset, "_ex_iterable"):
        return None
    states = gather_object([repr(list(_random_states(dataset)))])
    if len(set(states)) > 1:
        raise ValueError(
            "Each rank shuffles this streamed data set its own way, and they would read some shards twice and others "
            "never: pass the same `seed` to `shuffle` on all ranks."
        )
    from datasets.distributed import split_dataset_by_node

    return split_dataset_by_node(dataset, rank, num_ranks)


def is_shared_by_rank(dataset: Any) -> bool:
    """Whether a data set already gives each rank another share."""
    if _is_webdataset(dataset):
        return _has_stage(dataset, sys.modules["webdataset"].split_by_node)
    return getattr(dataset, "_distributed", None) is not None


def check_workers(dataset: Any, num_workers: int):
    """Raise `ValueError` where each worker of a data loader would read all of a pipeline of webdataset."""
    if num_workers < 2 or not _is_webdataset(dataset):
        return
    if not _has_stage(dataset, sys.modules["webdataset"].split_by_worker):
        raise ValueError(
            f"Each of {num_workers} workers would read all of these tars: put webdataset.split_by_worker behind the "
            "list of shards of the pipeline."
        )


def _is_webdataset(dataset: Any) -> bool:
    webdataset = sys.modules.get("webdataset")
    return webdataset is not None and isinstance(dataset, webdataset.DataPipeline)


def _has_stage(stage: Any, splitter: Callable) -> bool:
    """Whether tars go through `splitter`, or are drawn at random, by each process for itself."""
    if isinstance(stage, sys.modules["webdataset"].ResampledShards):
        return True
    if hasattr(stage, "pipeline"):
        return any(_has_stage(each, splitter) for each in stage.pipeline)
    if hasattr(stage, "datasets"):  # a mix of several
        return all(_has_stage(each, splitter) for each in stage.datasets)
    return (stage.func if isinstance(stage, functools.partial) else stage) is splitter


def _random_states(part: Any) -> Iterator[Any]:
    """States of the random numbers by which parts of a streamed data set of datasets are shuffled."""
    shuffling = getattr(part, "_shuffling", None)  # of releases before 5
    for owner in (part, shuffling):
        generator = getattr(owner, "generator", None)
        if generator is not None:
            yield generator.bit_generator.state
    for name in ("_ex_iterable", "ex_iterable"):
        if hasattr(part, name):
            yield from _random_states(getattr(part, name))
    for each in getattr(part, "ex_iterables", ()):
        yield from _random_states(each)


def agree_on_batches(
    batches: Sequence[Any],
    rows: Sequence[int],
    failure: Exception | None,
    num_batches: int,
    device: torch.device,
    drop_last: bool,
    same_rows: bool,
) -> list[Any]:
    """The batches of this rank for a step, as many on all ranks; to be called by each of them.

    Args:
        batches: those that this rank has.
        rows: number of pairs in each of them.
        failure: why this rank has none, if it could not read them.
        num_batches: those that a step takes, at most.
        device: where the ranks communicate.
        drop_last: drop batches that another rank has no match for, where else they are an error.
        same_rows: whether all ranks must have as many pairs.

    Raises:
        ValueError: on every rank, numbers of batches or pairs that differ.
        Exception: `failure`; on the other ranks a `RuntimeError` that names it.
    """
    own = [-1 if failure else len(batches), *rows, *[0] * (num_batches - len(rows))]
    numbers, *sizes = zip(*gather(torch.tensor([own], device=device)).tolist())
    if min(numbers) < 0:
        failures = gather_object([failure and f"{type(failure).__name__}: {failure}"])
        if failure:
            raise failure
        rank = next(index for index, message in enumerate(failures) if message)
        raise RuntimeError(f"Rank {rank} could not read its batches: {failures[rank]}")
    if max(numbers) > min(numbers) and not drop_last:
        raise ValueError(
            f"Some ranks have run out of pairs, others have not: for the next step they have "
            f"{', '.join(map(str, numbers))} batches. Give each rank and worker as many pairs, or end each pass over "
            "the data where the first has no more: dataloader_drop_last=True."
        )
    for counts in sizes[: min(numbers)] if same_rows else ():
        check_even(counts)
    return list(batches[: min(numbers)])
