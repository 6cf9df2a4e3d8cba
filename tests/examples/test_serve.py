"""examples/serve.py over HTTP: many requests at once, bad ones among them."""

import asyncio
import io
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image


httpx, uvicorn = pytest.importorskip("httpx"), pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    from transformers import AutoModel, AutoProcessor

    from open_clip_transformers import convert_open_clip_checkpoint

    folder = tmp_path_factory.mktemp("serve") / "coca-digits"
    convert_open_clip_checkpoint(ROOT / "examples" / "digits" / "open_clip_checkpoint", folder, verify="none")
    return AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def serve():
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import serve
    finally:
        sys.path.remove(str(ROOT / "examples"))
    return serve


@pytest.fixture
def address(serve, digits):
    """The address of the application, which has to end when it is told to."""
    server = uvicorn.Server(uvicorn.Config(serve.make_app(*digits), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/caption"
    server.should_exit = True
    thread.join(timeout=20)
    assert not thread.is_alive()


def file_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="png")
    return file.getvalue()


def post_all(address: str, requests: list[tuple[bytes, str]]) -> list:
    async def post():
        async with httpx.AsyncClient(timeout=120, trust_env=False) as client:
            headers = [{"Content-Type": kind} for _, kind in requests]
            calls = [client.post(address, content=body, headers=kind) for (body, _), kind in zip(requests, headers)]
            return await asyncio.gather(*calls)

    return asyncio.run(post())


def test_serve_answers_fifty_requests_at_once_and_mixes_none_up(serve, digits, address, monkeypatch):
    from examples.digits.digits_data import held_out_pictures

    model, processor = digits
    monkeypatch.setattr(serve, "MAX_BYTES", 200_000)
    generate, sizes = model.generate, []

    def counted(pixel_values):
        sizes.append(len(pixel_values))
        return generate(pixel_values=pixel_values)

    monkeypatch.setattr(model, "generate", counted)
    pictures = held_out_pictures(43)
    good = [(file_of(picture.image), "image/png") for picture in pictures]
    pixels = processor(images=[picture.image for picture in pictures], return_tensors="pt").pixel_values
    expected = processor.batch_decode(generate(pixel_values=pixels), skip_special_tokens=True)
    assert len(set(expected)) > 10 and sum(map(str.__eq__, expected, (picture.caption for picture in pictures))) > 38
    bad = [
        (b"", "image/png", 400, "no image"),
        (b"nothing of the kind", "image/png", 400, "no image"),
        (good[0][0][: len(good[0][0]) // 2], "image/png", 400, "damaged"),
        (file_of(Image.new("1", (8000, 7000))), "image/png", 413, "8000 x 7000 pixels"),
        (file_of(Image.new("1", (20000, 20000))), "image/png", 413, "too many pixels"),  # more than Pillow opens
        (bytes(300_000), "image/png", 413, "bytes"),
        (good[0][0], "application/json", 415, "Content-Type"),
    ]
    requests = [*good]
    for place, (body, kind, *_) in enumerate(bad):
        requests.insert(7 * place, (body, kind))
    responses = post_all(address, requests)
    assert len(responses) == 50
    failed = [responses[7 * place] for place in range(len(bad))]
    for response, (_, _, status, words) in zip(failed, bad):
        assert response.status_code == status and words in response.json()["detail"]
    captions = [response.json()["caption"] for response in responses if response not in failed]
    assert captions == expected
    assert sum(sizes) == 43 and max(sizes) > 1


def test_serve_answers_the_others_of_a_batch_in_which_one_fails(serve, digits, address, monkeypatch):
    from examples.digits.digits_data import held_out_pictures

    model, _ = digits
    pictures = held_out_pictures(6)
    files = [file_of(picture.image) for picture in pictures]
    files[3] = file_of(Image.new("RGB", (48, 48), "white"))
    generate = model.generate

    def failing(pixel_values):
        time.sleep(0.2)  # so that the others wait together
        if any(image.min() > 1.5 for image in pixel_values):
            raise RuntimeError("made up")
        return generate(pixel_values=pixel_values)

    monkeypatch.setattr(model, "generate", failing)
    responses = post_all(address, [(file, "image/png") for file in files])
    assert [response.status_code for response in responses] == [200, 200, 200, 500, 200, 200]
    assert all(responses[index].json()["caption"] == pictures[index].caption for index in (0, 1, 2, 4, 5))


def test_readme_shows_the_application_of_serve():
    source = (ROOT / "examples" / "serve.py").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    start = source.index("def make_app")
    assert source[start : source.index("\n\ndef main")].strip() in readme
