"""`open-clip-transformers attention`."""

from pathlib import Path
from typing import Annotated

import typer

from ._cli_messages import UsageError, errors_as_messages
from ._cli_options import Device, Dtype, Model, ModelDtype, Revision, Traceback
from ._cli_output import check_output_file


def attention(
    model: Model,
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

    A CoCa captions the image, and the sheet shows it once for each word with what the model attended to as it wrote
    that word. With --text, every model shows how similar the places in the image are to the text, from the least to
    the most similar. Heat is drawn on the whole image; what the model's crop leaves out is dark. Prints
    `image<TAB>caption`, or `image<TAB>text<TAB>similarity` for each text's best place, a cosine.
    """
    with errors_as_messages(traceback):
        if any(not entry.strip() for entry in text or []):
            raise UsageError("--text is empty: give a text to look for.")
        if font is not None and not font.is_file():
            raise UsageError(f"--font {font}: there is no such file.")
        check_output_file(output, (".png",))

        from ._cli_attention import draw_attention

        draw_attention(
            image,
            output,
            text or [],
            model_name=model,
            revision=revision,
            device=device,
            dtype=dtype.value,
            max_new_tokens=max_new_tokens,
            font=font,
        )
