"""What a checkpoint of any kind is, before our model is written."""

from dataclasses import dataclass
from pathlib import Path

from ..processing.image_settings_open_clip import OpenClipImageSettings
from ..processing.tokenization_open_clip import OpenClipTokenizer
from .mapping.plan import ConversionPlan
from .verify.conversion import Reference


@dataclass(frozen=True)
class Prepared:
    """A checkpoint that was read and understood.

    Args:
        name: the source as it was given.
        weights: its weights file, or the index of several.
        plan: what becomes of its tensors.
        image_processor: ours; `None` where it is not needed.
        tokenizer: ours; `None` where it is not needed and not known.
        reference: the model that the checkpoint was made for.
        notes: what was decided.
    """

    name: str
    weights: Path
    plan: ConversionPlan
    image_processor: OpenClipImageSettings | None
    tokenizer: OpenClipTokenizer | None
    reference: Reference
    notes: tuple[str, ...] = ()
