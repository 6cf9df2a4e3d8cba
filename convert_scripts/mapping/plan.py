"""From the tensors of a checkpoint to those of our model or of another form of it, with every key and every shape
accounted for.

Checkpoints with other names than open_clip's are brought to open_clip's first (open_clip: `convert.py`), and tensors
to the shapes that open_clip brings them to at load (`load_checkpoint` in `factory.py`).
"""

from collections.abc import Callable, Collection, Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from ...modeling.modeling_coca import CoCaForConditionalGeneration
from ...modeling.modeling_mammut import MaMMUTForConditionalGeneration
from ...modeling.modeling_open_clip import OpenClipModel, OpenClipSiglipModel
from ..common import ConversionError, failing_as, listing
from ..sources import big_vision, mobileclip
from ..towers.base import Changes, Tensors
from ..towers.tables import DECODER_CONVERSIONS, TEXT_CONVERSIONS, VISION_CONVERSIONS
from .hints import explain_keys
from .state_dict import Rename, Step, Table, resolve, under


MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    model.config_class.model_type: model
    for model in (OpenClipModel, OpenClipSiglipModel, CoCaForConditionalGeneration, MaMMUTForConditionalGeneration)
}
# Keys of a checkpoint that no model needs -> why.
DROPPED = {
    "attn_mask": "causal mask of the text tower, made in forward",
    "text.attn_mask": "causal mask of the text tower, made in forward",
    "text_decoder.attn_mask": "causal mask of the decoder, made in forward",
    "text.transformer.embeddings.position_ids": "buffer of old transformers releases, made in forward",
    "text.transformer.embed_positions.weights": "sinusoidal table of old transformers releases, made anew",
    "input_resolution": "number kept by OpenAI's archives, in the configuration as image_size",
    "context_length": "number kept by OpenAI's archives, in the configuration as max_position_embeddings",
    "vocab_size": "number kept by OpenAI's archives, in the configuration as vocab_size",
}

LOGITS: Table = (Rename("logit_scale", "logit_scale"), Rename("logit_bias", "logit_bias"))


def rename_table(config: PreTrainedConfig, text_prefix: str = "text.") -> Table:
    """Build the rename table of a whole model: its towers', a captioner's decoder's and the scalars'.

    Args:
        config: configuration of a dual model or of a captioner.
        text_prefix: where the checkpoint keeps its text tower: `""` in open_clip's `CLIP`, `"text."` in its
            `CustomTextCLIP`, `CoCa` and `MaMMUT`.
    """
    vision, text = config.vision_config, config.text_config
    table = (
        *under("visual.", "vision_model.", VISION_CONVERSIONS[vision.model_type].rename_table(vision)),
        *under(text_prefix, "text_model.", TEXT_CONVERSIONS[text.model_type].rename_table(text)),
        *LOGITS,
    )
    if "multimodal_config" not in config.sub_configs:
        return table
    return (*table, *DECODER_CONVERSIONS[config.multimodal_config.model_type].rename_table(config))


def fit_tensors(tensors: Tensors, config: PreTrainedConfig, text_prefix: str) -> tuple[Tensors, Changes]:
    """Bring tensors to the shapes that open_clip brings them to at load; the tensors, and how some were changed."""
    tensors, changes = dict(tensors), {}
    _fit_scalars(tensors, changes, config)
    _fit_batch_norms(tensors, changes)
    vision, text = config.vision_config, config.text_config
    VISION_CONVERSIONS[vision.model_type].fit(tensors, changes, "visual.", vision)
    TEXT_CONVERSIONS[text.model_type].fit(tensors, changes, text_prefix, text)
    if "multimodal_config" in config.sub_configs:
        DECODER_CONVERSIONS[config.multimodal_config.model_type].fit(tensors, changes, config)
    return tensors, changes


def _fit_scalars(tensors: Tensors, changes: Changes, config: PreTrainedConfig):
    shape = (1,) if config.nonscalar_logit_scale else ()
    for key in ("logit_scale", "logit_bias"):
        if key in tensors and tensors[key].numel() == 1 and tensors[key].shape != shape:
            changes[key] = f"reshaped from {tuple(tensors[key].shape)} to {shape}"
            tensors[key] = tensors[key].reshape(shape)
    if config.logit_bias_init_value is not None and "logit_bias" not in tensors and "logit_scale" in tensors:
        tensors["logit_bias"] = torch.zeros_like(tensors["logit_scale"])
        changes["logit_bias"] = "not in the checkpoint, set to 0"


def _fit_batch_norms(tensors: Tensors, changes: Changes):
    """Count no batches where frozen batch norms kept no number of them, as torch does at load."""
    norms = [key.removesuffix("running_mean") for key in tensors if key.endswith(".running_mean")]
    missing = [f"{norm}num_batches_tracked" for norm in norms if f"{norm}num_batches_tracked" not in tensors]
    tensors |= {key: torch.tensor(0) for key in missing}
    if missing:
        changes["*.num_batches_tracked"] = f"not in the checkpoint for {len(missing)} batch norms, set to 0"


@dataclass(frozen=True)
class Layout:
    """Names and shapes that somebody else gave to the tensors of an open_clip model.

    Args:
        name: its name in reports.
        matches: whether the keys of a checkpoint are of this layout.
        to_open_clip: converts such a checkpoint, with our configuration of its model, to open_clip's state dict, views
            of the source where possible. Raises `ConversionError` for tensors that it cannot place.
        preprocess_cfg: open_clip's image settings of these models, for sources that state none.
    """

    name: str
    matches: Callable[[Collection[str]], bool]
    to_open_clip: Callable[[Mapping[str, torch.Tensor], PreTrainedConfig], Mapping[str, torch.Tensor]]
    preprocess_cfg: Mapping[str, Any] = field(default_factory=dict)


# The first whose `matches` is true is taken; open_clip's own layout matches none.
LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "Apple's MobileCLIP", mobileclip.is_mobileclip, mobileclip.mobileclip_to_open_clip, mobileclip.PREPROCESS_CFG
    ),
    Layout(
        "big_vision's SigLIP", big_vision.is_big_vision, big_vision.big_vision_to_open_clip, big_vision.PREPROCESS_CFG
    ),
)


def find_layout(keys: Collection[str]) -> Layout | None:
    """Find the foreign layout that a checkpoint's keys are of, `None` for open_clip's own."""
    return next((layout for layout in LAYOUTS if layout.matches(keys)), None)


@dataclass(frozen=True)
class ConversionPlan:
    """The conversion of each tensor of a checkpoint to our model.

    Args:
        model: our model on the meta device.
        source_tensors: open_clip's tensors that are converted.
        tensors: the same in the shapes that open_clip brings them to at load.
        steps: rows of a rename table at work on them.
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

    def converted(self, keys: Container[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Our keys and tensors, in the order of the checkpoint; views of the source where possible.

        Args:
            keys: those of our keys that are wanted, by default all.
        """
        for step in self.steps:
            if keys is None or any(key in keys for key in step.targets):
                yield from ((key, tensor) for key, tensor in step.apply(self.tensors) if keys is None or key in keys)


def plan_conversion(config: PreTrainedConfig, tensors: Mapping[str, torch.Tensor]) -> ConversionPlan:
    """Map a checkpoint of open_clip onto our model.

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
    with failing_as("The configuration does not describe a model that can be built"), torch.device("meta"):
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
    """Map tensors onto a model by a rename table; the other arguments are the plan's.

    Raises:
        ConversionError: keys without a place, parameters without a key, or wrong shapes; all of them are listed.
    """
    steps, unmatched = resolve(tensors, table, "sources")
    plan = ConversionPlan(model, source_tensors, tensors, steps, dropped, changed)
    placeless = set(unmatched)

    # The same table read backwards says which tensors of open_clip our model needs, and of which shape.
    needed: dict[str, torch.Tensor] = {}
    ours = model.state_dict()
    steps_back, unreachable = resolve(ours, table, "targets")
    for step in steps_back:
        needed |= step.invert(ours)
    problems = {
        "Keys of the checkpoint that this architecture has no place for": [
            f"{key} {tuple(tensors[key].shape)}" for key in tensors if key in placeless or key not in needed
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
            f"{key}: got {dtype}, expected {tensor.dtype if not tensor.is_floating_point() else 'floats'}"
            for key, tensor in needed.items()
            # Resizing makes floats of any numbers.
            if key in tensors
            and (dtype := (source_tensors if key in source_tensors else tensors)[key].dtype).is_floating_point
            != tensor.is_floating_point()
        ],
    }
    if any(problems.values()):
        raise ConversionError(
            "The checkpoint does not fit the architecture. "
            + "\n".join(f"{problem}:{listing(keys)}" for problem, keys in problems.items() if keys)
            + explain_keys(tensors, needed)
            + f"\nCheck that {type(model).__name__} with this configuration is what the checkpoint was trained as."
        )
    return plan


@dataclass(frozen=True)
class DerivedPlan:
    """The conversion of our tensors to another form of the model: one of its towers, or a model of transformers.

    Read and written like a [`ConversionPlan`].

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

    def converted(self, keys: Container[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Keys and tensors of the other form; views of the source where possible.

        Args:
            keys: those that are wanted, by default all.
        """
        steps = [step for step in self.steps if keys is None or any(key in keys for key in step.sources)]
        ours = dict(self.base.converted({key for step in steps for key in step.targets}))
        for step in steps:
            results = step.invert({key: ours.pop(key) for key in step.targets})
            yield from ((key, tensor) for key, tensor in results if keys is None or key in keys)


def derive_plan(base: ConversionPlan, model: PreTrainedModel, table: Table) -> DerivedPlan:
    """Map our tensors onto another form of the model; those that the table does not name are left out.

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
    layout = dict(pair for step in steps for pair in step.invert(ours))
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
