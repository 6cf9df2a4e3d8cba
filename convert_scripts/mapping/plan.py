"""From open_clip's state dict to ours, with every key and every shape accounted for."""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from ...modeling.modeling_coca import CoCaForConditionalGeneration
from ...modeling.modeling_open_clip import OpenClipModel, OpenClipSiglipModel
from ..common import ConversionError, listing
from ..fit_tensors import fit_tensors
from ..foreign_layouts import find_layout
from ..rename_table import DROPPED, rename_table
from ..towers.tables import VISION_CONVERSIONS
from .state_dict import Step, Table, resolve


MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    model.config_class.model_type: model
    for model in (OpenClipModel, OpenClipSiglipModel, CoCaForConditionalGeneration)
}


@dataclass(frozen=True)
class ConversionPlan:
    """What becomes of each tensor of a checkpoint.

    Args:
        model: our model on the meta device.
        source_tensors: open_clip's tensors that are converted.
        tensors: the same in the shapes that open_clip brings them to at load.
        steps: what is done with them.
        dropped: keys that are not needed -> why.
        changed: keys whose tensors differ between the two -> how.
    """

    model: PreTrainedModel
    source_tensors: Mapping[str, torch.Tensor]
    tensors: Mapping[str, torch.Tensor]
    steps: list[Step]
    dropped: Mapping[str, str]
    changed: Mapping[str, str]

    @property
    def layout(self) -> dict[str, torch.Tensor]:
        """Our keys and tensors on the meta device, in the order of the model."""
        return self.model.state_dict()

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Our keys and shapes, in the order of the model."""
        return {key: tensor.shape for key, tensor in self.layout.items()}

    def converted(self, keys: Container[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Our keys and tensors, in the order of the checkpoint; views of the source where possible.

        Args:
            keys: those of our keys that are wanted, by default all.
        """
        for step in self.steps:
            if keys is None or any(key in keys for key in step.targets):
                results = zip(step.targets, step.operation.apply(tuple(self.tensors[key] for key in step.sources)))
                yield from ((key, tensor) for key, tensor in results if keys is None or key in keys)


def plan_conversion(config: PreTrainedConfig, tensors: Mapping[str, torch.Tensor]) -> ConversionPlan:
    """Maps a checkpoint of open_clip onto our model.

    Args:
        config: configuration of our model.
        tensors: open_clip's state dict, with the text tower at top level or under `text.`, or one of the foreign
            layouts; may be on the meta device.

    Raises:
        ConversionError: keys without a place, parameters without a key, or wrong shapes; all of them are listed.
    """
    layout = find_layout(tensors.keys())
    if layout is not None:
        tensors = layout.to_open_clip(tensors, config)
    VISION_CONVERSIONS[config.vision_config.model_type].adapt(config.vision_config, tensors.keys())
    with torch.device("meta"):
        model = MODEL_CLASSES[config.model_type](config)
    text_prefix = "text." if any(key.startswith("text.") for key in tensors) else ""
    dropped = {key: DROPPED[key] for key in tensors if key in DROPPED}
    source_tensors = {key: tensor for key, tensor in tensors.items() if key not in dropped}
    kept, changed = fit_tensors(source_tensors, config, text_prefix)
    return plan_tensors(model, source_tensors, kept, rename_table(config, text_prefix), dropped, changed)


def plan_tensors(
    model: PreTrainedModel,
    source_tensors: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    table: Table,
    dropped: Mapping[str, str],
    changed: Mapping[str, str],
) -> ConversionPlan:
    """The plan of a rename table for a model; its other arguments are the plan's.

    Raises:
        ConversionError: keys without a place, parameters without a key, or wrong shapes; all of them are listed.
    """
    steps, unmatched = resolve(tensors, table, "sources")
    plan = ConversionPlan(model, source_tensors, tensors, steps, dropped, changed)

    # The same table read backwards says which tensors of open_clip our model needs, and of which shape.
    needed: dict[str, torch.Tensor] = {}
    ours = model.state_dict()
    steps_back, unreachable = resolve(ours, table, "targets")
    for step in steps_back:
        needed |= zip(step.sources, step.operation.invert(tuple(ours[key] for key in step.targets)))
    problems = {
        "Keys of the checkpoint that this architecture has no place for": [
            f"{key} {tuple(tensors[key].shape)}" for key in tensors if key in unmatched or key not in needed
        ],
        "Keys that this architecture needs and the checkpoint lacks": [
            f"{key} {tuple(tensor.shape)}" for key, tensor in needed.items() if key not in tensors
        ],
        "Keys with another shape than this architecture needs": [
            f"{key}: got {tuple(tensors[key].shape)}, expected {tuple(tensor.shape)}"
            for key, tensor in needed.items()
            if key in tensors and tensors[key].shape != tensor.shape
        ],
        "Parameters of our model that the rename table does not know": unreachable,
        "Keys of another kind of numbers than this architecture needs": [
            f"{key}: got {tensors[key].dtype}, expected {tensor.dtype if not tensor.is_floating_point() else 'floats'}"
            for key, tensor in needed.items()
            if key in tensors and tensors[key].is_floating_point() != tensor.is_floating_point()
        ],
    }
    if any(problems.values()):
        raise ConversionError(
            "The checkpoint does not fit the architecture. "
            + "\n".join(f"{problem}:{listing(keys)}" for problem, keys in problems.items() if keys)
            + f"\nCheck that {type(model).__name__} with this configuration is what the checkpoint was trained as."
        )
    return plan
