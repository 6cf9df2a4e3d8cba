"""A page in the browser for a converted model: captions, zero-shot labels, heat maps and search.

The page is made with gradio, of the extra `demo`, which is imported when a page is built.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import gradio


def build_demo(
    model_id: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    examples: str | Path | None = None,
    embeddings: str | None = None,
    images: str | Path | None = None,
) -> "gradio.Blocks":
    """Build the page of a model, with a tab for each thing that it can do.

    Args:
        model_id: a converted folder or a Hub id of one.
        device: such as `"cpu"` or `"cuda:1"`; `"auto"` for the accelerator of this machine, if it has one.
        dtype: such as `"bfloat16"`; `"auto"` for the one it was saved in.
        revision: branch, tag or commit of the Hub repository.
        examples: a folder of images to try, of which the first 8 are shown.
        embeddings: an output of `embed` with this model, for the tab that searches.
        images: the folder of the images that were embedded. What is found is shown where it is a file in there, and
            named elsewhere.

    Returns:
        The page, for [`launch_demo`].

    Raises:
        UserError: gradio is not installed, there is no such model, folder or output, or the embeddings are of another
            model.
    """
    from .page import build_page

    return build_page(model_id, device, dtype, revision, examples, embeddings, images)


def launch_demo(page: "gradio.Blocks", **settings: Any) -> tuple[Any, str, str]:
    """Serve a page of [`build_demo`], to this machine alone and without a share link unless told otherwise.

    gradio's environment variables tell it too: a Space sets `GRADIO_SERVER_NAME`.

    Args:
        settings: of gradio's `Blocks.launch`, such as `server_port`.

    Returns:
        What `launch` does: the application, its address, and its shared address.
    """
    from .page import settings_of_launch

    return page.launch(**{**settings_of_launch(), **settings})


__all__ = ["build_demo", "launch_demo"]
