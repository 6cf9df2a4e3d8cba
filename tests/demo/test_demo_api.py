"""The page's functions as endpoints of gradio's client: right values, sentences for errors, and no way to files."""

import itertools
import json
import threading
import urllib.request

import pytest
import tiny_configs
import torch
from PIL import Image
from tiny_folders import CLIP_VOCABULARY, save_tiny_folder
from transformers import AutoModel, AutoProcessor, pipeline

from open_clip_transformers.configuration.errors import UserError


pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")
AppError = gradio_client.exceptions.AppError


@pytest.fixture(scope="module")
def client(digits_url):
    return gradio_client.Client(digits_url, verbose=False)


@pytest.fixture
def image(digits):
    return gradio_client.handle_file(str(digits.images / digits.names[0]))


@pytest.fixture(scope="module")
def model(digits):
    return AutoModel.from_pretrained(digits.model).eval(), AutoProcessor.from_pretrained(digits.model)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a tiny CLIP, a SigLIP, and the towers of a CLIP."""
    root = tmp_path_factory.mktemp("models")
    for name, cfg in (("clip", tiny_configs.tiny_clip_cfg), ("siglip", tiny_configs.tiny_siglip_cfg)):
        save_tiny_folder(root / name, cfg(**CLIP_VOCABULARY))
    model, processor = AutoModel.from_pretrained(root / "clip"), AutoProcessor.from_pretrained(root / "clip")
    model.vision_model.save_pretrained(root / "vision")
    processor.image_processor.save_pretrained(root / "vision")
    model.text_model.save_pretrained(root / "text")
    processor.tokenizer.save_pretrained(root / "text")
    return root


def endpoints(url):
    return set(gradio_client.Client(url, verbose=False).view_api(return_format="dict")["named_endpoints"])


def generated(model, digits, **settings):
    model, processor = model
    inputs = processor(images=Image.open(digits.images / digits.names[0]), return_tensors="pt")
    ids = model.generate(**inputs.to(model.dtype), **settings)
    return processor.batch_decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("request_", "settings"),
    [
        ({"decoding": "Greedy"}, {}),
        ({"decoding": "Beams", "num_beams": 4, "num_captions": 3}, {"num_beams": 4, "num_return_sequences": 3}),
        (
            {"decoding": "Diverse beams", "num_beams": 6, "num_beam_groups": 3, "num_captions": 3},
            {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.5, "num_return_sequences": 3},
        ),
        (
            {"decoding": "Greedy", "min_new_tokens": 14, "max_new_tokens": 17},
            {"min_new_tokens": 14, "max_new_tokens": 17},
        ),
    ],
    ids=["greedy", "beams", "groups", "lengths"],
)
def test_caption_is_what_generate_writes(client, image, model, digits, request_, settings):
    captions = client.predict(image=image, **request_, api_name="/caption")
    assert captions == generated(model, digits, **settings)


def test_caption_streams_words_of_several_samples(client, image):
    job = client.submit(image=image, decoding="Sampling", num_captions=2, top_k=1, api_name="/caption")
    final = job.result()
    steps = job.outputs()
    assert len(steps) > 3 and steps[-1] == final and len(final) == 2
    assert all(
        text.startswith(before) for step, after in itertools.pairwise(steps) for before, text in zip(step, after)
    )


def test_caption_starts_with_the_prompt(client, image):
    (caption,) = client.predict(image=image, prompt="green digits", max_new_tokens=3, api_name="/caption")
    assert caption.startswith("green digits ") and len(caption.split()) == 5


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"prompt": "green " * 40}, "cannot start like this|too long"),
        ({"min_new_tokens": 9, "max_new_tokens": 4}, "at least 9 tokens cannot have at most 4"),
        ({"decoding": "Beams", "num_beams": 2, "num_captions": 3}, "at most 2 captions"),
        ({"decoding": "Diverse beams", "num_beams": 5, "num_beam_groups": 3}, "cannot be split into 3 groups"),
        ({"decoding": "Diverse beams", "num_beams": 1, "num_beam_groups": 2}, "cannot be split into 2"),
        ({"decoding": "Beams", "num_beams": 5000}, "5000"),
    ],
    ids=["prompt", "lengths", "captions", "groups", "one-beam", "many-beams"],
)
def test_caption_says_what_does_not_fit(client, image, request_, message):
    with pytest.raises(AppError, match=message):
        client.predict(image=image, **request_, api_name="/caption")


def test_classify_gives_the_probabilities_of_the_pipeline(client, image, digits):
    labels = [*digits.captions.values(), "a single blue two"]
    answer = client.predict(image=image, labels=labels, template="{}", api_name="/classify")
    classifier = pipeline("zero-shot-image-classification", model=digits.model)
    expected = classifier(str(digits.images / digits.names[0]), candidate_labels=labels, hypothesis_template="{}")
    assert answer["label"] == expected[0]["label"]
    scores = {entry["label"]: entry["confidence"] for entry in answer["confidences"]}
    assert scores == pytest.approx({entry["label"]: entry["score"] for entry in expected}, abs=2e-3)


def test_classify_says_what_is_missing(client, image):
    with pytest.raises(AppError, match="no labels"):
        client.predict(image=image, labels=[" "], api_name="/classify")
    with pytest.raises(AppError, match=r"has no \{\} for the label"):
        client.predict(image=image, labels=["a"], template="a photo", api_name="/classify")
    with pytest.raises(AppError, match="no image yet"):
        client.predict(image=None, labels=["a"], api_name="/classify")


def test_find_draws_a_map_for_each_text(client, image):
    one, none, _ = client.predict(image=image, text="a green three", compare_with="", api_name="/find")
    first, second, scale = client.predict(image=image, text="a green three", compare_with="a nine", api_name="/find")
    files = [Image.open(update["value"] if isinstance(update, dict) else update) for update in (one, first, second)]
    assert all(file.size == (768, 768) for file in files)
    assert files[1].tobytes() != files[2].tobytes()
    assert "cosine" in str(scale)
    assert not (none or {}).get("value")


def test_search_finds_an_image_by_itself_and_by_text(client, image, digits):
    gallery, rows = client.predict(image=image, count=2, api_name="/search_by_image")
    rows = rows.get("value", rows)["data"]
    assert rows[0] == [digits.names[0], pytest.approx(1, abs=1e-3)] and len(rows) == 2
    assert len(gallery.get("value", gallery) if isinstance(gallery, dict) else gallery) == 2
    _, rows = client.predict(text=digits.captions[digits.names[2]], count=4, api_name="/search_by_text")
    assert rows.get("value", rows)["data"][0][0] == digits.names[2]


def test_search_shows_files_of_the_folder_alone(digits, tmp_path):
    from open_clip_transformers.demo.search import ImageSearch

    query = torch.nn.functional.normalize(torch.ones(64), dim=0)
    shown = ImageSearch(digits.embedded, digits.model, None, digits.images).nearest(query, 4)
    hidden = ImageSearch(digits.embedded, digits.model, None, tmp_path).nearest(query, 4)
    named = ImageSearch(digits.embedded, digits.model, None, None).nearest(query, 4)
    assert all(hit.picture for hit in shown)
    assert not any(hit.picture for hit in [*hidden, *named])
    assert [hit.name for hit in shown] == [hit.name for hit in hidden]


def test_requests_side_by_side_are_not_mixed_up(digits_url, digits):
    answers = {}

    def ask(name):
        own = gradio_client.Client(digits_url, verbose=False)
        file = gradio_client.handle_file(str(digits.images / name))
        answers[name] = [own.predict(image=file, api_name="/caption") for _ in range(3)]

    threads = [threading.Thread(target=ask, args=(name,)) for name in digits.names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {name: [[caption]] * 3 for name, caption in digits.captions.items()}


def test_images_are_read_as_they_are_shown(digits, client, tmp_path):
    turned = tmp_path / "turned.jpg"
    picture = Image.open(digits.images / digits.names[0])
    exif = Image.Exif()
    exif[274] = 8  # to be turned by 90 degrees
    picture.rotate(-90).save(turned, exif=exif, quality=95)
    caption = client.predict(image=gradio_client.handle_file(str(turned)), api_name="/caption")
    assert caption == [digits.captions[digits.names[0]]]


@pytest.mark.parametrize("kind", ["text", "cut", "bomb"])
def test_broken_images_are_told_of_in_a_sentence(client, tmp_path, kind):
    path = tmp_path / "broken.png"
    if kind == "text":
        path.write_text("no image")
    elif kind == "cut":
        Image.effect_noise((64, 64), 99).save(path)
        path.write_bytes(path.read_bytes()[:1500])
    else:
        Image.new("1", (9000, 9000)).save(path)
    with pytest.raises(AppError) as raised:
        client.predict(image=gradio_client.handle_file(str(path)), api_name="/caption")
    message = str(raised.value)
    assert "9000 x 9000 pixels" in message if kind == "bomb" else "no image that can be read" in message
    assert "/" not in message and "Traceback" not in message


@pytest.mark.parametrize("meta", [{"meta": {"_type": "gradio.FileData"}}, {}], ids=["file", "plain"])
@pytest.mark.parametrize("field", ["path", "url", "address"])
def test_paths_of_requests_are_not_opened(digits_url, digits, meta, field):
    """An image of this machine, outside of what was uploaded."""
    place = str(digits.images / digits.names[0])
    payload = {
        "path": {"path": place},
        "url": {"path": "x.png", "url": f"file://{place}"},
        "address": {"path": f"{digits_url}theme.css"},
    }[field] | meta
    body = {"data": [payload, ["a"], "{}"]}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{digits_url}gradio_api/call/classify", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        event = json.load(response)["event_id"]
    with urllib.request.urlopen(f"{digits_url}gradio_api/call/classify/{event}") as response:
        answer = response.read().decode()
    assert "event: error" in answer and "confidences" not in answer
    assert "Traceback" not in answer


def test_addresses_are_refused_in_a_sentence(client):
    image = {"path": "https://example.com/a.png", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(AppError, match="upload the image itself"):
        client.predict(image=image, api_name="/caption")


def test_files_of_this_machine_are_not_served(digits_url, digits):
    for place in (f"{digits.model}/config.json", "/etc/passwd", str(digits.images / digits.names[0])):
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(f"{digits_url}gradio_api/file={place}")
        assert raised.value.code in (403, 404)


def test_large_uploads_are_refused(digits_url):
    boundary = "x"
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'.encode()
        + bytes(21 * 2**20)
        + f"\r\n--{boundary}--\r\n".encode()
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    with pytest.raises((urllib.error.HTTPError, ConnectionError)) as raised:
        urllib.request.urlopen(urllib.request.Request(f"{digits_url}gradio_api/upload", body, headers))
    assert getattr(raised.value, "code", 413) == 413


def test_page_has_what_its_model_can_do(serve, folders, digits_url):
    every = {"/caption", "/classify", "/find", "/search_by_image", "/search_by_text"}
    assert endpoints(digits_url) == every
    assert endpoints(serve(folders / "clip")) == {"/classify", "/find"}
    assert endpoints(serve(folders / "vision")) == {"/compare"}


def test_sigmoid_probabilities_stand_alone(serve, folders, image):
    siglip = gradio_client.Client(serve(folders / "siglip"), verbose=False)
    both = siglip.predict(image=image, labels=["a cat", "a dog"], api_name="/classify")["confidences"]
    one = siglip.predict(image=image, labels=["a cat"], api_name="/classify")["confidences"]
    scores = {entry["label"]: entry["confidence"] for entry in both}
    assert one[0]["confidence"] == pytest.approx(scores["a cat"], abs=1e-6) and one[0]["confidence"] < 1
    assert "need not add up to 1" in json.dumps(siglip.config)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_tower_compares_two_inputs(serve, folders, digits, tower):
    client = gradio_client.Client(serve(folders / tower), verbose=False)
    if tower == "text":
        first, second = "a cat", "two dogs"
    else:
        first, second = (gradio_client.handle_file(str(digits.images / name)) for name in digits.names[:2])
    assert float(client.predict(first, first, api_name="/compare")) == pytest.approx(1, abs=1e-4)
    assert -1 <= float(client.predict(first, second, api_name="/compare")) < 0.9999


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("nothing", {}, "no such folder"),
        ("clip", {"examples": "nothing"}, "no such folder of examples"),
        ("clip", {"examples": "clip"}, "no images to try"),
        ("clip", {"embeddings": "clip"}, "holds other files"),
        ("clip", {"embeddings": None}, "embedded by another model"),
        ("vision", {"examples": "images"}, "one tower alone"),
        ("clip", {"device": "cuda:99"}, "cuda:99"),
    ],
    ids=["model", "examples", "no-images", "no-embeddings", "other-model", "tower", "device"],
)
def test_build_demo_says_what_does_not_fit(folders, digits, name, arguments, message):
    from open_clip_transformers.demo import build_demo

    places = {None: digits.embedded, "images": digits.images, "cuda:99": "cuda:99"}
    arguments = {key: str(places.get(value, folders / str(value))) for key, value in arguments.items()}
    with pytest.raises(UserError, match=message):
        build_demo(str(folders / name), **arguments)
