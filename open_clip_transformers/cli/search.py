"""`open-clip-transformers search`."""

import html
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..configuration.errors import UserError
from ..convert_scripts.common import failing_as
from ..convert_scripts.outputs import written_whole
from ..datasets.search import EmbeddedData, Hit
from .data import model_fingerprint
from .messages import UsageError, errors_as_messages, warn
from .options import Device, Json, Traceback
from .output import check_output_file, print_columns, print_record


if TYPE_CHECKING:
    import numpy

THUMBNAIL = (256, 256)
STYLE = "figure{display:inline-block;width:260px;vertical-align:top;overflow-wrap:anywhere}"


def search(
    embedded: Annotated[str, typer.Argument(metavar="EMBEDDED", help="An output folder of `embed`.")],
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="What to look for.")] = None,
    image: Annotated[str | None, typer.Option(help="An image to look for, instead of a text.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Images to find.")] = 10,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .html file to write, with the images that were found.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model that embedded them, where it is not where it was any more.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
    traceback: Traceback = False,
):
    """Find the images of a data set that are nearest to a text or an image.

    Prints a line `key<TAB>score` for each, or with --json {"key": ..., "shard": ..., "score": ...}; a score is the
    cosine of the embeddings. All of them are compared up to a million, and an index of them, which is kept in the
    folder, beyond.
    """
    with errors_as_messages(traceback):
        if (text is None) == (image is None):
            raise UsageError("Give either a text to look for or --image.")
        if output is not None:
            check_output_file(output, (".html",))
        try:
            data = EmbeddedData(embedded)
        except UserError as error:
            raise UsageError(str(error)) from error
        hits = data.nearest(_embed(data, model, text, image, device), k)
        for hit in hits:
            if as_json:
                print_record({"key": hit.key, "shard": hit.shard, "score": hit.score})
            else:
                print_columns(hit.key, f"{hit.score:.4g}")
        if not hits:
            warn(f"{embedded} holds no embedding of an image yet.")
        if data.unfinished:
            warn(f"{data.unfinished} shards are not embedded yet, and were not searched.")
        if output is not None:
            with failing_as(f"{output} cannot be written", UserError), written_whole(output) as path:
                path.write_text(_page(data, hits, text or image or ""), encoding="utf-8")


def _embed(data: EmbeddedData, model: str | None, text: str | None, image: str | None, device: str) -> "numpy.ndarray":
    """Embed what to look for with the model that embedded the data."""
    from transformers import AutoModelForZeroShotImageClassification

    from ..datasets.images import read_image
    from ..training.embeddings import embed_images, embed_texts
    from .load import load_model

    settings, notes = data.manifest["settings"], data.manifest["notes"]
    name, revision = model or notes["model"], None if model else notes["revision"]
    if model_fingerprint(name, revision) != settings["model"]:
        raise UsageError(f"{name} is not the model that embedded these images: name that one with --model.")
    loaded, processor = load_model(AutoModelForZeroShotImageClassification, name, revision, device, settings["dtype"])
    if image is None:
        return embed_texts(loaded, processor.tokenizer, [text], 1, warn)[0].numpy()
    images = processor.image_processor(read_image(image), return_tensors="pt")
    return embed_images(loaded, images)[0].cpu().numpy()


def _page(data: EmbeddedData, hits: list[Hit], query: str) -> str:
    figures = "\n".join([_figure(data, hit) for hit in hits])
    title = html.escape(query)
    return (
        f'<!doctype html>\n<html><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>\n'
        f"<body><h1>{title}</h1>\n{figures}\n</body></html>\n"
    )


def _figure(data: EmbeddedData, hit: Hit) -> str:
    """Show an image that was found with its score; where it is gone, why."""
    try:
        picture = data.image(hit).convert("RGB")
        picture.thumbnail(THUMBNAIL)
        file = BytesIO()
        picture.save(file, "JPEG")
        shown = f'<img src="data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}">'
    except Exception as error:  # Pillow and the network raise nearly everything
        shown = f"<p>{html.escape(str(error))}</p>"
    return f"<figure>{shown}<figcaption>{html.escape(hit.key)}<br>{hit.score:.4g}</figcaption></figure>"
