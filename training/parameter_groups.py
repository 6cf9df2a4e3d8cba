"""Which parameters decay, and how fast each layer learns (open_clip: `main.py` and the `no_weight_decay` methods)."""

import re
from typing import Any

import torch
from torch import nn

from .towers import depth_groups


# Attention's and the model's own temperatures, biases of every shape, tables of positions and learned tokens.
_NEVER_DECAYED = re.compile(r"logit_scale|bias|(^|\.)embeddings\.(position|class|register)_embedding(\.weight)?$")


def decayed_parameter_names(model: nn.Module) -> list[str]:
    """Names of the parameters that weight decay applies to.

    Those of one dimension or none are left out (norms, biases, temperatures, class tokens), and tables of positions,
    as by open_clip's `no_weight_decay`. Tables of tokens decay there too. Models of timm name their own.
    """
    kept = {
        id(module.get_parameter(name))
        for module in model.modules()
        if callable(getattr(module, "no_weight_decay", None))
        for name in module.no_weight_decay()
        if name in dict(module.named_parameters())
    }
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and not _NEVER_DECAYED.search(name) and id(parameter) not in kept
    ]


def learning_rate_scales(model: nn.Module, layer_decay: float) -> dict[nn.Parameter, float]:
    """Parameter -> what its learning rate is multiplied by, for the parameters of the towers.

    The last group of a tower by depth has 1, each group before it `layer_decay` times as much.
    """
    scales = {}
    for tower in (getattr(model, name, None) for name in ("vision_model", "text_model")):
        groups = [] if tower is None else depth_groups(tower)
        for steps, names in enumerate(reversed(groups)):
            scales.update((tower.get_parameter(name), layer_decay**steps) for name in names)
    return scales


def scale_learning_rates(optimizer: torch.optim.Optimizer, model: nn.Module, layer_decay: float):
    """Split the parameter groups of a new optimizer by depth, with learning rates that fall towards the input."""
    scales = learning_rate_scales(model, layer_decay)
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        by_scale: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_scale.setdefault(scales.get(parameter, 1.0), []).append(parameter)
        groups += [{**group, "params": by_scale[scale], "lr": group["lr"] * scale} for scale in sorted(by_scale)]
    optimizer.param_groups[:] = groups


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Groups of the parameters that can learn, for an optimizer of torch; [`ContrastiveTrainer`] makes its own.

    Args:
        model: a dual model or CoCa.
        learning_rate: that of the last layers.
        weight_decay: that of weights; see `decayed_parameter_names`.
        layer_decay: number in (0, 1] by which the learning rate falls from each layer of a tower to the one before it.

    Returns:
        dictionaries of `params`, `lr` and `weight_decay`.
    """
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay is a number above 0 and at most 1, got {layer_decay}.")
    scales = {} if layer_decay is None else learning_rate_scales(model, layer_decay)
    decayed = set(decayed_parameter_names(model))
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            settings = (learning_rate * scales.get(parameter, 1.0), weight_decay if name in decayed else 0.0)
            groups.setdefault(settings, []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]
