"""Values inside both libraries' models, by name and in the order in which they are computed.

A wrong layer is then the first name at which two dictionaries differ.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, Literal

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import ModelOutput

from .towers.base import Intermediate
from .towers.coca_decoder import DECODER_INTERMEDIATES
from .towers.tables import TEXT_CONVERSIONS, VISION_CONVERSIONS


Record = Callable[[str, torch.Tensor], None]
_PLACEHOLDERS = {"{n}": r"(?P<n>\d+)", "{blocks}": r"(?P<blocks>(\w+\.)*\d+)"}


def intermediates_table(config: PreTrainedConfig, text_prefix: str) -> tuple[Intermediate, ...]:
    """The values inside a whole model that both libraries compute.

    Args:
        config: configuration of a dual model or of CoCa.
        text_prefix: where open_clip's model keeps its text tower, as for `rename_table`.
    """
    vision, text = config.vision_config, config.text_config
    parts = [
        ("vision", VISION_CONVERSIONS[vision.model_type].intermediates, "vision_model.", "visual."),
        ("text", TEXT_CONVERSIONS[text.model_type].intermediates, "text_model.", text_prefix),
    ]
    if "multimodal_config" in config.sub_configs:
        parts.append(("decoder", DECODER_INTERMEDIATES, "multimodal_decoder.", "text_decoder."))
    return tuple(row.under(part, ours, theirs) for part, table, ours, theirs in parts for row in table)


@contextmanager
def recorded(
    model: torch.nn.Module, table: tuple[Intermediate, ...], side: Literal["ours", "theirs"], record: Record
) -> Iterator[None]:
    """Hands the intermediates of every forward pass of `model` to `record(name, value)`, once each and in order.

    The value may be overwritten by what follows: `record` keeps a copy, if anything.
    """
    seen = set()

    def record_once(name: str, value: Any):
        tensor = _first_tensor(value)
        if tensor is not None and name not in seen:
            seen.add(name)
            record(name, tensor.detach())

    with ExitStack() as hooks:
        for row in table:
            pattern = _compile(getattr(row, side))
            for path, module in model.named_modules():
                if match := pattern.fullmatch(path):
                    name = _fill(row.name, match.groupdict())
                    hooks.callback(_add_hook(module, row.is_input, name, record_once).remove)
        yield


def _add_hook(module: torch.nn.Module, is_input: bool, name: str, record: Callable[[str, Any], None]):
    if is_input:
        return module.register_forward_pre_hook(lambda module, args: record(name, args))
    return module.register_forward_hook(lambda module, args, output: record(name, output))


def _first_tensor(value: Any) -> torch.Tensor | None:
    """The value itself, or the first tensor of a tuple or of an output object."""
    if isinstance(value, ModelOutput):
        value = value.to_tuple()
    if isinstance(value, tuple | list):
        return next((tensor for part in value if (tensor := _first_tensor(part)) is not None), None)
    return value if isinstance(value, torch.Tensor) else None


@cache
def _compile(pattern: str) -> re.Pattern:
    expression = re.escape(pattern)
    for placeholder, group in _PLACEHOLDERS.items():
        expression = expression.replace(re.escape(placeholder), group)
    return re.compile(expression)


def _fill(name: str, groups: dict[str, str]) -> str:
    for placeholder, value in groups.items():
        name = name.replace(f"{{{placeholder}}}", value)
    return name
