"""From our models to transformers' own, where the architectures are the same; the tables are in `native_tables`."""

import torch
import transformers
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from ..common import ConversionError, listing
from ..derived_plan import DerivedPlan, derive_plan
from ..mapping.plan import ConversionPlan
from .tables import NATIVE_TARGETS, NativePart, NativeTarget


Part = tuple[str, NativePart, PreTrainedConfig]


def find_target(config: PreTrainedConfig, tower: str | None = None) -> NativeTarget:
    """The model of transformers that our `config` describes.

    Args:
        config: configuration of one of our models.
        tower: `"vision"` or `"text"` for a model of that tower alone.

    Raises:
        ConversionError: there is none; the settings that stand in the way of the closest one are listed.
    """
    obstacles = {target.name: _obstacles(target, config, tower) for target in NATIVE_TARGETS}
    fitting = [target for target in NATIVE_TARGETS if not obstacles[target.name]]
    if fitting:
        return fitting[0]
    # Another kind of tower is farther away than any number of options.
    closest, *others = sorted(
        obstacles, key=lambda name: (any("model_type" in text for text in obstacles[name]), len(obstacles[name]))
    )
    raise ConversionError(
        f"transformers has no {f'{tower} tower' if tower else 'model'} like this one. What stands in the way of "
        f"{closest} (others: {', '.join(others)}):{listing(obstacles[closest])}\n"
        "Without target='native' it converts to our own classes."
    )


def _parts(target: NativeTarget, config: PreTrainedConfig, tower: str | None) -> list[Part]:
    """What is converted: name of our sub-configuration, `""` for the whole; its tables; its configuration."""
    parts = [("vision_config", target.vision, config.vision_config), ("text_config", target.text, config.text_config)]
    if tower:
        return [part for part in parts if part[0] == f"{tower}_config"]
    return [*parts, ("", target.model, config)]


def _obstacles(target: NativeTarget, config: PreTrainedConfig, tower: str | None) -> list[str]:
    return [
        f"{_path(name, row.field)} is {_shown(getattr(part_config, row.field, None))}, {row}"
        for name, part, part_config in _parts(target, config, tower)
        for row in part.unmet(part_config)
    ]


def _path(name: str, field: str) -> str:
    return f"{name}.{field}" if name else field


def _shown(value) -> str:
    return type(value).__name__ if isinstance(value, PreTrainedConfig) else repr(value)


def plan_native(plan: ConversionPlan, tower: str | None = None) -> tuple[DerivedPlan, tuple[str, ...]]:
    """Maps our tensors onto transformers' own model.

    Args:
        plan: the plan of our model.
        tower: `"vision"` or `"text"` for that tower alone, with its projection.

    Returns:
        The plan, and notes on what transformers' model lacks.

    Raises:
        ConversionError: no model of transformers is built alike.
    """
    config = plan.model.config
    target = find_target(config, tower)
    parts = _parts(target, config, tower)
    table = sum((part.rename_table(part_config) for _, part, part_config in parts), ())
    notes = tuple(
        f"left out, as it matters in training alone: {_path(name, field)} = {getattr(part_config, field)}"
        for name, part, part_config in parts
        for field, neutral in part.training_only.items()
        if getattr(part_config, field) != neutral
    )
    return derive_plan(plan, _native_model(target, config, tower), table), notes


def _native_model(target: NativeTarget, config: PreTrainedConfig, tower: str | None) -> PreTrainedModel:
    class_name = {None: target.name, "vision": target.vision_class, "text": target.text_class}[tower]
    with torch.device("meta"):
        return getattr(transformers, class_name)(native_config(target, config, tower))


def native_config(target: NativeTarget, config: PreTrainedConfig, tower: str | None = None) -> PreTrainedConfig:
    """transformers' configuration of the model, or of one of its towers, that our `config` describes."""
    configs = {
        name: part.config_class(**part.config_table.invert(part_config))
        for name, part, part_config in _parts(target, config, tower)
        if name
    }
    if tower:
        return configs[f"{tower}_config"]
    return target.model.config_class(**configs, **target.model.config_table.invert(config))
