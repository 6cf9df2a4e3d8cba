"""Parts of all tabs: images that visitors upload, errors as sentences, and events that wait for the model."""

import html
import logging
from abc import ABCMeta
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from ..configuration.errors import UserError
from ..datasets.extras import import_extra
from ..datasets.images import is_url, read_image


if TYPE_CHECKING:
    import gradio as gr
else:
    gr = import_extra("gradio", "demo")

logger = logging.getLogger(__name__)

MAX_PIXELS = 64_000_000  # of an upload
MAX_LETTERS = 1000  # of a text
KEPT_SECONDS = 3600  # uploads, and what was made of them


@contextmanager
def sentences() -> Iterator[None]:
    """Turn errors into sentences on the page; what is not meant for users goes to the log."""
    try:
        yield
    except (UserError, OSError) as error:
        raise _sentence(str(error)) from error
    except Exception as error:
        logger.exception("A request failed.")
        raise _sentence(f"Something went wrong ({type(error).__name__}). The log of the server says more.") from error


def _sentence(message: str) -> Exception:
    # gradio shows messages as HTML.
    return gr.Error(html.escape(message, quote=False), title="This did not work", print_exception=False)


def warn(message: str):
    """Show a warning on the page."""
    gr.Warning(html.escape(message, quote=False))


def _read_upload(component: Any, payload: Any) -> Image.Image | None:
    """Open an uploaded image as it is shown, turned as its EXIF data says.

    Args:
        component: the place that it was uploaded to.
        payload: of gradio, with the path of an upload.
    """
    if payload is None:
        return None
    with sentences():
        # gradio checks that files are uploads, but not for requests that do not mark theirs as files.
        uploads = Path(component.GRADIO_CACHE).resolve()
        if not payload.path or not Path(payload.path).resolve().is_relative_to(uploads):
            raise UserError("The image was not uploaded: upload it, and name the file that it became.")
        try:
            with Image.open(payload.path) as header:
                width, height = header.size
            if width * height > MAX_PIXELS:
                raise UserError(
                    f"The image has {width} x {height} pixels, and at most {MAX_PIXELS // 10**6} million are read: "
                    "make it smaller."
                )
            return ImageOps.exif_transpose(read_image(payload.path))
        except UserError:
            raise
        except Exception as error:  # Pillow raises nearly everything
            raise UserError(
                "This file is no image that can be read, or a damaged one: try a PNG, JPEG or WebP."
            ) from error


async def _keep_upload(component: Any, place: Any) -> str | None:
    """Take over an upload; gradio would also fetch what is at an address, of any size."""
    with sentences():
        if is_url(str(place)):
            raise UserError("Addresses of images are not opened: upload the image itself.")
    return await gr.Image.async_move_resource_to_block_cache(component, place)


# gradio's own reader has no limit of pixels, and shows paths where it fails. A `class` statement would have gradio
# write a stub file beside this one; a template looks as the class that it is made of.
ImageInput = ABCMeta.__new__(
    type(gr.Image),
    "ImageInput",
    (gr.Image,),
    {
        "__module__": __name__,
        "is_template": True,
        "preprocess": _read_upload,
        "async_move_resource_to_block_cache": _keep_upload,
    },
)


def image_input(label: str, height: int = 340) -> "gr.Image":
    """Add a place for an image that is uploaded, pasted or taken."""
    return ImageInput(
        label=label,
        show_label=False,
        height=height,
        elem_classes="upload",
        sources=["upload", "clipboard", "webcam"],
        buttons=["fullscreen"],
    )


def given(picture: Image.Image | None) -> Image.Image:
    """Return the image, once it is clear that there is one."""
    if picture is None:
        raise UserError("There is no image yet: upload, paste or take one, or pick an example.")
    return picture


def heat_image(label: str, **settings) -> "gr.Image":
    """Add a place for an image with heat."""
    return gr.Image(
        label=label,
        interactive=False,
        visible=False,
        buttons=["fullscreen", "download"],
        elem_classes="titled",
        **settings,
    )


def on_model(
    listener: Callable[..., Any],
    function: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Any,
    api_name: str | None = None,
    parameters: Sequence[str] = (),
):
    """Have an event of the page wait for the model, and visitors see their place in the queue.

    Args:
        listener: such as the `click` of a button.
        api_name: of the endpoint for gradio's client; without a name there is none.
        parameters: of the endpoint, where `function` takes any number.
    """
    if parameters:
        kind = Parameter.POSITIONAL_OR_KEYWORD
        function.__signature__ = Signature([Parameter(name, kind) for name in parameters])  # type: ignore[attr-defined]
    listener(
        function,
        inputs,
        outputs,
        api_name=api_name,
        api_visibility="public" if api_name else "private",
        # Events of one group, of which one runs.
        concurrency_id="model",
        concurrency_limit=1,
        show_progress="minimal",
    )
