"""The processors: images, prompts and captions, alone and together."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

import open_clip_transformers  # noqa: F401
from open_clip_transformers.processing.image_processing_open_clip import OpenClipImageProcessor
from open_clip_transformers.processing.image_processing_pil_open_clip import OpenClipImageProcessorPil
from open_clip_transformers.processing.processing_coca import CoCaProcessor
from open_clip_transformers.processing.processing_open_clip import OpenClipProcessor
from open_clip_transformers.processing.tokenization_open_clip import OpenClipTokenizer


pytestmark = pytest.mark.floor

BOS, EOS, A, CAT, PHOTO, OF = 49406, 49407, 320, 2368, 1125, 539
PROCESSORS = {"dual": OpenClipProcessor, "coca": CoCaProcessor}
every_processor = pytest.mark.parametrize("processor_class", PROCESSORS.values(), ids=PROCESSORS)


@pytest.fixture(scope="module")
def tokenizer() -> OpenClipTokenizer:
    return OpenClipTokenizer(model_max_length=19)


@pytest.fixture(scope="module")
def dual(tokenizer) -> OpenClipProcessor:
    return OpenClipProcessor(OpenClipImageProcessor(size=33), tokenizer)


@pytest.fixture(scope="module")
def coca(tokenizer) -> CoCaProcessor:
    return CoCaProcessor(OpenClipImageProcessor(size=33), tokenizer)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (41, 50, 3), dtype=np.uint8))


def shapes(outputs) -> dict:
    return {key: tuple(value.shape) for key, value in outputs.items()}


def test_dual_processor_prepares_images_and_texts(dual, image):
    texts = ["a cat.", "a photo of " * 20, "!"]
    outputs = dual(images=[image, image], text=texts, return_tensors="pt")
    assert shapes(outputs) == {"pixel_values": (2, 3, 33, 33), "input_ids": (3, 19), "attention_mask": (3, 19)}
    assert torch.equal(outputs.input_ids, open_clip.tokenize(texts, context_length=19))
    assert torch.equal(outputs.pixel_values[:1], dual.image_processor(image, return_tensors="pt").pixel_values)
    assert outputs.to(torch.float16).pixel_values.dtype == torch.float16
    assert outputs.to(torch.float16).input_ids.dtype == torch.int64


def test_dual_processor_prepares_one_kind_alone(dual, image):
    assert shapes(dual(images=image, return_tensors="pt")) == {"pixel_values": (1, 3, 33, 33)}
    assert shapes(dual(text="a cat", return_tensors="pt")) == {"input_ids": (1, 19), "attention_mask": (1, 19)}
    outputs = dual(text="a cat", padding="longest", return_tensors="np")
    assert outputs["input_ids"].tolist() == [[BOS, A, CAT, EOS]]
    assert dual(text=["a", "a cat"], padding=False)["input_ids"] == [[BOS, A, EOS], [BOS, A, CAT, EOS]]


@every_processor
def test_processors_flatten_nested_batches(processor_class, dual, image):
    processor = processor_class(dual.image_processor, dual.tokenizer)
    flat = processor(images=[image, image], text=["a", "a cat"], return_tensors="pt")
    nested = processor(images=[[image], [image]], text=[["a"], ("a cat",)], return_tensors="pt")
    assert shapes(flat) == shapes(nested)
    assert torch.equal(flat.input_ids, nested.input_ids)


@every_processor
def test_processors_take_arguments_of_both_parts(processor_class, dual, image):
    processor = processor_class(dual.image_processor, dual.tokenizer)
    kwargs = {
        "text_kwargs": {"return_tensors": "pt"},
        "images_kwargs": {"do_normalize": False, "return_tensors": "pt"},
    }
    outputs = processor(images=image, text="a cat", **kwargs)
    assert outputs["pixel_values"].min() >= 0 and outputs["pixel_values"].max() <= 1
    assert outputs["input_ids"].shape[0] == 1


@every_processor
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "neither images nor text"),
        ({"text": 3}, "string or a list of strings; got 3"),
        ({"text": []}, "string or a list of strings; got"),
        ({"text": ["a", None]}, "string or a list of strings; got None as text 1"),
        ({"images": []}, "empty list of images"),
    ],
    ids=["nothing", "number", "no_texts", "none_in_texts", "no_images"],
)
def test_processors_wrong_input_is_refused(processor_class, dual, inputs, message):
    with pytest.raises(ValueError, match=message):
        processor_class(dual.image_processor, dual.tokenizer)(**inputs)


def test_coca_processor_image_alone_makes_no_ids(coca, image):
    assert shapes(coca(images=[image], return_tensors="pt")) == {"pixel_values": (1, 3, 33, 33)}


def test_coca_processor_text_is_a_prompt(coca, image):
    outputs = coca(images=image, text="A photo  of", return_tensors="pt")
    assert shapes(outputs) == {"pixel_values": (1, 3, 33, 33), "input_ids": (1, 4), "attention_mask": (1, 4)}
    assert outputs.input_ids.tolist() == [[BOS, A, PHOTO, OF]]
    # As the image-text-to-text pipeline calls it without a prompt.
    assert coca(images=image, text="", return_tensors="pt").input_ids.tolist() == [[BOS]]
    assert coca(text="a cat", add_eos=False, return_tensors="pt").input_ids.tolist() == [[BOS, A, CAT]]
    assert coca(text=["a cat", "a"], add_eos=False, padding=False)["input_ids"] == [[BOS, A, CAT], [BOS, A]]


def test_coca_processor_text_without_images_is_for_embeddings(coca):
    texts = ["a cat", "a photo of a cat."]
    assert torch.equal(coca(text=texts, return_tensors="pt").input_ids, open_clip.tokenize(texts, context_length=19))


@pytest.mark.parametrize("kwargs", [{}, {"padding": True}, {"padding": "longest"}], ids=["default", "true", "longest"])
def test_coca_processor_pads_prompts_on_the_left(coca, image, kwargs):
    prompts = ["", "a photo of", "a"]
    outputs = coca(images=[image] * 3, text=prompts, return_tensors="pt", **kwargs)
    assert outputs.input_ids.tolist() == [[0, 0, 0, BOS], [BOS, A, PHOTO, OF], [0, 0, BOS, A]]
    assert outputs.attention_mask.tolist() == [[0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 1, 1]]
    assert outputs.pixel_values.shape == (3, 3, 33, 33)


def test_coca_processor_repeats_one_prompt_for_every_image(coca, image):
    outputs = coca(images=[image, image], text="a cat", return_tensors="pt")
    assert outputs.input_ids.tolist() == [[BOS, A, CAT]] * 2
    with pytest.raises(ValueError, match=r"2 images and 3 prompts.*add_eos=True"):
        coca(images=[image, image], text=["a", "b", "c"])


def test_coca_processor_long_prompts(coca):
    fits = "a " * 17
    assert coca(text=fits, add_eos=False, return_tensors="pt").input_ids.shape == (1, 18)
    with pytest.raises(ValueError, match=r"19 tokens; 18 at most.*truncation=True"):
        coca(text=fits + "a", add_eos=False)
    assert coca(text=fits + "a", add_eos=False, truncation=True, return_tensors="pt").input_ids.shape == (1, 18)
    cut = coca(text=fits, add_eos=False, truncation=True, max_length=5, return_tensors="pt")
    assert cut.input_ids.tolist() == [[BOS] + [A] * 4]


def test_coca_processor_captions_to_score(coca, image):
    texts = ["a cat", "a photo of a cat.", "cat " * 40]
    outputs = coca(images=[image], text=texts, add_eos=True, return_tensors="pt")
    assert shapes(outputs) == {"pixel_values": (1, 3, 33, 33), "input_ids": (3, 19), "attention_mask": (3, 19)}
    assert torch.equal(outputs.input_ids, open_clip.tokenize(texts, context_length=19))
    # The tokenizer itself, which the zero-shot pipeline calls, makes whole captions.
    assert torch.equal(coca.tokenizer(texts, padding=True, return_tensors="pt").input_ids, outputs.input_ids)


@pytest.mark.parametrize(
    "kwargs",
    [{"padding": "max_length"}, {"text_kwargs": {"padding": "max_length"}}, {"text_kwargs": {"return_labels": True}}],
    ids=["max_length", "nested", "nested_labels"],
)
def test_coca_processor_makes_captions_where_it_is_called_as_for_training(coca, image, kwargs):
    texts = ["a cat", "a photo of a cat."]
    outputs = coca(images=[image] * 2, text=texts, return_tensors="pt", **kwargs)
    # transformers 5.5 leaves return_tensors out beside text_kwargs.
    assert torch.equal(torch.as_tensor(outputs["input_ids"]), open_clip.tokenize(texts, context_length=19))
    assert ("labels" in outputs) == ("return_labels" in str(kwargs))
    short = coca(images=image, text="a cat", padding="max_length", max_length=8, return_tensors="pt")
    assert short.input_ids.tolist() == [[BOS, A, CAT, EOS, 0, 0, 0, 0]]
    prompt = coca(images=image, text="a cat", padding="max_length", max_length=5, add_eos=False, return_tensors="pt")
    assert prompt.input_ids.tolist() == [[0, 0, BOS, A, CAT]]


@pytest.mark.parametrize("return_tensors", ["pt", "np", None])
def test_coca_processor_labels_leave_padding_out(coca, image, return_tensors):
    texts = ["a cat", "a!<"]  # the second one holds a token with the id of padding
    outputs = coca(images=[image] * 2, text=texts, return_labels=True, return_tensors=return_tensors)
    labels, input_ids = (np.asarray(outputs[key]).tolist() for key in ("labels", "input_ids"))
    assert labels == [[BOS, A, CAT, EOS] + [-100] * 15, [BOS, A, 0, 283, EOS] + [-100] * 14]
    assert input_ids == [[BOS, A, CAT, EOS] + [0] * 15, [BOS, A, 0, 283, EOS] + [0] * 14]


@pytest.mark.parametrize("inputs", [{}, {"text": "a cat", "add_eos": False}], ids=["no_text", "prompt"])
def test_coca_processor_labels_of_no_caption_are_refused(coca, image, inputs):
    with pytest.raises(ValueError, match="return_labels=True makes labels of whole captions"):
        coca(images=image, return_labels=True, **inputs)


def test_coca_processor_post_processing(coca):
    ids = torch.tensor([[0, 0, BOS, A, CAT, 269, EOS, 0], [BOS, A, PHOTO, OF, A, CAT, EOS, A]])
    assert coca.post_process_image_text_to_text(ids) == ["a cat.", "a photo of a cat"]
    assert coca.post_process_image_text_to_text(ids[1]) == ["a photo of a cat"]
    assert coca.post_process_image_text_to_text(ids[:1], clean_up_tokenization_spaces=False) == ["a cat ."]
    assert coca.post_process_image_text_to_text(ids[1:, :4], skip_special_tokens=False) == [
        "<start_of_text>a photo of "
    ]
    # The pipeline cuts the decoded prompt off the decoded result.
    prompt = coca(text="A photo, of: a", add_eos=False, return_tensors="pt").input_ids
    result = torch.cat([prompt, torch.tensor([[CAT, EOS]])], dim=1)
    (prompt_text,), (text,) = map(coca.post_process_image_text_to_text, (prompt, result))
    assert text == prompt_text + " cat"


@every_processor
@pytest.mark.parametrize(
    "image_processor_class", [OpenClipImageProcessor, OpenClipImageProcessorPil], ids=["torchvision", "pil"]
)
def test_auto_processor_loads_a_saved_folder(tmp_path, tokenizer, image, processor_class, image_processor_class):
    processor = processor_class(image_processor_class(size=29, resize_mode="longest", fill_color=9), tokenizer)
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "open_clip_coca"}))
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is processor_class
    assert type(loaded.image_processor) is OpenClipImageProcessor
    assert type(loaded.tokenizer) is OpenClipTokenizer
    assert loaded.model_input_names == ["pixel_values", "input_ids", "attention_mask"]
    expected = processor(images=image, text="a cat", return_tensors="pt")
    outputs = loaded(images=image, text="a cat", return_tensors="pt")
    assert torch.equal(outputs.input_ids, expected.input_ids)
    torch.testing.assert_close(outputs.pixel_values, expected.pixel_values, rtol=0, atol=2e-6)


def user(image, *texts) -> dict:
    parts = [] if image is None else [{"type": "image", "image": image}]
    return {"role": "user", "content": [*parts, *({"type": "text", "text": text} for text in texts)]}


def said(text: str) -> dict:
    return {"role": "assistant", "content": text}


ASKED = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}


def test_chat_is_its_image_and_its_text_as_a_prompt(coca, image, tmp_path):
    image.save(tmp_path / "image.png")
    for source in ({"image": image}, {"path": str(tmp_path / "image.png")}):
        chat = [{"role": "user", "content": [{"type": "image", **source}, {"type": "text", "text": "a photo of"}]}]
        inputs = coca.apply_chat_template(chat, add_generation_prompt=True, **ASKED)
        expected = coca(images=image, text="a photo of", return_tensors="pt")
        assert inputs.keys() == expected.keys()
        assert all(torch.equal(inputs[name], tensor) for name, tensor in expected.items())
    assert coca.apply_chat_template([user(image)], **ASKED).input_ids.tolist() == [[BOS]]
    assert coca.apply_chat_template([user(image, "a", " cat ")]) == "a  cat"
    assert coca.apply_chat_template([user(image, "a cat")], tokenize=True) == [[BOS, A, CAT]]


def test_chats_of_a_batch_are_padded_as_prompts(coca, image):
    chats = [[user(image, "a photo of")], [user(image)]]
    inputs = coca.apply_chat_template(chats, **ASKED)
    assert inputs.input_ids.tolist() == [[BOS, A, PHOTO, OF], [0, 0, 0, BOS]]
    assert inputs.pixel_values.shape == (2, 3, 33, 33)


def test_last_turn_of_a_chat_counts(coca, image):
    black = Image.new("RGB", image.size)
    chat = [user(black, "hello"), said("a photo of"), user(image, "a")]
    inputs = coca.apply_chat_template(chat, **ASKED)
    expected = coca(images=image, text="a", return_tensors="pt")
    assert all(torch.equal(inputs[name], tensor) for name, tensor in expected.items())
    begun = [user(image, "a"), said("photo")]
    assert coca.apply_chat_template(begun, continue_final_message=True) == "a photo"
    assert coca.apply_chat_template(begun, **ASKED).input_ids.tolist() == [[BOS, A, PHOTO]]


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([user(None, "hello")], "has 0 images; expected one"),
        ([{"role": "user", "content": "hello"}], "has 0 images; expected one"),
        ([user("a.png"), said("a cat"), user(None, "and now?")], "has 0 images; expected one"),
        ([{"role": "user", "content": [{"type": "image", "path": "a.png"}] * 2}], "has 2 images; expected one"),
        ([{"role": "system", "content": "be brief"}, user("a.png")], "role system; a captioner takes no instructions"),
        ([said("a cat")], "no message of the user"),
        ([], "no message of the user"),
        ([{"role": "user"}], "needs a 'role' and a 'content'"),
        (user("a.png"), "a chat is a list of messages"),
        (["hello"], "needs a 'role' and a 'content'"),
        ([{"role": "user", "content": None}], "content of a message must be a string, or a list of such parts"),
        ([{"role": "user", "content": ["hello"]}], "content of a message must be a string"),
        ([user("a.png", None)], "content of a message must be a string"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "a.png"}]}], "'type': 'image'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "has none of image, path, url, base64"),
    ],
    ids=["text", "string", "follow-up", "two images", "system prompt", "assistant alone", "empty", "no content"]
    + ["a message", "strings", "none", "no parts", "no text", "of another", "no source"],
)
def test_chat_that_no_caption_can_answer_is_refused(coca, chat, message):
    with pytest.raises(ValueError, match=message):
        coca.apply_chat_template(chat, **ASKED)


def test_chat_template_is_saved_and_loaded(coca, image, tmp_path):
    coca.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").is_file()
    (tmp_path / "chat_template.jinja").write_text("a {{ messages[0].content[1].text }}")
    loaded = CoCaProcessor.from_pretrained(tmp_path)
    assert loaded.apply_chat_template([user(image, "cat")]) == "a cat"
    (tmp_path / "chat_template.jinja").unlink()  # folders from before have none
    assert CoCaProcessor.from_pretrained(tmp_path).apply_chat_template([user(image, "cat")]) == "cat"
