"""Checkpoints of an open_clip architecture under other names than open_clip's, brought to open_clip's.

Mirrors open_clip's `convert.py`. Each layout is recognised by its keys alone, and is one row of `LAYOUTS`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig

from .sources import big_vision, mobileclip
from .sources.big_vision import big_vision_to_open_clip, is_big_vision
from .sources.mobileclip import is_mobileclip, mobileclip_to_open_clip


Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """Names and shapes that somebody else gave to the tensors of an open_clip model.

    Args:
        name: what the layout is called in reports.
        matches: whether the keys of a checkpoint are of this layout.
        to_open_clip: from such a checkpoint and our configuration of its model to open_clip's state dict, views of the
            source where possible. Raises `ConversionError` for what it cannot place.
        preprocess_cfg: open_clip's image settings of these models, for sources that state none.
    """

    name: str
    matches: Callable[[Collection[str]], bool]
    to_open_clip: Callable[[Tensors, PreTrainedConfig], Tensors]
    preprocess_cfg: Mapping[str, Any] = field(default_factory=dict)


# The first whose `matches` is true is taken; open_clip's own layout matches none.
LAYOUTS: tuple[Layout, ...] = (
    Layout("Apple's MobileCLIP", is_mobileclip, mobileclip_to_open_clip, mobileclip.PREPROCESS_CFG),
    Layout("big_vision's SigLIP", is_big_vision, big_vision_to_open_clip, big_vision.PREPROCESS_CFG),
)


def find_layout(keys: Collection[str]) -> Layout | None:
    """The foreign layout that a checkpoint's keys are of, `None` for open_clip's own."""
    return next((layout for layout in LAYOUTS if layout.matches(keys)), None)
