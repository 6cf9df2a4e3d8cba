"""URLs that answer in every wrong way, and images of a billion pixels in every container: rows with errors."""

import contextlib
import http.server
import io
import json
import struct
import tarfile
import threading
import time
import zlib

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from open_clip_transformers.datasets import images


pytestmark = pytest.mark.usefixtures("models_loaded_once")


def picture():
    file = io.BytesIO()
    Image.new("RGB", (31, 37), (200, 30, 60)).save(file, "png")
    return file.getvalue()


def billion_pixels():
    """A PNG file of a billion pixels in a few bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 25_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.fixture
def server(monkeypatch):
    """URL of a server whose answers are as their paths say."""
    ended = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            path, content = self.path.strip("/"), billion_pixels() if "billion" in self.path else picture()
            moved = {"moved": "/good.png", "round": "/round"}.get(path)
            self.send_response(302 if moved else 404 if path == "missing" else 503 if path == "busy" else 200)
            if moved:
                self.send_header("Location", moved)
            self.send_header("Content-Length", str(len(content) + 100 * (path == "cut")))
            self.end_headers()
            parts = [content[at : at + 1] for at in range(len(content))] if path == "drip" else [content]
            if path == "hang":
                ended.wait(20)
            for part in parts:
                self.wfile.write(part)
                if path == "drip" and ended.wait(0.05):
                    return

        def handle(self):
            with contextlib.suppress(OSError):  # the client has left
                super().handle()

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        ended.set()
        server.shutdown()


ANSWERS = {
    "good.png": None,
    "moved": None,
    "missing": "HTTPError: HTTP Error 404: Not Found",
    "busy": "HTTPError: HTTP Error 503: Service Unavailable",
    "round": "HTTPError: HTTP Error 302",
    "hang": "TimeoutError: ",
    "cut": "IncompleteRead: IncompleteRead(0 bytes read, 100 more expected)",
    "drip": "TimeoutError: the answer is not complete after 1 s",
    "billion.png": "DecompressionBombError: ",
}


def test_urls_that_answer_wrongly_are_rows_with_errors(run, clip, tmp_path, server, monkeypatch):
    monkeypatch.setattr(images, "URL_TIMEOUT", 1)
    monkeypatch.setattr(images, "URL_DEADLINE", 1)
    urls = [f"{server}/{path}" for path in ANSWERS] + ["http://127.0.0.1:1/refused"]
    (tmp_path / "list.txt").write_text("\n".join(urls))
    command = ["embed", clip, tmp_path / "list.txt", "-o", tmp_path / "out", "--json"]
    result = run(*command, "--workers", 2, exit_code=1)
    table = pandas.read_parquet(tmp_path / "out" / "list-00000.parquet")
    assert table.key.tolist() == urls
    for found, error, expected in zip(table.embedding, table.error, [*ANSWERS.values(), "URLError: "]):
        assert (found is None) == (error is not None) == (expected is not None)
        assert (error or "").startswith(expected or ""), error
    summary = json.loads(result.stdout)
    kinds = {"HTTPError": 3, "TimeoutError": 2, "IncompleteRead": 1, "DecompressionBombError": 1, "URLError": 1}
    assert summary["errors"] == kinds and summary["rows"] == 10


def test_answers_that_fill_the_memory_are_given_up(tmp_path, server, monkeypatch):
    assert images.read_image(f"{server}/good.png").size == (31, 37)
    monkeypatch.setattr(images, "URL_MAX_BYTES", 50)
    with pytest.raises(OSError, match="the answer has more than 50 bytes"):
        images.read_image(f"{server}/good.png")


@pytest.mark.parametrize("container", ["file", "tar", "parquet"])
def test_a_billion_pixels_are_a_row_with_an_error(run, clip, tmp_path, monkeypatch, container):
    monkeypatch.chdir(tmp_path)
    data = {"a.png": billion_pixels(), "b.png": picture()}
    if container == "file":
        (tmp_path / "in").mkdir()
        for name, content in data.items():
            (tmp_path / "in" / name).write_bytes(content)
    elif container == "tar":
        with tarfile.open("in", "w") as archive:
            for name, content in data.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    else:
        pyarrow.parquet.write_table(pyarrow.table({"image": list(data.values())}), "in")
    source = tmp_path / "in" if container == "file" else (tmp_path / "in").rename(f"in.{container}")
    start = time.monotonic()
    run("embed", clip, source, "-o", "out/", "--workers", 0, exit_code=1)
    assert time.monotonic() - start < 20
    table = pandas.concat([pandas.read_parquet(path) for path in (tmp_path / "out").glob("*.parquet")])
    assert [error and error.split(":")[0] for error in table.error] == ["DecompressionBombError", None]
