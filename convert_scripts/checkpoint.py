"""Checkpoints that were read and understood, before our model is written."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..processing.image_settings_open_clip import ImageSettings
from ..processing.tokenization_open_clip import OpenClipTokenizer
from .mapping.config import build_config, check_model_cfg
from .mapping.plan import ConversionPlan, find_layout, plan_conversion
from .processors.image import build_image_processor, complete_preprocess_cfg, unread_settings
from .processors.tokenizers import load_tokenizer, token_ids_of
from .sources import openai
from .sources.source import Source, SourceOptions, check_activation, open_source
from .sources.weights import Weights, read_weights
from .towers.timm_vision import set_reparameterized
from .verify.conversion import Reference, reference_outputs


# With which open_clip's `--siglip` begins (`main.py`).
SIGLIP_LOGIT_SCALE, SIGLIP_LOGIT_BIAS = math.log(10), -10.0


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
    image_processor: ImageSettings | None
    tokenizer: OpenClipTokenizer | None
    reference: Reference
    notes: tuple[str, ...] = ()


def _with_logit_bias(source: Source, weights: Weights) -> tuple[Source, tuple[str, ...]]:
    """Add the bias to the description of a model that was trained with SigLIP's loss, which adds it; and a note."""
    if "logit_bias" not in weights.tensors or source.model_cfg.get("init_logit_bias") is not None:
        return source, ()
    model_cfg = {"init_logit_scale": SIGLIP_LOGIT_SCALE, **source.model_cfg, "init_logit_bias": SIGLIP_LOGIT_BIAS}
    note = f"init_logit_bias {SIGLIP_LOGIT_BIAS}, as in open_clip's --siglip: the checkpoint holds a logit_bias"
    return replace(source, model_cfg=model_cfg), (note,)


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
    source, bias_notes = _with_logit_bias(source, weights)
    tokenizer = load_tokenizer(source, required="tokenizer" in processor_parts)
    config = build_config(source.model_cfg, None if tokenizer is None else token_ids_of(tokenizer))
    if options.reparameterize:
        set_reparameterized(config)
    notes = [*source.notes, *weights.notes, *bias_notes]
    layout = find_layout(weights.tensors)
    image_settings: Mapping[str, Any] = openai.PREPROCESS_CFG if openai.is_openai(weights.tensors) else {}
    if layout is not None:
        notes.append(f"the checkpoint has the layout of {layout.name}")
        image_settings = layout.preprocess_cfg
    unread_note = unread_settings(source.preprocess_cfg)
    preprocess_cfg, image_note = complete_preprocess_cfg(source, {**image_settings, **weights.preprocess_cfg})
    source = replace(source, preprocess_cfg=preprocess_cfg)
    if "image_processor" in processor_parts:
        notes += filter(None, [unread_note, image_note])
    if "multimodal_config" in config.sub_configs and config.bos_token_id is None:
        notes.append("the tokenizer is not known: set bos_token_id and eos_token_id in generation_config.json")
    return LoadedCheckpoint(
        source=source,
        plan=plan_conversion(config, weights.tensors),
        image_processor=build_image_processor(source, config) if "image_processor" in processor_parts else None,
        tokenizer=tokenizer,
        reference=partial(reference_outputs, source.model_cfg),
        notes=tuple(notes),
    )
