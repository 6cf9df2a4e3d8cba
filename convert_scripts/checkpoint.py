"""Checkpoints that were read and understood, before our model is written."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial

from ..processing.image_settings_open_clip import OpenClipImageSettings
from ..processing.tokenization_open_clip import OpenClipTokenizer
from .mapping.config import build_config, check_model_cfg
from .mapping.plan import ConversionPlan, find_layout, plan_conversion
from .processors.image import build_image_processor
from .processors.tokenizers import load_tokenizer, token_ids_of
from .sources.source import Source, SourceOptions, check_activation, open_source
from .sources.weights import read_weights
from .towers.timm_vision import set_reparameterized
from .verify.conversion import Reference, reference_outputs


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint that was read and understood, of open_clip or of transformers itself.

    Args:
        source: its files and its description, with the image settings of its layout.
        plan: the conversion of its tensors.
        image_processor: ours; `None` where it is not needed.
        tokenizer: ours; `None` where it is not needed and not known.
        reference: the model that the checkpoint was made for.
        notes: decisions, for the report.
    """

    source: Source
    plan: ConversionPlan
    image_processor: OpenClipImageSettings | None
    tokenizer: OpenClipTokenizer | None
    reference: Reference
    notes: tuple[str, ...] = ()


def load_checkpoint(options: SourceOptions, processor_parts: Collection[str] = ()) -> LoadedCheckpoint:
    """Read a checkpoint of open_clip and plan its conversion.

    Args:
        options: the checkpoint as the user names it.
        processor_parts: `"image_processor"` and `"tokenizer"`, where these are needed.

    Raises:
        ConversionError: it is not found, cannot be read, or does not fit together.
        OSError: a file cannot be read.
    """
    source = open_source(options)
    check_model_cfg(source.model_cfg)
    weights = read_weights(source.weights, ema=options.ema)
    check_activation(source, weights)
    tokenizer = load_tokenizer(source, required="tokenizer" in processor_parts)
    config = build_config(source.model_cfg, None if tokenizer is None else token_ids_of(tokenizer))
    if options.reparameterize:
        set_reparameterized(config)
    notes = [*source.notes, *weights.notes]
    layout = find_layout(weights.tensors)
    if layout is not None:
        notes.append(f"the checkpoint has the layout of {layout.name}")
        source = replace(source, preprocess_cfg={**layout.preprocess_cfg, **source.preprocess_cfg})
    if config.model_type == "open_clip_coca" and config.bos_token_id is None:
        notes.append("the tokenizer is not known: set bos_token_id and eos_token_id in generation_config.json")
    return LoadedCheckpoint(
        source=source,
        plan=plan_conversion(config, weights.tensors),
        image_processor=build_image_processor(source, config) if "image_processor" in processor_parts else None,
        tokenizer=tokenizer,
        reference=partial(reference_outputs, source.model_cfg),
        notes=tuple(notes),
    )
