"""Checkpoints of open_clip, read and understood."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial

from .activation import check_activation
from .foreign_layouts import find_layout
from .mapping.config import build_config
from .mapping.plan import plan_conversion
from .prepared import Prepared
from .processors.image import build_image_processor
from .processors.tokenizers import load_tokenizer, token_ids_of
from .sources.source import Source
from .sources.weights import read_checkpoint
from .towers.timm_vision import set_reparameterized
from .verify.conversion import reference_outputs


@dataclass(frozen=True, kw_only=True)
class PreparedOpenClip(Prepared):
    """A checkpoint of open_clip.

    Args:
        source: where it is, and what it is, with what its layout adds to the image settings.
    """

    source: Source


def prepare_open_clip(
    opened: Source, processor_parts: Collection[str] = (), ema: bool = False, reparameterize: bool = False
) -> PreparedOpenClip:
    """Reads a checkpoint, and decides what becomes of it.

    Args:
        opened: where it is, and what it is.
        processor_parts: `"image_processor"` and `"tokenizer"`, where these are needed.
        ema: take the averaged weights of a training checkpoint.
        reparameterize: fuse the branches that some of timm's image towers have in training.

    Raises:
        ConversionError: it cannot be read, or does not fit together.
        OSError: a file cannot be read.
    """
    checkpoint = read_checkpoint(opened.weights, ema=ema)
    check_activation(opened, checkpoint)
    tokenizer = load_tokenizer(opened, required="tokenizer" in processor_parts)
    model_config = build_config(opened.model_cfg, None if tokenizer is None else token_ids_of(tokenizer))
    if reparameterize:
        set_reparameterized(model_config)
    notes = [*opened.notes, *checkpoint.notes]
    layout = find_layout(checkpoint.tensors)
    if layout is not None:
        notes.append(f"the checkpoint has the layout of {layout.name}")
        opened = replace(opened, preprocess_cfg={**layout.preprocess_cfg, **opened.preprocess_cfg})
    if model_config.model_type == "open_clip_coca" and model_config.bos_token_id is None:
        notes.append("the tokenizer is not known: set bos_token_id and eos_token_id in generation_config.json")
    return PreparedOpenClip(
        name=opened.name,
        weights=opened.weights,
        plan=plan_conversion(model_config, checkpoint.tensors),
        image_processor=build_image_processor(opened, model_config) if "image_processor" in processor_parts else None,
        tokenizer=tokenizer,
        reference=partial(reference_outputs, opened.model_cfg),
        notes=tuple(notes),
        source=opened,
    )
