"""The `attention` command."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, PreTrainedModel, ProcessorMixin

from ._attention_maps import draw_maps, seen_box
from ._cli_caption import fit_length
from ._cli_inputs import read_image
from ._cli_messages import UsageError
from ._cli_models import KINDS, load
from ._cli_output import print_columns, written_whole
from .configuration.configuration_common import height_and_width
from .modeling.attention_maps import patch_similarity, word_attention


@torch.inference_mode()
def draw_attention(
    name: str,
    output: Path,
    texts: list[str],
    *,
    model_name: str,
    revision: str | None,
    device: str,
    dtype: str,
    max_new_tokens: int | None,
    font: Path | None,
):
    """Draws where a model looks in an image, and prints what it looked for.

    Args:
        name: path or URL of the image.
        output: a `.png` file, which is there once it is whole.
        texts: texts to find in the image; without any, the words of the caption that the model writes.
        model_name, revision, device, dtype: see `_cli_models.load`.
        max_new_tokens: longest caption in tokens.
        font: a font file for the labels.
    """
    # Which alone gives weights.
    attn_implementation = None if texts else "eager"
    model, processor = load(AutoModel, model_name, revision, device, dtype, attn_implementation=attn_implementation)
    if not texts and not model.can_generate():
        raise UsageError(
            f"{model_name} is a {KINDS[model.config.model_type]}, which writes no captions: give --text for what to "
            "look for."
        )
    image = read_image(name)
    pixel_values = processor.image_processor(image, return_tensors="pt").pixel_values.to(model.device, model.dtype)
    if texts:
        title, maps = name, _text_maps(model, processor, pixel_values, texts)
        for text, heat in maps:
            print_columns(name, text, f"{heat.max():.4g}")
        maps = [(text, _between_0_and_1(heat, heat.min())) for text, heat in maps]
    else:
        title, maps = _word_maps(model, processor, pixel_values, max_new_tokens)
        print_columns(name, title)
        maps = [(word, _between_0_and_1(heat, 0.0)) for word, heat in maps]
    sheet = draw_maps(image, maps, _patch_box(model, processor, image.size, maps), title, str(font) if font else None)
    with written_whole(output) as temporary:
        sheet.save(temporary)


def _word_maps(
    model: PreTrainedModel, processor: ProcessorMixin, pixel_values: torch.Tensor, max_new_tokens: int | None
) -> tuple[str, list[tuple[str, np.ndarray]]]:
    """A caption, and where the model looked as it wrote each word."""
    ids = model.generate(pixel_values=pixel_values, **fit_length(model, max_new_tokens, 1))
    (words,) = word_attention(model, processor.tokenizer, pixel_values, ids)
    caption = processor.decode(ids[0], skip_special_tokens=True)
    return caption, [(word, heat.cpu().numpy()) for word, heat in words]


def _text_maps(
    model: PreTrainedModel, processor: ProcessorMixin, pixel_values: torch.Tensor, texts: list[str]
) -> list[tuple[str, np.ndarray]]:
    """How similar the patches are to each text."""
    inputs = processor.tokenizer(texts, return_tensors="pt").to(model.device)
    (maps,) = patch_similarity(model, pixel_values, **inputs)
    return list(zip(texts, maps.cpu().numpy()))


def _between_0_and_1(heat: np.ndarray, least: float) -> np.ndarray:
    """`heat` with 0 for `least` and 1 for its largest value."""
    return (heat - least) / max(heat.max() - least, 1e-12)


def _patch_box(
    model: PreTrainedModel, processor: ProcessorMixin, size: tuple[int, int], maps: list[tuple[str, np.ndarray]]
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the patches in pixels of the picture, whose width and height are `size`."""
    (left, top, right, bottom), (height, width) = seen_box(processor.image_processor, size)
    patch_size = getattr(model.config.vision_config, "patch_size", None)
    if patch_size is None or not maps:
        return left, top, right, bottom
    # Patches need not cover all pixels, and may be padded beyond them.
    rows, columns = maps[0][1].shape
    patch_height, patch_width = height_and_width(patch_size)
    bottom = top + (bottom - top) * rows * patch_height / height
    right = left + (right - left) * columns * patch_width / width
    return left, top, right, bottom
