"""`open-clip-transformers demo`: what it serves and says, and what it refuses before a model is loaded."""

import os
import socket
import sys
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from open_clip_transformers.cli import app


pytest.importorskip("gradio")


def run(*arguments):
    return CliRunner().invoke(app, ["demo", *map(str, arguments)])


def test_demo_serves_the_page_on_this_machine(digits, monkeypatch):
    import gradio

    seen = []

    def block_thread(page):
        seen.append(urllib.request.urlopen(page.local_url).status)
        seen.append(page.share)
        page.close(verbose=False)

    monkeypatch.setattr(gradio.Blocks, "block_thread", block_thread)
    result = run(digits.model, "--device", "cpu", "--embeddings", digits.embedded, "--images", digits.images)
    assert result.exit_code == 0, result.stderr
    assert seen == [200, False]
    assert "The page is at http://127.0.0.1:" in result.stdout


def test_demo_keeps_uploads_to_itself(digits, monkeypatch):
    import gradio
    from gradio_client import Client, handle_file

    seen = []

    def block_thread(page):
        client = Client(page.local_url, verbose=False)
        client.predict(
            image=handle_file(digits.images / digits.names[0]), labels=["a", "b"], template="{}", api_name="/classify"
        )
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        seen.extend([folder, folder.stat().st_mode & 0o777, any(folder.rglob(digits.names[0]))])
        page.close(verbose=False)

    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    monkeypatch.setattr(gradio.Blocks, "block_thread", block_thread)
    result = run(digits.model, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    folder, mode, uploaded = seen
    assert (mode, uploaded) == (0o700, True)
    assert not folder.exists() and "GRADIO_TEMP_DIR" not in os.environ


def test_demo_says_that_a_port_is_taken(digits):
    with socket.create_server(("127.0.0.1", 0)) as server:
        result = run(digits.model, "--port", server.getsockname()[1])
    assert result.exit_code == 2
    assert "Address already in use" in result.stderr and "another --host or --port" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--images", "."), "give --embeddings too"), (("--host", "300.1.1.1"), "cannot be served at 300.1.1.1")],
    ids=["images", "host"],
)
def test_demo_refuses_what_cannot_be(digits, arguments, message):
    result = run(digits.model, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_demo_names_the_extra_that_is_missing(digits, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("open_clip_transformers.demo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = run(digits.model)
    assert result.exit_code == 1
    assert "pip install 'open-clip-transformers[demo]'" in result.stderr
