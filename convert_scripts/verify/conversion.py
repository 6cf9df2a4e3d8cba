"""Proof that a conversion is right: tensor by tensor, and by its outputs where open_clip is installed."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..common import ConversionError, listing
from ..derived_plan import DerivedPlan
from ..mapping.plan import ConversionPlan
from ..write.safetensors import one_thread, same_bytes
from .reference import load_open_clip_model
from .values import (
    BOUND,
    Outputs,
    load_converted,
    open_clip_outputs,
    our_outputs,
    relative_difference,
    verification_inputs,
)


MODES = ("auto", "full", "structure", "none")
# From a plan, the dtype that its tensors are rounded to, and whether outputs are required, to the outputs of the
# reference and its name; or `None`, and why there are none.
Reference = Callable[[ConversionPlan, torch.dtype, bool], tuple[Outputs | None, str]]


@dataclass(frozen=True)
class Verification:
    """What was verified.

    Args:
        mode: `"full"` where outputs were compared with open_clip's, `"structure"` where tensors were compared with the
            checkpoint's, `"none"`.
        detail: the reference, or why there was none.
        differences: output -> max|ours - open_clip's| / max|open_clip's|, in fp32.
    """

    mode: str
    detail: str = ""
    differences: Mapping[str, float] = field(default_factory=dict)


def verify_conversion(folder: Path, plan: ConversionPlan, model_cfg: Mapping[str, Any], mode: str) -> Verification:
    """Verifies a converted folder.

    Every written tensor must equal what the plan makes of the checkpoint. With open_clip the outputs are compared too,
    in fp32 on the values that were written: a conversion to half precision is held to the same bound, because the
    reference gets the same rounded weights.

    Args:
        folder: what was written.
        plan: where it came from.
        model_cfg: open_clip's configuration, from which the reference is built.
        mode: `"auto"` compares outputs where open_clip is installed and can run the model; `"full"` demands it;
            `"structure"` leaves it out; `"none"` skips everything.

    Raises:
        ConversionError: the folder is not what it should be, or `"full"` and open_clip cannot run the model.
    """
    return verify_against(folder, plan, partial(reference_outputs, model_cfg), mode)


def verify_against(folder: Path, plan: ConversionPlan, reference: Reference, mode: str) -> Verification:
    """Verifies a converted folder as `verify_conversion` does, against any reference."""
    if mode == "none":
        return Verification("none", "not asked for")
    dtype = check_tensors(folder, plan)
    if mode == "structure":
        return Verification("structure", "every tensor equals the checkpoint's")
    outputs, detail = reference(plan, dtype, mode == "full")
    if outputs is None:
        return Verification("structure", f"every tensor equals the checkpoint's; {detail}")
    return compare_with(outputs, detail, _our_outputs(folder, plan))


def reference_outputs(
    model_cfg: Mapping[str, Any], plan: ConversionPlan, dtype: torch.dtype, required: bool
) -> tuple[Outputs | None, str]:
    """open_clip's outputs with the checkpoint's tensors rounded to `dtype`, and its name; or `None`, and why not.

    Raises:
        ConversionError: they are `required`, and open_clip cannot run the model.
    """
    try:
        return _open_clip_outputs(model_cfg, plan, dtype), f"open_clip {version('open_clip_torch')}"
    except Exception as error:  # whatever keeps open_clip from running this model
        installed = find_spec("open_clip") is not None
        reason = f"open_clip cannot run this model ({error})" if installed else "open_clip is not installed"
        if required:
            raise ConversionError(
                f"Not verified, because {reason}: verify='structure' checks the tensors alone."
            ) from error
        return None, reason


def compare_with(reference: Outputs, detail: str, ours: Outputs) -> Verification:
    """Holds `ours` to [`BOUND`]. Raises `ConversionError` where they differ more, or the reference is not finite.

    Args:
        reference: outputs of the reference, all of which are compared.
        detail: its name.
        ours: outputs of the converted model.
    """
    differences = {name: relative_difference(ours[name], output) for name, output in reference.items()}
    # Written this way round, NaN is a failure.
    wrong = [f"{name}: {value:.2e}" for name, value in differences.items() if not value <= BOUND]
    infinite = [name for name, output in reference.items() if not output.isfinite().all()]
    if infinite:
        raise ConversionError(
            f"The checkpoint is damaged: with it, the outputs of {detail} itself are not finite:{listing(infinite)}"
        )
    if wrong:
        raise ConversionError(
            f"The converted model differs from {detail} by more than {BOUND:.0e} (relative):{listing(wrong)}\n"
            "Nothing was written. Please report this with the checkpoint's configuration."
        )
    return Verification("full", detail, differences)


@torch.inference_mode()
def _open_clip_outputs(model_cfg: Mapping[str, Any], plan: ConversionPlan, dtype: torch.dtype) -> Outputs:
    return open_clip_outputs(load_open_clip_model(model_cfg, plan, dtype), verification_inputs(plan.model.config))


@torch.inference_mode()
def _our_outputs(folder: Path, plan: ConversionPlan) -> Outputs:
    model = load_converted(folder, type(plan.model), torch.float32)
    return our_outputs(model, verification_inputs(model.config))


def check_tensors(folder: Path, plan: ConversionPlan | DerivedPlan) -> torch.dtype:
    """The dtype of the folder's floating point weights, all of which are found to be the plan's."""
    dtypes = set()
    with one_thread(), ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in sorted(folder.glob("*.safetensors"))]
        file_of = {key: file for file in files for key in file.keys()}  # noqa: SIM118  not a dict
        wrong = file_of.keys() ^ plan.shapes.keys()
        for key, tensor in plan.converted(file_of):
            written = file_of[key].get_tensor(key)
            dtypes |= {written.dtype} if written.is_floating_point() else set()
            wrong |= set() if same_bytes(written, tensor) else {key}
    if wrong:
        raise ConversionError(f"These tensors were not written as they should be:{listing(sorted(wrong))}")
    return dtypes.pop()
