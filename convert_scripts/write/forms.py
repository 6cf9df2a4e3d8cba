"""Forms of a converted model: whole or one of its towers, as a class of ours or as transformers' own."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import ProcessorMixin

from ...modeling.modeling_towers import TEXT_MODELS, VISION_MODELS
from ...processing.image_settings_open_clip import ImageSettings
from ...processing.tokenization_open_clip import OpenClipTokenizer
from ..common import ConversionError, argument
from ..mapping.plan import ConversionPlan, DerivedPlan, derive_plan
from ..mapping.state_dict import Rename
from ..native.tables import NativeTarget
from ..native.targets import PROCESSOR_NOTES, find_target, plan_native, save_image_processor, save_tokenizer
from ..processors.image import processor_class


TARGETS = ("ours", "native")
TOWERS = ("vision", "text")


@dataclass(frozen=True)
class OutputForm:
    """The form in which a model is written.

    Args:
        plan: the model.
        save_processor: writes the files of our image processor and tokenizer, in this form, into a folder.
        notes: settings that the form lacks.
        processor_notes: differences of its processor from open_clip's.
    """

    plan: ConversionPlan | DerivedPlan
    save_processor: Callable[[ImageSettings | None, OpenClipTokenizer | None, Path], None]
    notes: tuple[str, ...] = ()
    processor_notes: tuple[str, ...] = ()


def check_form(target: str, tower: str | None, bundle: bool = False):
    """Raise `ConversionError` for forms that there are not."""
    if target not in TARGETS:
        raise ConversionError(f"target must be one of {', '.join(TARGETS)}, got {target!r}.")
    if tower is not None and tower not in TOWERS:
        raise ConversionError(f"tower must be one of {', '.join(TOWERS)}, or None for both, got {tower!r}.")
    if bundle and target == "native":
        raise ConversionError(
            f"The code of transformers' own models is in transformers: leave out {argument('bundle')}."
        )


def processor_parts(tower: str | None) -> tuple[str, ...]:
    """Parts of the processor of a model, or of one of its towers."""
    parts = {"vision": ("image_processor",), "text": ("tokenizer",)}
    return parts[tower] if tower else ("image_processor", "tokenizer")


def output_form(plan: ConversionPlan, target: str = "ours", tower: str | None = None) -> OutputForm:
    """Find the form of a converted model that was asked for.

    Args:
        plan: the plan of our whole model.
        target: `"ours"`, or `"native"` for the class of transformers that is built alike.
        tower: `"vision"` or `"text"` for that tower alone.

    Raises:
        ConversionError: transformers has no class that is built alike.
    """
    if target == "native":
        derived, notes = plan_native(plan, tower)
        native = find_target(plan.model.config, tower)
        return OutputForm(derived, partial(_save_native_processor, native, tower), notes, PROCESSOR_NOTES)
    if tower is None:
        return OutputForm(plan, partial(_save_processor, processor_class(plan.model.config)))
    return OutputForm(_plan_tower(plan, tower), partial(_save_part, tower))


def _plan_tower(plan: ConversionPlan, tower: str) -> DerivedPlan:
    config = getattr(plan.model.config, f"{tower}_config")
    with torch.device("meta"):
        model = {"vision": VISION_MODELS, "text": TEXT_MODELS}[tower][config.model_type](config)
    return derive_plan(plan, model, (Rename("{rest}", f"{tower}_model.{{rest}}"),))


def _save_processor(processor_class: type[ProcessorMixin], image_processor, tokenizer, folder: Path):
    processor_class(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)


def _save_part(tower: str, image_processor, tokenizer, folder: Path):
    (image_processor if tower == "vision" else tokenizer).save_pretrained(folder)


def _save_native_processor(target: NativeTarget, tower: str | None, image_processor, tokenizer, folder: Path):
    if tower != "text":
        save_image_processor(image_processor, target, folder)
    if tower != "vision":
        save_tokenizer(tokenizer, target, folder)
