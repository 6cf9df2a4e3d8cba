"""pipeline("image-text-to-text") on a CoCa folder: transformers' own, with prompts that may be left out, and chats."""

import io

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor, ImageTextToTextPipeline, pipeline


pytestmark = pytest.mark.floor

PROMPTS = ["a photo of", "hello", "two very long cats and", ""]


@pytest.fixture(scope="module")
def pipe(coca_folder):
    return pipeline("image-text-to-text", model=str(coca_folder))


@pytest.fixture(scope="module")
def captions(coca_folder, images) -> list[str]:
    model, processor = (
        auto_class.from_pretrained(coca_folder) for auto_class in (AutoModelForImageTextToText, AutoProcessor)
    )
    inputs = [processor(images=image, text=text, return_tensors="pt") for image, text in zip(images, PROMPTS)]
    outputs = [model.generate(**row, max_new_tokens=6)[0] for row in inputs]
    return processor.batch_decode(outputs, skip_special_tokens=True)


def test_image_text_to_text_is_transformers_own(pipe, caplog):
    assert isinstance(pipe, ImageTextToTextPipeline)
    assert pipe.task == "image-text-to-text"
    assert not caplog.records


def test_image_text_to_text_continues_the_text(pipe, images, captions):
    for image, prompt, caption in zip(images, PROMPTS, captions):
        assert pipe(image, text=prompt, max_new_tokens=6) == [{"input_text": prompt, "generated_text": caption}]


def test_image_text_to_text_takes_files_and_urls(pipe, image_files, image_urls, captions):
    for image in (str(image_files[0]), image_urls[0]):
        assert pipe(image, text=PROMPTS[0], max_new_tokens=6)[0]["generated_text"] == captions[0]


def test_image_text_to_text_takes_a_text_for_each_image(pipe, images, captions):
    results = pipe(images, text=PROMPTS, max_new_tokens=6)
    assert [result["generated_text"] for result in results] == captions


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_image_text_to_text_batches_texts_of_different_lengths(pipe, images, captions, batch_size):
    pairs = ({"images": image, "text": text} for image, text in zip(images, PROMPTS))
    results = pipe(pairs, batch_size=batch_size, max_new_tokens=6)
    assert [result["generated_text"] for (result,) in results] == captions


def test_image_text_to_text_default_length_is_the_models(pipe, images):
    # The pipeline's own default of 256 new tokens would not fit.
    assert len(pipe(images[0], text="", return_tensors=True)[0]["generated_token_ids"]) == 11


def test_image_text_to_text_takes_arguments_of_generate(pipe, images, coca_folder):
    captioner = pipeline("image-to-text", model=str(coca_folder))
    settings = {"num_beams": 3, "max_new_tokens": 5}
    (result,) = pipe(images[1], text="a", generate_kwargs=settings)
    assert captioner(images[1], "a", **settings) == [{"generated_text": result["generated_text"]}]
    assert pipe(images[1], text="a", **settings) == [result]
    assert pipeline("image-text-to-text", model=str(coca_folder), **settings)(images[1], text="a") == [result]


@pytest.fixture(scope="module")
def promptless(pipe, images) -> list[str]:
    return [pipe(image, text="", max_new_tokens=6)[0]["generated_text"] for image in images]


def test_image_text_to_text_captions_without_a_text(pipe, images, image_files, image_urls, promptless):
    forms = [images[0], str(image_files[0]), image_urls[0], io.BytesIO(image_files[0].read_bytes())]
    for image in [*forms, image_files[0].read_bytes(), {"images": images[0]}]:
        assert pipe(image, max_new_tokens=6) == [{"input_text": "", "generated_text": promptless[0]}]
    for many in (images, [str(path) for path in image_files], image_urls):
        assert [result["generated_text"] for result in pipe(many, max_new_tokens=6)] == promptless


@pytest.mark.parametrize("batch_size", [1, 3])
def test_image_text_to_text_captions_streams_without_a_text(pipe, images, promptless, batch_size):
    for items in ((image for image in images), iter(images), [{"images": image} for image in images]):
        results = pipe(items, batch_size=batch_size, max_new_tokens=6)
        assert [result["generated_text"] for (result,) in results] == promptless


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "a"}, "Got no images"),
        ({}, "Got no images"),
        ({"images": {"images": None}}, "Got no images"),
        ({"text": []}, "Got no images"),
        ({"images": [None]}, "Image 0 .* is None"),
        ({"images": {"role": "user", "content": "hello"}}, "or a chat, a list of messages"),
        ({"images": [b"", None], "text": ["a", "b"]}, "Image 1 .* is None"),
        ({"images": [b"", {"images": None}]}, "Image 1 .* is None"),
        ({"images": [b"", b""], "text": ["a", None]}, "Text 1 .* is None"),
    ],
    ids=[
        "text alone",
        "nothing",
        "empty dict",
        "no texts",
        "list",
        "message",
        "second of two",
        "dict in a list",
        "text",
    ],
)
def test_image_text_to_text_says_what_is_missing(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)


def chat(image, *texts) -> list[dict]:
    parts = [{"type": "image", "image": image}, *({"type": "text", "text": text} for text in texts)]
    return [{"role": "user", "content": parts}]


def test_image_text_to_text_answers_a_chat_with_a_caption(pipe, images, captions, promptless):
    for image, prompt, caption, alone in zip(images, PROMPTS, captions, promptless):
        ((*_, answer),) = (result["generated_text"] for result in pipe(text=chat(image, prompt), max_new_tokens=6))
        assert answer["role"] == "assistant" and f"{prompt}{answer['content']}" == caption
        (result,) = pipe(chat(image), max_new_tokens=6, return_full_text=False)
        assert result["generated_text"] == alone


def test_image_text_to_text_answers_many_chats(pipe, images, captions):
    chats = [chat(image, prompt) for image, prompt in zip(images, PROMPTS)]
    for batch_size in (1, 4):
        results = pipe(chats, batch_size=batch_size, max_new_tokens=6, return_full_text=False)
        assert [prompt + result["generated_text"] for prompt, (result,) in zip(PROMPTS, results)] == captions


def test_image_text_to_text_goes_on_with_what_the_assistant_began(pipe, images, captions):
    begun = [*chat(images[2]), {"role": "assistant", "content": [{"type": "text", "text": PROMPTS[2]}]}]
    ((*_, answer),) = (result["generated_text"] for result in pipe(begun, max_new_tokens=6))
    assert answer["content"][0]["text"] == captions[2]


def test_stop_strings_end_captions(pipe, images, promptless, coca_folder):
    word = promptless[0].split()[1]
    ended = promptless[0][: promptless[0].index(word) + len(word)]
    settings = {"stop_strings": [word]}
    for arguments in (settings, {"generate_kwargs": settings}, {"stop_sequence": word}):
        assert pipe(images[0], **arguments)[0]["generated_text"] == ended
    captioner = pipeline("image-to-text", model=str(coca_folder))
    for arguments in (settings, {"generate_kwargs": settings}):
        assert captioner(images[0], **arguments) == [{"generated_text": ended}]
    model, processor = captioner.model, captioner.processor
    inputs = processor(images=images[0], return_tensors="pt")
    ids = model.generate(**inputs, **settings, tokenizer=processor)  # as `transformers serve` does
    assert processor.batch_decode(ids, skip_special_tokens=True) == [ended]
