"""Functions run on several ranks of this machine, each a process of its own, that talk through gloo."""

import gc
import multiprocessing
import multiprocessing.forkserver
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


# Imported once, by the process that the ranks are forked from.
PRELOADED = ["training_on_ranks"]
TIMEOUT = 180  # seconds


def _run(function: Callable, rank: int, ranks: int, store: str, arguments: tuple, answer):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="localhost",
        MASTER_PORT="29500",
        ACCELERATE_USE_CPU="true",
    )
    # As in a process that a user starts; data loaders would start a server of their own.
    multiprocessing.set_start_method("fork", force=True)
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    gc.freeze()  # Trainer collects garbage, and looks through all that was imported
    torch.manual_seed(0)
    try:
        distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
        answer.send((None, function(*arguments)))
    except BaseException as error:
        answer.send((f"{type(error).__name__}: {error}\n{traceback.format_exc()}", None))
    answer.recv()  # the others may still talk to this one
    os._exit(0)


def answers_on_ranks(function: Callable, ranks: int, folder: Path, *arguments) -> list[tuple[str | None, Any]]:
    """Call `function(*arguments)` on each rank: its error or `None`, and what it returns, of numbers and strings."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        # Older Pythons do not hand the path on to the server, which then imports nothing, and says nothing.
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        multiprocessing.forkserver.ensure_running()
    store = str(folder / f"store_{os.urandom(4).hex()}")
    here, there = zip(*(context.Pipe() for _ in range(ranks)))
    processes = [
        context.Process(target=_run, args=(function, rank, ranks, store, arguments, answer))
        for rank, answer in enumerate(there)
    ]
    for process in processes:
        process.start()
    try:
        silent = (f"no answer within {TIMEOUT} s", None)
        return [answer.recv() if answer.poll(TIMEOUT) else silent for answer in here]
    finally:
        for process in processes:
            process.kill()
            process.join()


def on_ranks(function: Callable, ranks: int, folder: Path, *arguments) -> list[Any]:
    """What `function(*arguments)` returns on each of `ranks`; fails with the error of the first that has one."""
    answers = answers_on_ranks(function, ranks, folder, *arguments)
    for rank, (error, _) in enumerate(answers):
        assert error is None, f"rank {rank}: {error}"
    return [result for _, result in answers]
