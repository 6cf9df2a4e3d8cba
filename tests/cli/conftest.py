"""A runner of the command line, small images of every kind, and tiny converted models with CLIP's vocabulary."""

import copy
import functools
import http.server
import threading

import numpy
import pytest
import tiny_configs
from PIL import Image
from typer.testing import CliRunner

from open_clip_transformers.cli import app


_LOADED = {}
CLIP_VOCABULARY = {"text_cfg": {"vocab_size": 49408}}


@pytest.fixture
def run():
    """Runs the command line: `run("caption", folder, image, exit_code=0)` -> result with `stdout` and `stderr`."""

    def run(*arguments, exit_code=0, **kwargs):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], **kwargs)
        assert exit_code in (result.exit_code, None), (result.stdout, result.stderr, result.exception)
        assert "Traceback" not in result.stderr
        return result

    return run


@pytest.fixture
def images(tmp_path):
    """Five readable images, all different, in the order `find_data` gives them for their folder."""
    names = ["a.png", "b.jpg", "c with space.webp", "sub/d.bmp", "sub/deeper/e.tif"]
    generator = numpy.random.default_rng(0)
    for name in names:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = tuple(generator.integers(21, 60, 2))
        colours = generator.integers(0, 256, (2, 2, 3), dtype=numpy.uint8)
        Image.fromarray(colours).resize(size, Image.Resampling.BILINEAR).save(path)
    return [tmp_path / "images" / name for name in names]


@pytest.fixture
def broken(tmp_path):
    """A file that is no image, and a damaged one."""
    no_image, damaged = tmp_path / "no_image.jpg", tmp_path / "damaged.png"
    no_image.write_text("this is text")
    noise = numpy.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=numpy.uint8)
    Image.fromarray(noise).save(damaged)
    damaged.write_bytes(damaged.read_bytes()[:1500])
    return [no_image, damaged]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """URL at which `tmp_path` is served."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """Makes a converted folder of an open_clip configuration, once for each name."""
    root = tmp_path_factory.mktemp("models")

    @functools.cache
    def converted(name):
        from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint

        model_cfg = getattr(tiny_configs, f"tiny_{name}_cfg")(**CLIP_VOCABULARY)
        tiny_configs.save_open_clip_folder(root / f"{name}_source", model_cfg)
        convert_open_clip_checkpoint(root / f"{name}_source", root / name, verify="none")
        return root / name

    return converted


@pytest.fixture
def models_loaded_once(monkeypatch):
    """Lets commands share what they load: each gets a copy of a model that one of them loaded before."""
    from open_clip_transformers.cli import load

    load_model = load.load_model

    def copy_of_loaded(*arguments, **settings):
        key = (arguments, tuple(settings.items()))
        if key not in _LOADED:
            _LOADED[key] = load_model(*arguments, **settings)
        model, processor = _LOADED[key]
        return copy.deepcopy(model), processor

    monkeypatch.setattr(load, "load_model", copy_of_loaded)


@pytest.fixture
def coca(converted):
    return converted("coca")


@pytest.fixture
def clip(converted):
    return converted("clip")


@pytest.fixture
def siglip(converted):
    return converted("siglip")


@pytest.fixture(scope="session")
def reference():
    """Loads a folder without the command line: `reference(AutoModel, folder)` -> (model, processor)."""
    from transformers import AutoProcessor

    @functools.cache
    def load(auto_class, folder):
        return auto_class.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)

    return load


@pytest.fixture
def memory():
    """fsspec's file system in memory, empty before and after."""
    file_system = pytest.importorskip("fsspec").filesystem("memory")
    yield file_system
    file_system.store.clear()
    file_system.pseudo_dirs[:] = [""]
