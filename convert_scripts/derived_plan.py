"""A converted model in another form: one of its towers, or a model of transformers itself."""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

import torch
from transformers.modeling_utils import PreTrainedModel

from .common import ConversionError, listing
from .mapping.plan import ConversionPlan
from .mapping.state_dict import Step, Table, resolve


@dataclass(frozen=True)
class DerivedPlan:
    """What becomes of our tensors in the other form; read and written like a [`ConversionPlan`].

    Args:
        base: where our tensors come from.
        model: the model in the other form, on the meta device.
        steps: rows of a table whose sources are the other form's keys and whose targets are ours.
        layout: the keys to write -> their tensors, on the meta device.
    """

    base: ConversionPlan
    model: PreTrainedModel
    steps: list[Step]
    layout: Mapping[str, torch.Tensor]

    @property
    def source_tensors(self) -> Mapping[str, torch.Tensor]:
        return self.base.source_tensors

    @property
    def dropped(self) -> Mapping[str, str]:
        return self.base.dropped

    @property
    def changed(self) -> Mapping[str, str]:
        return self.base.changed

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Keys and shapes to write."""
        return {key: tensor.shape for key, tensor in self.layout.items()}

    def converted(self, keys: Container[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Keys and tensors of the other form; views of the source where possible.

        Args:
            keys: those that are wanted, by default all.
        """
        steps = [step for step in self.steps if keys is None or any(key in keys for key in step.sources)]
        ours = dict(self.base.converted({key for step in steps for key in step.targets}))
        for step in steps:
            results = zip(step.sources, step.operation.invert(tuple(ours.pop(key) for key in step.targets)))
            yield from ((key, tensor) for key, tensor in results if keys is None or key in keys)


def derive_plan(base: ConversionPlan, model: PreTrainedModel, table: Table) -> DerivedPlan:
    """Maps our tensors onto another form of the model; those that the table does not name are left out.

    Args:
        base: the plan of our model.
        model: the other form, on the meta device.
        table: rename table from the keys to write to ours. They are those of `model`, or those below its
            `base_model_prefix`, which transformers takes off at load.

    Raises:
        ConversionError: the keys or shapes that the table makes are not those of `model`.
    """
    ours = base.model.state_dict()
    steps, _ = resolve(ours, table, "targets")
    layout = {
        key: tensor
        for step in steps
        for key, tensor in zip(step.sources, step.operation.invert(tuple(ours[key] for key in step.targets)))
    }
    expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
    prefix = f"{model.base_model_prefix}."
    made = {key if key in expected else key.removeprefix(prefix): tensor.shape for key, tensor in layout.items()}
    wrong = [key for key in made.keys() | expected.keys() if made.get(key) != expected.get(key)]
    if wrong:
        raise ConversionError(
            f"The tensors of {type(model).__name__} are not those that ours make:"
            + listing(f"{key}: made {made.get(key)}, expected {expected.get(key)}" for key in sorted(wrong))
        )
    return DerivedPlan(base, model, steps, layout)
