"""Pages of small models, served for a whole file of tests, and pictures of digits."""

import functools
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The converted digits model, a folder of four pictures, and their embeddings; captions by name of the picture."""
    from types import SimpleNamespace

    from typer.testing import CliRunner

    from open_clip_transformers.cli import app
    from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint

    sys.path.insert(0, str(ROOT / "examples"))
    from digits.digits_data import held_out_pictures

    root = tmp_path_factory.mktemp("digits")
    convert_open_clip_checkpoint(
        ROOT / "examples" / "digits" / "open_clip_checkpoint", root / "coca-digits", verify="none"
    )
    (root / "images").mkdir()
    captions = {}
    for index, picture in enumerate(held_out_pictures(4)):
        picture.image.save(root / "images" / f"{index}.png")
        captions[f"{index}.png"] = picture.caption
    command = ["embed", root / "coca-digits", root / "images", "--output", f"{root}/embedded/", "--workers", "0"]
    result = CliRunner().invoke(app, [str(argument) for argument in command])
    assert result.exit_code == 0, result.stderr
    return SimpleNamespace(
        model=str(root / "coca-digits"),
        images=root / "images",
        embedded=str(root / "embedded"),
        captions=captions,
        names=sorted(captions),
    )


@pytest.fixture(scope="session")
def serve():
    """Serves a page: `serve(folder, **arguments of build_demo)` -> its URL."""
    from open_clip_transformers.demo import build_demo, launch_demo

    pages = []

    @functools.cache
    def serve(folder, **arguments):
        page = build_demo(str(folder), device="cpu", **arguments)
        pages.append(page)
        return launch_demo(page, prevent_thread_lock=True, quiet=True)[1]

    yield serve
    for page in pages:
        page.close(verbose=False)


@pytest.fixture(scope="session")
def digits_url(serve, digits):
    return serve(digits.model, examples=digits.images, embeddings=digits.embedded, images=digits.images)
