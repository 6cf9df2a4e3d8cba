"""pipeline("image-text-to-text"), transformers' own, on a CoCa folder."""

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
    assert type(pipe) is ImageTextToTextPipeline
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
