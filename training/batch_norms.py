"""Batch norms that stay as they are (open_clip: `freeze_batch_norm_2d` in `utils.py`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from torch import nn


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class FrozenBatchNorm(nn.Module):
    """Mixin of batch norms that normalise by their running statistics, also after `train()`."""

    plain_class: type[nn.Module]

    def train(self, mode: bool = True):
        return super().train(False)

    def __reduce_ex__(self, protocol):  # the class is made where it is needed, and has no name to be found by
        return _new_frozen, (self.plain_class,), self.__dict__


@cache
def _frozen_class(plain_class: type[nn.Module]) -> type[FrozenBatchNorm]:
    members = {"plain_class": plain_class, "__doc__": FrozenBatchNorm.__doc__}
    return type(f"Frozen{plain_class.__name__}", (FrozenBatchNorm, plain_class), members)


def _new_frozen(plain_class: type[nn.Module]) -> FrozenBatchNorm:
    frozen_class = _frozen_class(plain_class)  # type: ignore[arg-type]
    return frozen_class.__new__(frozen_class)


def freeze_batch_norm(norm: nn.Module):
    """Freeze statistics, weight and bias of a batch norm, in place; what it saves stays the same.

    Raises:
        TypeError: another module than a batch norm.
    """
    if not isinstance(norm, BATCH_NORMS):
        raise TypeError(f"Expected a batch norm of torch, got {type(norm).__name__}.")
    if not isinstance(norm, FrozenBatchNorm):
        norm.__class__ = _frozen_class(type(norm))  # type: ignore[arg-type]
    norm.eval().requires_grad_(False)


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The batch norms of a model."""
    return [module for module in model.modules() if isinstance(module, BATCH_NORMS)]


@contextmanager
def keep_running_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch norms normalise without moving their running statistics: what is computed twice counts once."""
    norms = [norm for norm in batch_norms(model) if norm.training and norm.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, num_batches) in zip(norms, before):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(num_batches)
