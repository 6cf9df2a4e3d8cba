"""What `model.fuse()` and `model.unfuse()` ask of a module."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


# Called with each weight that fused ones were made of, which nothing reads any more as long as these are used.
copied_weight_hooks: list[Callable[[torch.Tensor], None]] = []


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
