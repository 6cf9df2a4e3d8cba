"""The one place where a model is optimised for inference, for the variants that are measured as `ours_optimized`."""

from weakref import WeakSet

from torch import nn

from open_clip_transformers.acceleration import optimize_for_inference


_optimized: WeakSet[nn.Module] = WeakSet()


def optimize(model: nn.Module):
    """Optimise a model, or one tower of it, in place; one that a cell before has optimised stays as it is."""
    if model not in _optimized:
        optimize_for_inference(model)
        _optimized.add(model)
