"""Proof that a model in another form computes what ours does, and what the model of its checkpoint does."""

from pathlib import Path

import torch
from transformers.initialization import no_init_weights
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from .derived_plan import DerivedPlan
from .mapping.plan import ConversionPlan
from .verify.conversion import Reference, Verification, check_tensors, compare_with
from .verify.values import Inputs, Outputs, load_converted, our_outputs, verification_inputs


def verify_derived(folder: Path, plan: DerivedPlan, reference: Reference, mode: str) -> Verification:
    """Verifies a folder of a model in another form.

    Every written tensor must equal what the plan makes of the checkpoint, and the outputs those of our model and of
    the reference, in fp32 on the values that were written.

    Args:
        folder: what was written.
        plan: where it came from.
        reference: the model that the checkpoint was made for.
        mode: as for `verify_conversion`.

    Raises:
        ConversionError: the folder is not what it should be, or `"full"` and the reference cannot run.
    """
    if mode == "none":
        return Verification("none", "not asked for")
    dtype = check_tensors(folder, plan)
    if mode == "structure":
        return Verification("structure", "every tensor equals the checkpoint's")
    outputs = _derived_outputs(folder, plan)
    ours = compare_with(
        _shared(_our_outputs(plan.base, dtype), outputs), f"our {type(plan.base.model).__name__}", outputs
    )
    expected, detail = reference(plan.base, dtype, mode == "full")
    if expected is None:
        return ours
    theirs = compare_with(_shared(expected, outputs), detail, outputs)
    differences = {name: max(value, ours.differences[name]) for name, value in theirs.differences.items()}
    return Verification("full", f"{ours.detail} and {theirs.detail}", differences)


def _shared(reference: Outputs, outputs: Outputs) -> Outputs:
    return {name: output for name, output in reference.items() if name in outputs}


@torch.inference_mode()
def _our_outputs(plan: ConversionPlan, dtype: torch.dtype) -> Outputs:
    return our_outputs(load_plan(plan, dtype), verification_inputs(plan.model.config))


def load_plan(plan: ConversionPlan, dtype: torch.dtype) -> PreTrainedModel:
    """Our model with the tensors of a checkpoint rounded to `dtype`, in fp32 and eval mode."""
    with torch.random.fork_rng(devices=[]), no_init_weights():
        model = type(plan.model)(plan.model.config)
    tensors = {
        key: tensor.to(dtype).float() if tensor.is_floating_point() else tensor for key, tensor in plan.converted()
    }
    model.load_state_dict(tensors, assign=True)
    return model.eval()


@torch.inference_mode()
def _derived_outputs(folder: Path, plan: DerivedPlan) -> Outputs:
    model = load_converted(folder, type(plan.model), torch.float32)
    return derived_outputs(model, verification_inputs(plan.base.model.config))


def derived_outputs(model: PreTrainedModel, inputs: Inputs) -> Outputs:
    """Outputs of a dual model of transformers, or of a single tower, under the names of `our_outputs`."""
    pixel_values, input_ids = inputs
    if hasattr(model, "get_image_features"):
        return {
            "image features": model.get_image_features(pixel_values).pooler_output,
            "text features": model.get_text_features(input_ids).pooler_output,
            "logits": model(pixel_values=pixel_values, input_ids=input_ids).logits_per_image,
        }
    if model.main_input_name == "pixel_values":
        outputs = model(pixel_values=pixel_values)
        return {"image features": _embedding(outputs, "image_embeds")}
    outputs = model(input_ids=input_ids)
    return {"text features": _embedding(outputs, "text_embeds")}


def _embedding(outputs: ModelOutput, name: str) -> torch.Tensor:
    """The projected vectors: classes "with projection" have a field of their own for them."""
    return outputs[name] if name in outputs else outputs.pooler_output  # noqa: SIM401  not every output has both
