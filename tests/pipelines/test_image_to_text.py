"""pipeline("image-to-text") on a CoCa folder: every kind of input, prompts, batches and generation arguments."""

import functools
import io
import json

import numpy
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    ImageTextToTextPipeline,
    pipeline,
)
from transformers.utils import logging

from open_clip_transformers import ImageToTextPipeline


pytestmark = pytest.mark.floor

PROMPTS = ["a photo of", "hello", "two very long cats and", ""]


@pytest.fixture(scope="module")
def pipe(coca_folder):
    return pipeline("image-to-text", model=str(coca_folder))


@pytest.fixture(scope="module")
def captions(coca_folder, images) -> list[str]:
    """Captions of the images by `generate`, one by one."""
    return [generated(coca_folder, image) for image in images]


@functools.cache
def loaded(folder):
    return AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def generated(folder, image, text=None, **kwargs) -> str:
    model, processor = loaded(folder)
    outputs = model.generate(**processor(images=image, text=text, return_tensors="pt"), **kwargs)
    return processor.batch_decode(outputs, skip_special_tokens=True)[0]


def texts(results) -> list[str]:
    """The captions of many images, of which each has one."""
    results = list(results)
    assert all(len(result) == 1 and result[0].keys() == {"generated_text"} for result in results)
    return [result[0]["generated_text"] for result in results]


def as_generator(items):
    yield from items


class Images(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_image_to_text_gives_our_pipeline_without_trust_or_warning(coca_folder, caplog):
    pipe = pipeline("image-to-text", model=str(coca_folder))
    assert type(pipe) is ImageToTextPipeline
    assert pipe.task == "image-to-text"
    assert not caplog.records


def test_captions_of_different_images_differ(captions):
    assert len(set(captions)) == len(captions)


def test_image_to_text_takes_one_image_in_every_form(pipe, images, image_files, image_urls, captions):
    array = numpy.array(images[0])
    forms = [images[0], str(image_files[0]), image_files[0], image_urls[0], array, torch.from_numpy(array)]
    forms += [image_files[0].read_bytes(), io.BytesIO(image_files[0].read_bytes()), image_files[0].open("rb")]
    for image in [*forms, {"images": images[0]}, {"images": image_urls[0], "text": ""}]:
        assert pipe(image) == [{"generated_text": captions[0]}]


def test_image_to_text_opens_images_as_the_processor_does(pipe, images, coca_folder, tmp_path):
    """EXIF data do not turn an image, and an alpha channel is dropped after the resize."""
    turned = Image.Exif()
    turned[0x0112] = 6
    images[0].save(tmp_path / "turned.png", exif=turned)
    assert pipe(tmp_path / "turned.png") == pipe(images[0])
    transparent = images[1].copy()
    transparent.putalpha(images[1].convert("L"))
    assert pipe(transparent) == [{"generated_text": generated(coca_folder, transparent)}]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
@pytest.mark.parametrize("container", [list, tuple], ids=["list", "tuple"])
def test_image_to_text_captions_a_list(pipe, images, captions, container, batch_size):
    results = pipe(container(images), batch_size=batch_size)
    assert type(results) is list
    assert texts(results) == captions


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("lazy", [as_generator, iter, Images], ids=["generator", "iterator", "dataset"])
def test_image_to_text_captions_images_as_they_come(pipe, images, captions, lazy, batch_size):
    results = pipe(lazy(images), batch_size=batch_size)
    assert not isinstance(results, list)
    assert texts(results) == captions


def test_image_to_text_reads_a_generator_as_it_goes(pipe, images, captions):
    def endless():
        while True:
            yield from images

    results = iter(pipe(endless(), batch_size=2))
    assert texts(next(results) for _ in range(6)) == captions + captions[:2]


def test_image_to_text_takes_lists_of_files_and_urls(pipe, image_files, image_urls, captions):
    assert texts(pipe([str(image_files[0]), image_urls[1], image_files[2], image_urls[3]], batch_size=3)) == captions


def test_image_to_text_takes_lists_and_streams_of_open_files(pipe, image_files, captions):
    contents = [path.read_bytes() for path in image_files]
    assert texts(pipe([*map(io.BytesIO, contents[:2]), *contents[2:]], batch_size=3)) == captions
    assert texts(pipe(map(io.BytesIO, contents))) == captions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["an image", None],), "Image 1 .* is None"),
        (([None, "an image"], ["a", "b"]), "Image 0 .* is None"),
        ((["an image", "an image"], ["a", None]), "Text 1 .* is None"),
        ((["an image", {"images": None, "text": "a"}],), "Image 1 .* is None"),
        (({"images": None},), "Got no images"),
        ((None,), "Got no images"),
    ],
    ids=["second", "first", "text", "dict in a list", "dict", "alone"],
)
def test_image_to_text_says_which_is_none(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(*arguments)


def test_image_to_text_says_which_of_a_stream_is_none(pipe, images):
    with pytest.raises(ValueError, match=r"Image 2 .* is None"):
        list(pipe(iter([*images[:2], None])))


def test_image_to_text_of_nothing_is_nothing(pipe):
    assert pipe([]) == []


def test_image_to_text_continues_a_prompt(pipe, images, coca_folder):
    expected = generated(coca_folder, images[1], "A Photo of", max_new_tokens=10)
    assert expected.startswith("a photo of ")
    assert pipe(images[1], prompt="A Photo of") == pipe(images[1], "A Photo of") == [{"generated_text": expected}]
    assert texts(pipe(images, text="A Photo of", batch_size=4))[1] == expected


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_image_to_text_takes_a_prompt_for_each_image(pipe, images, batch_size):
    """Prompts of different lengths in one batch give the captions that they give alone."""
    alone = [pipe(image, prompt) for image, prompt in zip(images, PROMPTS)]
    assert pipe(images, PROMPTS, batch_size=batch_size) == alone
    pairs = [{"images": image, "text": prompt} for image, prompt in zip(images, PROMPTS)]
    assert pipe(pairs, batch_size=batch_size) == alone
    assert list(pipe(iter(pairs), batch_size=batch_size)) == alone


def test_image_to_text_keeps_arguments_of_the_pipeline(coca_folder, images):
    pipe = pipeline(
        "image-to-text", model=str(coca_folder), prompt="hello", num_beams=2, max_new_tokens=4, batch_size=3
    )
    settings = {"num_beams": 2, "max_new_tokens": 4}
    assert texts(pipe(images)) == [generated(coca_folder, image, "hello", **settings) for image in images]
    settings = {"num_beams": 3, "max_new_tokens": 4}
    assert pipe(images[0], "a", num_beams=3) == [
        {"generated_text": generated(coca_folder, images[0], "a", **settings)}
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 3},
        {"max_length": 7},
        {"num_beams": 3, "max_new_tokens": 6},
        {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.7, "max_new_tokens": 6},
        {"repetition_penalty": 5.0},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_image_to_text_generates_as_asked(pipe, images, coca_folder, settings):
    expected = [generated(coca_folder, image, **settings) for image in images[:2]]
    assert texts(pipe(images[:2], batch_size=2, **settings)) == expected
    assert texts(pipe(images[:2], generate_kwargs=settings)) == expected


def test_image_to_text_samples_the_same_after_the_same_seed(pipe, images):
    torch.manual_seed(3)
    first = pipe(images[0], do_sample=True, top_k=20, temperature=2.0)
    assert first != pipe(images[0], do_sample=True, top_k=20, temperature=2.0)
    torch.manual_seed(3)
    assert first == pipe(images[0], do_sample=True, top_k=20, temperature=2.0)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_image_to_text_returns_as_many_captions_as_asked(pipe, images, batch_size):
    settings = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 5}
    results = pipe(images[:3], batch_size=batch_size, **settings)
    assert results == [pipe(image, **settings) for image in images[:3]]
    assert all(len({caption["generated_text"] for caption in result}) == 3 for result in results)


def test_image_to_text_leaves_out_the_prompt_on_request(pipe, images):
    full = pipe(images[:2], PROMPTS[:2], batch_size=2)
    new = pipe(images[:2], PROMPTS[:2], batch_size=2, return_full_text=False)
    for prompt, (with_prompt,), (without,) in zip(PROMPTS, full, new):
        assert with_prompt["generated_text"] == f"{prompt} {without['generated_text']}"


def test_image_to_text_returns_token_ids_on_request(pipe, images, captions):
    ((result,),) = pipe(images[:1], return_tensors=True)
    assert result.keys() == {"generated_token_ids"}
    assert pipe.tokenizer.decode(result["generated_token_ids"], skip_special_tokens=True) == captions[0]


def test_image_to_text_default_captions_fit_behind_a_long_prompt(pipe, images):
    limit = pipe.model.config.max_position_embeddings
    ((result,),) = pipe(images[:1], "cat " * (limit - 5), return_tensors=True)
    assert len(result["generated_token_ids"]) == limit


def test_image_to_text_takes_the_base_model_and_a_processor(coca_folder, images, captions, caplog):
    model, processor = AutoModel.from_pretrained(coca_folder), AutoProcessor.from_pretrained(coca_folder)
    assert texts(pipeline("image-to-text", model=model, processor=processor)(images)) == captions
    assert not caplog.records


def test_image_to_text_ignores_the_hub_code_of_a_folder(coca_folder, images, captions, tmp_path):
    AutoModelForImageTextToText.from_pretrained(coca_folder).save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(coca_folder).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    impl = {"impl": "pipeline_image_to_text.ImageToTextPipeline", "pt": ["AutoModelForImageTextToText"]}
    (tmp_path / "config.json").write_text(json.dumps({**config, "custom_pipelines": {"image-to-text": impl}}))
    assert texts(pipeline("image-to-text", model=str(tmp_path))(images)) == captions


def test_image_to_text_saves_what_it_can_load(pipe, images, captions, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert texts(pipeline("image-to-text", model=str(tmp_path))(images)) == captions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Got no images"),
        ({"images": ["a.png", "b.png"], "text": ["a"]}, "got 1 texts and 2 images"),
        ({"images": "a.png", "text": ["a"]}, "got 1 texts and str"),
        ({"images": {"image": "a.png"}}, r"got the keys \['image'\]"),
    ],
    ids=["no images", "too few texts", "texts for one image", "unknown key"],
)
def test_image_to_text_says_what_is_wrong_with_a_call(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)


def test_image_to_text_refuses_an_argument_given_twice(pipe, images):
    with pytest.raises(ValueError, match="num_beams in generate_kwargs or by name"):
        pipe(images, num_beams=2, generate_kwargs={"num_beams": 3})


def test_image_to_text_refuses_captions_that_do_not_fit(pipe, images):
    with pytest.raises(ValueError, match="does not fit in the model's 23 positions"):
        pipe(images[0], max_new_tokens=23)


def test_image_to_text_says_which_image_cannot_be_read(pipe, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(OSError, match=r"text\.png"):
        pipe(str(tmp_path / "text.png"))


@pytest.fixture
def quiet():
    """5.23 cannot format its own warning about the task."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(verbosity)


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory):
    """A tiny captioning model of transformers itself."""
    folder = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "photo", "cat"]
    (folder / "vocab.txt").write_text("\n".join(words))
    stack = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = {**stack, **ids, "vocab_size": len(words), "encoder_hidden_size": 16, "projection_dim": 8}
    config = BlipConfig(text_config=text, vision_config={**stack, "image_size": 16, "patch_size": 8})
    BlipForConditionalGeneration(config).save_pretrained(folder)
    image_processor = BlipImageProcessor(size={"height": 16, "width": 16})
    BlipProcessor(image_processor, BertTokenizer(str(folder / "vocab.txt"))).save_pretrained(folder)
    return folder


def test_image_to_text_leaves_other_models_to_transformers(blip_folder, images, quiet):
    pipe = pipeline("image-to-text", model=str(blip_folder))
    assert type(pipe) is ImageTextToTextPipeline
    assert pipe.task == "image-text-to-text"
    with pytest.raises(ValueError, match="must provide text"):
        pipe(images[0])
    assert pipe(images[0], text="a photo", max_new_tokens=3)[0]["generated_text"].startswith("a photo")
