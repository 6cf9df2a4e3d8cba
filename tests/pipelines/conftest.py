"""Tiny folders that pipelines load, and images as they take them."""

import functools
import http.server
import threading

import numpy
import pytest
from PIL import Image
from tiny_configs import tiny_clip_cfg, tiny_coca_cfg, tiny_siglip_cfg
from tiny_folders import CLIP_VOCABULARY, COCA_CLIP_VOCABULARY, save_tiny_folder

import open_clip_transformers  # noqa: F401  registers the models and the pipeline


@pytest.fixture(scope="session")
def coca_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coca")
    save_tiny_folder(folder, tiny_coca_cfg(**COCA_CLIP_VOCABULARY))
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    save_tiny_folder(folder, tiny_clip_cfg(**CLIP_VOCABULARY))
    return folder


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory):
    # The zero-shot pipeline pads texts of a SigLIP to 64 tokens.
    folder = tmp_path_factory.mktemp("siglip")
    save_tiny_folder(folder, tiny_siglip_cfg(text_cfg={"vocab_size": 49408, "context_length": 64}))
    return folder


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Four images that differ in size and in everything else."""
    generator = numpy.random.default_rng(0)
    sizes = [(31, 40), (50, 27), (24, 24), (23, 61)]
    return [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=numpy.uint8)) for size in sizes]


@pytest.fixture(scope="session")
def image_files(images, tmp_path_factory):
    """The images as files without loss."""
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{index}.png" for index in range(len(images))]
    for image, path in zip(images, paths):
        image.save(path)
    return paths


@pytest.fixture
def image_urls(image_files, monkeypatch):
    """The image files on a server on this machine."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=image_files[0].parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield [f"http://127.0.0.1:{server.server_port}/{path.name}" for path in image_files]
        server.shutdown()
