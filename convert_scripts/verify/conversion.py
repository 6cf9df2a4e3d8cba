"""Verification of a conversion: tensor by tensor, and by its outputs where the model of the checkpoint can be run."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.initialization import no_init_weights
from transformers.modeling_utils import PreTrainedModel

from ..common import ConversionError, argument, listing
from ..mapping.plan import ConversionPlan, DerivedPlan
from ..write.safetensors import all_finite, one_thread, same_bytes
from .compare import BOUND, check_finite, output_checks
from .reference import MissingModelError, load_open_clip_model
from .values import Outputs, native_outputs, open_clip_outputs, our_outputs, verification_inputs


MODES = ("auto", "full", "structure", "none")
# Computes the outputs of the model that a checkpoint was made for, from a plan, the dtype that its tensors are rounded
# to, and whether outputs are required: the outputs and the name of that model; or `None`, and why there are none.
Reference = Callable[[ConversionPlan, torch.dtype, bool], tuple[Outputs | None, str]]
_EQUAL = "every tensor equals the checkpoint's"


@dataclass(frozen=True)
class Verification:
    """Result of the verification of a conversion; `str()` of it is the end of a report.

    Args:
        mode: `"full"` where outputs were compared with the reference's, `"structure"` where tensors were compared with
            the checkpoint's, `"none"`.
        detail: the reference, or why there was none.
        differences: output -> max|ours - reference| / max|reference|, in fp32.
    """

    mode: str
    detail: str = ""
    differences: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.mode == "none":
            return "  verified     nothing"
        if self.mode == "structure":
            return f"  verified     structure only: {self.detail}"
        lines = [f"  verified     against {self.detail}, relative differences (at most {BOUND:.0e}):"]
        return "\n".join(lines + [f"    {name:<16} {value:.1e}" for name, value in self.differences.items()])


def check_mode(mode: str):
    """Raise `ConversionError` for another mode than those of `verify_conversion`."""
    if mode not in MODES:
        raise ConversionError(f"verify must be one of {', '.join(MODES)}, got {mode!r}.")


@torch.inference_mode()
def verify_conversion(
    folder: Path, plan: ConversionPlan | DerivedPlan, reference: Reference, mode: str
) -> Verification:
    """Verify a converted folder.

    Every written tensor must equal the plan's. Outputs are compared too, with those of the
    reference and, for a model in another form, with those of our own model. They are computed in fp32 on the values
    that were written: a conversion to half precision is held to the same bound, because the reference gets the same
    rounded weights.

    Args:
        folder: the folder that was written.
        plan: the plan that it was written by.
        reference: the model that the checkpoint was made for.
        mode: `"auto"` compares outputs where the reference can run; `"full"` demands it; `"structure"` leaves it out;
            `"none"` skips everything.

    Raises:
        ConversionError: a tensor or an output is wrong, or `"full"` and the reference cannot run.
    """
    if mode == "none":
        return Verification("none", "not asked for")
    dtype = check_tensors(folder, plan)
    if mode == "structure":
        check_values(folder)
        return Verification("structure", _EQUAL)
    base = plan.base if isinstance(plan, DerivedPlan) else plan
    inputs = verification_inputs(base.model.config)
    expected: dict[str, Outputs] = {}
    if isinstance(plan, DerivedPlan):
        expected[f"our {type(base.model).__name__}"] = our_outputs(load_plan(base, dtype), inputs)
    outputs, detail = reference(base, dtype, mode == "full")
    if outputs is not None:
        expected[detail] = outputs
    if not expected:
        check_values(folder)
        return Verification("structure", f"{_EQUAL}; {detail}")
    model = load_converted(folder, type(plan.model), torch.float32)
    if isinstance(plan, DerivedPlan):
        ours = native_outputs(model, inputs)
        # A tower alone has no more than its own features.
        expected = {name: {key: outputs[key] for key in ours if key in outputs} for name, outputs in expected.items()}
    else:
        ours = our_outputs(model, inputs)
    differences = dict.fromkeys(ours, 0.0)
    for name, outputs in expected.items():
        for key, difference in _compare(outputs, name, ours).items():
            differences[key] = max(differences[key], difference)
    return Verification("full", " and ".join(expected), differences)


def _compare(reference: Outputs, name: str, ours: Outputs) -> dict[str, float]:
    """Compare outputs; their differences. Raise `ConversionError` above `BOUND`, or if the reference is not finite."""
    checks = output_checks(reference, ours)
    check_finite(reference, name)
    wrong = [f"{check.name}: {check.difference:.2e}" for check in checks if not check.passed]
    if wrong:
        raise ConversionError(
            f"The converted model differs from {name} by more than {BOUND:.0e} (relative):{listing(wrong)}\n"
            "Nothing was written. Please report this with the checkpoint's configuration."
        )
    return {check.name: check.difference for check in checks if check.difference is not None}


@torch.inference_mode()
def reference_outputs(
    model_cfg: Mapping[str, Any], plan: ConversionPlan, dtype: torch.dtype, required: bool
) -> tuple[Outputs | None, str]:
    """open_clip's outputs with the checkpoint's tensors rounded to `dtype`, and its name; or `None`, and why not.

    Raises:
        ConversionError: they are `required`, and open_clip cannot run the model.
    """
    try:
        model = load_open_clip_model(model_cfg, plan, dtype)
        outputs = open_clip_outputs(model, verification_inputs(plan.model.config))
        return outputs, f"open_clip {import_module('open_clip').__version__}"
    except Exception as error:  # whatever keeps open_clip from running this model
        installed = find_spec("open_clip") is not None
        reason = f"open_clip cannot run this model ({error})" if installed else "open_clip is not installed"
        if isinstance(error, MissingModelError):
            reason = f"no outputs were compared, as {error}"
        if required:
            raise ConversionError(
                f"Not verified, because {reason}: {argument('verify', 'structure')} checks the tensors alone."
            ) from error
        return None, reason


def check_tensors(folder: Path, plan: ConversionPlan | DerivedPlan) -> torch.dtype:
    """Check that all tensors of a folder are the plan's; the dtype of its floating point weights."""
    dtypes = set()
    with one_thread(), ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in sorted(folder.glob("*.safetensors"))]
        file_of = {key: file for file in files for key in file.keys()}  # noqa: SIM118  not a dict
        # `save_pretrained` writes one tensor for those that are tied.
        tied = plan.model.get_expanded_tied_weights_keys(all_submodels=True).keys() - file_of.keys()
        wrong = file_of.keys() ^ (plan.layout.keys() - tied)
        for key, tensor in plan.converted(file_of):
            written = file_of[key].get_tensor(key)
            dtypes |= {written.dtype} if written.is_floating_point() else set()
            wrong |= set() if same_bytes(written, tensor) else {key}
    if wrong:
        raise ConversionError(f"These tensors were not written as they should be:{listing(sorted(wrong))}")
    return dtypes.pop()


def check_values(folder: Path):
    """Raise `ConversionError` where tensors of a folder hold NaN or infinite numbers, as outputs would show."""
    with one_thread(), ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in sorted(folder.glob("*.safetensors"))]
        # `safe_open` is not a dict.
        damaged = [key for file in files for key in file.keys() if not all_finite(file.get_tensor(key))]  # noqa: SIM118
    if damaged:
        raise ConversionError(
            f"The checkpoint is damaged: these of its tensors hold values that are not finite:{listing(damaged)}"
        )


def load_converted(folder: Path, model_class: type[PreTrainedModel], dtype: torch.dtype) -> PreTrainedModel:
    """Load the model of a folder, in eval mode. Raise `ConversionError` where it does not load as a whole."""
    model, info = model_class.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    problems = {what: keys for what, keys in info.items() if keys}
    if problems:
        raise ConversionError(f"The converted model does not load as a whole: {problems}")
    return model


def load_plan(plan: ConversionPlan, dtype: torch.dtype) -> PreTrainedModel:
    """Load our model with the tensors of a checkpoint rounded to `dtype`, in fp32 and eval mode."""
    with torch.random.fork_rng(devices=[]), no_init_weights():
        model = type(plan.model)(plan.model.config)
    tensors = {
        key: tensor.to(dtype).float() if tensor.is_floating_point() else tensor for key, tensor in plan.converted()
    }
    model.load_state_dict(tensors, assign=True)
    return model.eval()
