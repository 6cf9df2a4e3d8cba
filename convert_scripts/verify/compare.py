"""Differences between the values of a model in both libraries.

In fp32 a difference is relative to the largest value. In half precision both libraries are off: each is measured
against open_clip in fp32, and ours may be at most twice as far off as open_clip is itself.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from transformers.configuration_utils import PreTrainedConfig

from ..common import ConversionError, dtype_name, listing
from ..towers.base import Intermediate
from .report import Check
from .values import (
    Inputs,
    Outputs,
    first_and_last,
    is_comparable,
    open_clip_gradients,
    open_clip_losses,
    open_clip_outputs,
    our_gradients,
    our_losses,
    our_outputs,
    recorded,
    without_padding,
)


# Largest accepted difference in fp32, relative to the largest value of the reference.
BOUND = 2e-5
# Largest accepted difference of gradients in fp32, which add up the rounding of both passes. It is relative to the
# largest value of the parameter, and at least a hundredth of that of all parameters: some gradients are nothing but
# rounding, such as those of keys' biases, as a shift of all keys changes no softmax.
GRADIENT_BOUND = 1e-4
SMALLEST_GRADIENT = 1e-2
# In half precision, our error is at most that many times open_clip's. Below a quarter of epsilon, about the error of a
# number that is rounded once, it is never too large.
RATIO = 2.0
FLOOR = 0.25

# Group and name of a value.
Key = tuple[str, str]
Values = dict[Key, torch.Tensor]
OUTPUT_GROUPS = {
    "image features": "features",
    "text features": "features",
    "logits": "logits",
    "caption logits": "logits",
}
FEATURES = ("image features", "text features")
# The logits that losses come from; everything else that is trained on comes from both.
LOGITS_OF_LOSSES = {"contrastive loss": ("logits",), "caption loss": ("caption logits",)}
LOGITS = ("logits", "caption logits")
# In half precision gradients are judged by part: those of a single parameter may be off by chance.
PARTS = {"vision_model": "vision", "text_model": "text", "multimodal_decoder": "decoder", "lm_head": "decoder"}


def relative_difference(ours: torch.Tensor, reference: torch.Tensor, smallest: float = 0.0) -> float:
    """max|ours - reference| / max|reference|; infinite where the shapes differ, or values are not finite.

    `smallest` is taken where all of the reference is smaller.
    """
    if ours.shape != reference.shape:
        return float("inf")
    if ours.numel() == 0:
        return 0.0
    difference, largest = (ours.float() - reference.float()).abs().max(), reference.float().abs().max()
    relative = (difference / largest.clamp(min=smallest)).item() if difference else 0.0
    return float("inf") if math.isnan(relative) else relative


@dataclass(frozen=True)
class Library:
    """Functions that run the models of one library.

    Args:
        side: whose paths of a table of intermediates they have.
        outputs: features and logits of a model, by name.
        losses: its losses by name, the last of which is trained on.
        gradients: its gradients under our names, after the backward pass.
    """

    side: Literal["ours", "theirs"]
    outputs: Callable
    losses: Callable
    gradients: Callable


OURS = Library("ours", our_outputs, our_losses, our_gradients)


def open_clip_library(config: PreTrainedConfig) -> Library:
    """open_clip, for models that have this configuration of ours."""
    return Library(
        "theirs",
        open_clip_outputs,
        partial(open_clip_losses, config=config),
        partial(open_clip_gradients, config=config),
    )


def run_model(
    library: Library,
    model: torch.nn.Module,
    inputs: Inputs,
    table: tuple[Intermediate, ...],
    groups: Collection[str],
    record: Callable[[Key, torch.Tensor], None],
):
    """Run a model on `inputs` and hand its values to `record(key, value)`, in the order of the forward pass.

    Args:
        library: the model's.
        model: a model in eval mode, in any dtype.
        inputs: images and their texts.
        table: the intermediates to record.
        groups: which groups of values are wanted; outputs come always.
        record: must copy a value to keep it.
    """
    watching: AbstractContextManager[None] = nullcontext()
    if "intermediates" in groups:
        mask = inputs[0].get("pixel_attention_mask")

        def record_intermediate(name: str, value: torch.Tensor):
            record(("intermediates", name), without_padding(value, mask) if mask is not None else value)

        watching = recorded(model, table, library.side, record_intermediate)
    with torch.no_grad(), watching:
        outputs = library.outputs(model, inputs)
    for name, value in outputs.items():
        record((OUTPUT_GROUPS[name], name), value)
    if not is_comparable(outputs) or not {"losses", "gradients"} & set(groups):
        return
    with torch.set_grad_enabled("gradients" in groups):
        # The longest and the shortest text, with an image each: the backward pass is slow in half precision.
        losses = library.losses(model, first_and_last(inputs))
    for name, value in losses.items():
        record(("losses", name), value.detach())
    if "gradients" in groups:
        list(losses.values())[-1].backward()
        for name, value in library.gradients(model):
            record(("gradients", name), value)


# Runs a model, and hands its values to the function that it is given.
Run = Callable[[Callable[[Key, torch.Tensor], None]], None]
INFINITE = float("inf")


def fp32_checks(exact: Values, run: Run) -> Iterator[Check]:
    """Compare our values in fp32 with open_clip's.

    Args:
        exact: open_clip's values in fp32.
        run: of our model in fp32.
    """
    smallest = _smallest_gradients(exact)
    differences: dict[Key, float] = {}

    def compare(key: Key, value: torch.Tensor):
        if key in exact:
            differences[key] = relative_difference(value, exact[key], smallest.get(key, 0.0))
        else:
            differences[key] = INFINITE

    run(compare)
    for key in _all_keys(exact, differences):
        bound = GRADIENT_BOUND if key[0] == "gradients" else BOUND
        yield Check(*key, differences.get(key, INFINITE), bound, "float32", _missing_side(key, exact, differences))


def output_checks(exact: Outputs, ours: Outputs) -> list[Check]:
    """Compare outputs in fp32 by name, as `fp32_checks` does."""

    def run(record: Callable[[Key, torch.Tensor], None]):
        for name, value in ours.items():
            record((OUTPUT_GROUPS[name], name), value)

    return list(fp32_checks({(OUTPUT_GROUPS[name], name): value for name, value in exact.items()}, run))


def captions_check(theirs: torch.Tensor, ours: torch.Tensor) -> Check:
    """Compare captions of the same images."""
    wrong = (theirs != ours).any(dim=1).nonzero().flatten().tolist()
    detail = "; ".join(f"image {i}: {theirs[i].tolist()} became {ours[i].tolist()}" for i in wrong[:1])
    return Check("captions", f"{len(theirs)} captions", len(wrong), 0, "float32", detail)


def check_finite(values: Mapping[str, torch.Tensor], reference: str):
    """Raise `ConversionError` where values of the reference are not finite: nothing can be compared with them."""
    infinite = [name for name, value in values.items() if not value.isfinite().all()]
    if infinite:
        raise ConversionError(
            f"The checkpoint is damaged: with it, the outputs of {reference} itself are not finite:{listing(infinite)}"
        )


def _smallest_gradients(exact: Values) -> dict[Key, float]:
    """Sizes that differences of smaller gradients are relative to: below them rounding is all there is."""
    largest = {key: value.abs().max().item() for key, value in exact.items() if key[0] in ("gradients", "logits")}
    gradients = {key: value for key, value in largest.items() if key[0] == "gradients"}
    smallest = dict.fromkeys(gradients, SMALLEST_GRADIENT * max(gradients.values(), default=0.0))
    # Sums of the logits' gradients, each at most 1, times the logits or 1, in which most cancels.
    smallest["gradients", "logit_scale"] = largest.get(("logits", "logits"), 0.0)
    smallest["gradients", "logit_bias"] = 1.0
    return smallest


@dataclass(frozen=True)
class Error:
    """Distance of a value from the exact one.

    Args:
        norm: of the difference.
        size: norm of the exact value.
        largest: largest difference of a number.
        spread: norm of the exact value without the mean of its rows.
    """

    norm: float
    size: float
    largest: float
    spread: float

    @property
    def relative(self) -> float:
        return self.relative_to(self.size)

    def relative_to(self, size: float) -> float:
        if self.norm == 0:
            return 0.0
        return self.norm / size if size else INFINITE

    def __add__(self, other: "Error") -> "Error":
        """The error of two values taken together."""
        norm, size = math.hypot(self.norm, other.norm), math.hypot(self.size, other.size)
        return Error(norm, size, max(self.largest, other.largest), math.hypot(self.spread, other.spread))


Errors = dict[Key, Error]
_NOT_THERE = Error(INFINITE, 1.0, INFINITE, 1.0)


def measure_errors(exact: Values, run: Run) -> Errors:
    """Measure the errors of a model in half precision against open_clip in fp32; gradients by part.

    Args:
        exact: open_clip's values in fp32.
        run: of either library's model.
    """
    errors: Errors = {}

    def measure(key: Key, value: torch.Tensor):
        error = _NOT_THERE
        if key in exact and value.shape == exact[key].shape:
            difference, reference = value.float() - exact[key], exact[key]
            sizes = (
                difference.norm(),
                reference.norm(),
                difference.abs().max(),
                (reference - reference.mean(0)).norm(),
            )
            error = Error(*(size.item() for size in sizes))
        if key[0] != "gradients":
            errors[key] = error
        elif part := PARTS.get(key[1].split(".")[0]):
            key = ("gradients", f"{part} gradients")
            errors[key] = errors[key] + error if key in errors else error

    run(measure)
    return errors


def half_precision_checks(theirs: Errors, ours: Errors, dtype: torch.dtype) -> Iterator[Check]:
    """Compare our errors in a dtype of half precision with open_clip's own."""
    name = dtype_name(dtype)
    for key in _all_keys(theirs, ours):
        error, reference = ours.get(key, _NOT_THERE), theirs.get(key, _NOT_THERE)
        if key in theirs and not math.isfinite(reference.relative):
            yield Check(*key, dtype=name, detail="open_clip's own value is not finite")
            continue
        allowed = max(reference.relative, _inherited(key, theirs))
        bound = RATIO * allowed + FLOOR * torch.finfo(dtype).eps
        detail = _missing_side(key, theirs, ours) or f"open_clip's own error {reference.relative:.1e}"
        yield Check(*key, error.relative, bound, name, detail)


def _inherited(key: Key, theirs: Errors) -> float:
    """The relative error that open_clip's value may have because of those that it is computed from.

    Its own is that large or smaller by chance, where it consists of a few numbers only.
    """
    group, name = key
    features = [error for (_, name), error in theirs.items() if name in FEATURES]
    if name == "logits":
        return math.hypot(*(error.relative for error in features))
    # A loss changes by no more than twice the largest change of a logit, and the slope at the logits, which gradients
    # are in proportion to, by no larger part. Gradients are also in proportion to the differences between the features
    # of the other side.
    names = LOGITS_OF_LOSSES.get(name, LOGITS)
    logits = max((error.largest for (_, name), error in theirs.items() if name in names), default=0.0)
    if group == "losses":
        return logits / theirs[key].size if key in theirs and theirs[key].size else 0.0
    if group == "gradients":
        return math.hypot(logits, *(error.relative_to(error.spread) for error in features))
    return 0.0


def _all_keys(theirs: Collection[Key], ours: Collection[Key]) -> list[Key]:
    return [*theirs, *(key for key in ours if key not in theirs)]


def _missing_side(key: Key, theirs: Collection[Key], ours: Collection[Key]) -> str:
    if key not in theirs:
        return "our model alone has it"
    return "" if key in ours else "open_clip's model alone has it"
