"""What `model.fuse()` and `model.unfuse()` ask of a module."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


# Called with each weight of which there is a copy; the package has one that gives memory back.
copied_weight_hooks: list[Callable[[torch.Tensor], None]] = []


def note_copied(weights: Iterable[torch.Tensor]):
    """Tells `copied_weight_hooks` of weights that were copied: nothing reads them as long as the copy is used."""
    for weight in weights:
        for hook in copied_weight_hooks:
            hook(weight)


class FusibleMixin:
    """A module with fused weights beside its own, from `fuse` to `unfuse`, or until it is moved or cast."""

    fused: Any = None

    def layers_to_fuse(self) -> tuple[nn.Module, ...]:
        """The layers that fusing makes one."""
        raise NotImplementedError

    def fuse(self):
        """Makes the fused weights, where the layers are plain ones and the device has a use for it."""
        raise NotImplementedError

    def unfuse(self):
        """Drops the fused weights."""
        self.fused = None

    def _apply(self, *args, **kwargs):
        self.unfuse()
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict:
        # Neither copied nor pickled: what oneDNN packed is of this process alone.
        return {name: value for name, value in self.__dict__.items() if name != "fused"}
