"""`open-clip-transformers demo`."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .messages import UsageError, errors_as_messages
from .options import Device, Dtype, Model, ModelDtype, Revision, Traceback
from .output import print_text


UPLOADS = "GRADIO_TEMP_DIR"


def demo(
    name: Model,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port to serve at, by default the first free one from 7860 on."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to serve at; 0.0.0.0 in a container lets other machines reach the page.")
    ] = "127.0.0.1",
    share: Annotated[
        bool, typer.Option("--share/--no-share", help="Also serve at a public link of gradio's.")
    ] = False,
    examples: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Images to try.")] = None,
    embeddings: Annotated[
        str | None, typer.Option(metavar="OUTPUT", help="An output folder of `embed` by this model, to search in.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of the embedded images, to show those that are found."),
    ] = None,
    revision: Revision = None,
    device: Device = "auto",
    dtype: ModelDtype = Dtype.auto,
    traceback: Traceback = False,
):
    """Open a page on which people try a model in the browser.

    The page captions images where the model writes captions, labels them, shows where a text is found in one, and,
    with --embeddings, searches among those that `embed` embedded. It is served on this machine until it is stopped
    with Ctrl-C. Needs gradio: pip install 'open-clip-transformers[demo]'.
    """
    with errors_as_messages(traceback):
        if images is not None and embeddings is None:
            raise UsageError("--images shows what a search finds: give --embeddings too.")
        _check_address(host, port)
        with _own_uploads():
            from ..demo import build_demo, launch_demo

            page = build_demo(
                name,
                device=device,
                dtype=dtype.value,
                revision=revision,
                examples=examples,
                embeddings=embeddings,
                images=images,
            )
            addresses = launch_demo(
                page, server_name=host, server_port=port, share=share, quiet=True, prevent_thread_lock=True
            )[1:]
            print_text(f"The page is at {' and '.join(filter(None, addresses))}. Ctrl-C stops it.")
            page.block_thread()


def _check_address(host: str, port: int | None):
    """Raise `UsageError` where nothing can be served, before a model is loaded."""
    try:
        socket.create_server((host, port or 0)).close()
    except OSError as error:
        place = host if port is None else f"{host}, port {port}"
        raise UsageError(
            f"The page cannot be served at {place}: {error.strerror}. Give another --host or --port."
        ) from error


@contextmanager
def _own_uploads() -> Iterator[None]:
    """Have gradio keep uploads where no other user of the machine looks, and only as long as the page is served."""
    if UPLOADS in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="open-clip-transformers-demo-") as folder:
        os.environ[UPLOADS] = folder
        try:
            yield
        finally:
            del os.environ[UPLOADS]
