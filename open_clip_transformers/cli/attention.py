"""`open-clip-transformers attention`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..convert_scripts.common import failing_as
from ..convert_scripts.outputs import written_whole
from ..datasets.images import read_image
from .caption import fit_length
from .messages import UsageError, errors_as_messages
from .options import Device, Dtype, Model, ModelDtype, Revision, Traceback
from .output import check_output_file, print_columns


if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel, ProcessorMixin


def attention(
    name: Model,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A file or an http(s) URL.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .png file to write.")],
    text: Annotated[
        list[str] | None, typer.Option(help="A text to look for, instead of captioning; may be given several times.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest caption in tokens.")] = None,
    font: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A font file for words that are not in Latin letters.")
    ] = None,
    revision: Revision = None,
    device: Device = "auto",
    dtype: ModelDtype = Dtype.auto,
    traceback: Traceback = False,
):
    """Draw where a model looks in an image.

    A CoCa or a MaMMUT captions the image, and the sheet shows it once for each word with what the model attended to
    as it wrote that word, from no attention to the most. With --text, every model shows how similar the places in the
    image are to the text, from the least to the most similar. The scale below a panel has the values of its colours.
    Heat is drawn on the whole image; what the model's crop leaves out is dark. Prints
    `image<TAB>caption`, or `image<TAB>text<TAB>similarity` for each text's best place, a cosine.
    """
    with errors_as_messages(traceback):
        if any(not entry.strip() for entry in text or []):
            raise UsageError("--text is empty: give a text to look for.")
        if font is not None and not font.is_file():
            raise UsageError(f"--font {font}: there is no such file.")
        check_output_file(output, (".png",))

        import torch
        from transformers import AutoModel

        from .heat_maps import HeatMap, draw_maps
        from .load import KINDS, load_model

        # Eager attention alone gives weights.
        implementation = None if text else "eager"
        model, processor = load_model(
            AutoModel, name, revision, device, dtype.value, attn_implementation=implementation
        )
        if not text and not model.can_generate():
            raise UsageError(
                f"{name} is a {KINDS[model.config.model_type]}, which writes no captions: give --text for what to "
                "look for."
            )
        picture = read_image(image)
        inputs = processor.image_processor(picture, return_tensors="pt")
        pixel_values = inputs.pixel_values.to(model.device, model.dtype)
        with torch.inference_mode():
            if text:
                with failing_as(f"{name} shows no places of a --text", UsageError):
                    title, maps = image, _text_maps(model, processor, pixel_values, text)
                for label, heat in maps:
                    print_columns(image, label, f"{heat.max():.4g}")
            else:
                title, maps = _word_maps(model, processor, pixel_values, max_new_tokens)
                print_columns(image, title)
        box = patch_box(model, processor, picture.size, maps)
        panels = [HeatMap(label, heat, heat.min() if text else 0.0) for label, heat in maps]
        unit = "cosine" if text else "share of attention"
        sheet = draw_maps(picture, panels, box, title, str(font) if font else None, unit)
        with written_whole(output) as temporary:
            sheet.save(temporary)


def _word_maps(
    model: "PreTrainedModel", processor: "ProcessorMixin", pixel_values: "torch.Tensor", max_new_tokens: int | None
) -> "tuple[str, list[tuple[str, np.ndarray]]]":
    """Caption an image, and map where the model looked as it wrote each word."""
    from ..modeling.attention_maps import word_attention

    ids = model.generate(pixel_values=pixel_values, **fit_length(model, max_new_tokens, 1))
    (words,) = word_attention(model, processor.tokenizer, pixel_values, ids)
    caption = processor.decode(ids[0], skip_special_tokens=True)
    return caption, [(word, heat.cpu().numpy()) for word, heat in words]


def _text_maps(
    model: "PreTrainedModel", processor: "ProcessorMixin", pixel_values: "torch.Tensor", texts: list[str]
) -> "list[tuple[str, np.ndarray]]":
    """Map how similar the patches are to each text."""
    from ..modeling.attention_maps import patch_similarity

    if not hasattr(model.vision_model, "get_patch_features"):
        raise UsageError(
            f"Patches of a tower of type {model.config.vision_config.model_type!r} cannot be compared with texts one "
            "by one: there is no map to draw."
        )
    inputs = processor.tokenizer(texts, return_tensors="pt").to(model.device)
    (maps,) = patch_similarity(model, pixel_values, **inputs)
    return list(zip(texts, maps.cpu().numpy()))


def patch_box(
    model: "PreTrainedModel", processor: "ProcessorMixin", size: tuple[int, int], maps: "list[tuple[str, np.ndarray]]"
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the patches in pixels of the picture, whose width and height are `size`."""
    from ..configuration.configuration_common import height_and_width
    from .heat_maps import seen_box

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
