"""The pipelines that caption: image-to-text, and image-text-to-text, whose prompt may be left out here, too."""

import io
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from PIL import Image
from transformers import GenerationConfig
from transformers.pipelines import ImageTextToTextPipeline, Pipeline

from .image_settings_open_clip import open_image
from .pipelines_compat import transformers_own_task


TASK = "image-to-text"
PROMPTED_TASK = "image-text-to-text"
MODEL_TYPES = ("open_clip_coca", "open_clip_mammut")
_NO_IMAGES = "Got no images: pass an image, or a list, generator or dataset of images."

# Arguments of `generate` that may be passed by name; the groups are ours.
_GENERATION_ARGUMENTS = {name for name in vars(GenerationConfig()) if not name.startswith("_")} | {
    "diversity_penalty",
    "generation_config",
    "num_beam_groups",
}


class ImageToTextPipeline(ImageTextToTextPipeline):
    """Captions images: `pipeline("image-to-text", model=folder)(image)`.

    transformers 5 dropped the task of this name in favour of image-text-to-text, which asks for a text and returns it.
    Here a text is optional. Images are opened and converted by the model's image processor, as open_clip does: EXIF
    data do not turn them. `stop_strings` are found with the pipeline's tokenizer.

    A model of another type gets what transformers itself has for it, an image-text-to-text pipeline.

    Takes the arguments of [`~transformers.Pipeline`], and arguments of a call that shall hold for every call.
    """

    def __new__(cls, model=None, *args, task: str = TASK, **kwargs):
        if model is not None and model.config.model_type not in MODEL_TYPES:
            task = transformers_own_task(task, default=PROMPTED_TASK)
            return ImageTextToTextPipeline(model, *args, task=task, **kwargs)
        return super().__new__(cls)

    def __init__(self, *args, generate_kwargs: dict[str, Any] | None = None, **kwargs):
        # The base class keeps some arguments of `generate` for itself, each version others.
        generate_kwargs = _merge_generation_arguments(generate_kwargs, kwargs)
        super().__init__(*args, generate_kwargs=generate_kwargs, **kwargs)

    def check_model_type(self, supported_models):
        # Every captioner that generates will do, whichever Auto class loaded it.
        if not self.model.can_generate():
            super().check_model_type(supported_models)

    def _sanitize_parameters(
        self,
        prompt: str | None = None,
        timeout: float | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        return_full_text: bool | None = None,
        return_tensors: bool | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs,
    ):
        forward = _merge_generation_arguments(generate_kwargs, kwargs)
        preprocess = _given(prompt=prompt, timeout=timeout)
        postprocess = _given(
            return_full_text=return_full_text,
            return_tensors=return_tensors,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
        )
        return {**preprocess, **kwargs}, forward, postprocess

    def __call__(self, images=None, text: str | list[str] | None = None, **kwargs):
        """Captions images.

        Args:
            images: a path, a URL, an open file or its bytes, a PIL image, an array or tensor as the image processor
                takes it, or `{"images": image, "text": prompt}`; or a list, a generator or a torch dataset of these.
            text: what every caption starts with, or a list of texts, one for each of a list of images.
            prompt: the same as `text`.
            batch_size: images that the model works on at once, 1 by default.
            timeout: longest wait for an image from the web, in seconds.
            max_new_tokens: longest caption in tokens, the prompt not counted; and every other argument of
                [`~transformers.GenerationConfig`], such as `num_beams`, and `num_beam_groups`.
            generate_kwargs: arguments of `generate`, those included that cannot be passed by name.
            return_full_text: `False` leaves the prompt out of `generated_text`.
            return_tensors: return `generated_token_ids` instead of `generated_text`.
            clean_up_tokenization_spaces: see the tokenizer.
            kwargs: arguments of the processor.

        Returns:
            For an image `[{"generated_text": caption}]`, with as many entries as `num_return_sequences`. For a list a
            list of these, for a generator or dataset an iterator over these.

        Raises:
            ValueError: no images, or `None` among them, texts and images of different number, or texts and images that
                do not fit in the model.
            OSError: an image cannot be opened.
        """
        if images is None:
            raise ValueError(_NO_IMAGES)
        text = kwargs.pop("prompt", None) if text is None else text
        if isinstance(text, (list, tuple)):
            images = _pair(images, list(_checked(text, "Text")))
        elif text is not None:
            kwargs["prompt"] = text
        if isinstance(images, (list, tuple)):
            images = list(_checked(images))
        elif isinstance(images, Iterator) and not _is_file(images):
            images = _Stream(images)
        if isinstance(images, list) and not images:
            return []
        return Pipeline.__call__(self, images, **kwargs)

    def preprocess(self, inputs=None, prompt: str = "", timeout: float | None = None, **processor_kwargs) -> dict:
        image = inputs
        if isinstance(inputs, dict):
            if not {"images"} <= inputs.keys() <= {"images", "text"}:
                raise ValueError(f"Expected {{'images': image, 'text': prompt}}, got the keys {sorted(inputs)}.")
            image, prompt = inputs["images"], inputs.get("text", prompt)
        image = _opened(image, timeout)
        model_inputs = self.processor(images=image, return_tensors="pt", **processor_kwargs).to(dtype=self.dtype)
        return {"pixel_values": model_inputs["pixel_values"], "text": prompt}

    def _forward(self, model_inputs, **generate_kwargs) -> dict[str, torch.Tensor]:
        # Prompts become tokens here, and not one by one in `preprocess`, because those of a batch are padded to the
        # longest, on the left.
        prompts = [model_inputs["text"]] if isinstance(model_inputs["text"], str) else model_inputs["text"]
        tokens = self.processor(text=prompts, add_eos=False, return_tensors="pt").to(self.device)
        if not generate_kwargs.keys() & {"max_length", "max_new_tokens", "generation_config"}:
            generate_kwargs["max_new_tokens"] = self._default_max_new_tokens(tokens["input_ids"].shape[1])
        sequences = self.model.generate(
            **tokens,
            **{
                "pixel_values": model_inputs["pixel_values"],
                "tokenizer": self.tokenizer,
                **generate_kwargs,
                "return_dict_in_generate": False,
            },
        )
        return {
            "generated_sequence": sequences.reshape(len(prompts), -1, sequences.shape[-1]),
            "input_ids": tokens["input_ids"],
        }

    def _default_max_new_tokens(self, prompt_length: int) -> int:
        # As many as without a prompt: of one `max_length` for prompt and caption, a long prompt would leave the
        # captions of its whole batch little.
        own, limit = self.model.generation_config, self.model.config.max_position_embeddings
        return min(own.max_new_tokens or (own.max_length or limit) - 1, limit - prompt_length)

    def postprocess(
        self, model_outputs, return_full_text: bool = True, return_tensors: bool = False, **decode_kwargs
    ) -> list[dict[str, Any]]:
        (sequences,) = model_outputs["generated_sequence"]
        if not return_full_text:
            sequences = sequences[:, model_outputs["input_ids"].shape[-1] :]
        if return_tensors:
            return [{"generated_token_ids": token_ids} for token_ids in sequences]
        texts = self.processor.batch_decode(sequences, skip_special_tokens=True, **decode_kwargs)
        return [{"generated_text": text} for text in texts]


class CoCaImageTextToTextPipeline(ImageTextToTextPipeline):
    """Captions images that come with a text: `pipeline("image-text-to-text", model=folder)(image, text=prompt)`.

    As transformers' pipeline of this task, but that a text is optional, that images may be open files or bytes, and
    that arguments of `generate` may be passed by name, `stop_strings` included, which are found with the pipeline's
    tokenizer. A model of another type gets transformers' own.
    """

    def __new__(cls, model=None, *args, **kwargs):
        if model is not None and model.config.model_type not in MODEL_TYPES:
            return ImageTextToTextPipeline(model, *args, **kwargs)
        return super().__new__(cls)

    def __call__(self, images=None, text=None, **kwargs):
        """Captions images; see [`~transformers.ImageTextToTextPipeline`].

        Args:
            images: an image, a list of images, `{"images": image, "text": prompt}`, a list, generator or dataset of
                these, or a chat, whose last message of the user has one image.
            text: what the captions start with, a text or a list of texts, one for each image; or a chat.
            kwargs: as transformers' pipeline takes them.

        Raises:
            ValueError: no image, or `None` in place of an image or a text.
        """
        if any(_is_chat(argument) for argument in (images, text)):
            return super().__call__(images, text, **kwargs)
        if images is None:
            raise ValueError(f"{_NO_IMAGES} This model writes captions, and continues no text alone.")
        if isinstance(images, (list, tuple)):
            images = list(_checked(images))
            if text is None and not any(isinstance(image, dict) for image in images):
                text = [""] * len(images)
        elif isinstance(images, Iterator) and not _is_file(images):
            images = _Stream(images)
        if isinstance(text, (list, tuple)):
            text = list(_checked(text, "Text"))
        return Pipeline.__call__(self, images if text is None else {"images": images, "text": text}, **kwargs)

    def _sanitize_parameters(self, generate_kwargs=None, stop_sequence: str | list[str] | None = None, **kwargs):
        generate_kwargs = _merge_generation_arguments(generate_kwargs, kwargs)
        if stop_sequence is not None:
            generate_kwargs["stop_strings"] = stop_sequence
        return super()._sanitize_parameters(generate_kwargs=generate_kwargs or None, **kwargs)

    def preprocess(self, inputs=None, timeout: float | None = None, **kwargs):
        if hasattr(inputs, "messages"):
            return super().preprocess(inputs, timeout=timeout, **kwargs)
        inputs = {"text": "", **(inputs if isinstance(inputs, dict) else {"images": inputs})}
        if "images" not in inputs:
            raise ValueError(
                "Expected an image, or a chat, a list of messages with 'role' and 'content'; got a dict with "
                f"{', '.join(sorted(map(repr, inputs)))}."
            )
        images, text = inputs["images"], inputs["text"]
        images = (
            [_opened(image, timeout) for image in images] if isinstance(images, list) else _opened(images, timeout)
        )
        processor_kwargs = kwargs.pop("processor_kwargs", None) or kwargs
        model_inputs = self.processor(images=images, text=text, return_tensors="pt", **processor_kwargs)
        return {**model_inputs.to(dtype=self.dtype), "text": text}

    def _forward(self, model_inputs, generate_kwargs=None):
        return super()._forward(model_inputs, {"tokenizer": self.tokenizer, **(generate_kwargs or {})})


def _is_chat(argument) -> bool:
    """Whether an argument holds messages, of one chat or of several."""
    if isinstance(argument, (list, tuple)):
        return bool(argument) and _is_chat(argument[0])
    return isinstance(argument, dict) and "role" in argument


def _checked(items: Iterable, what: str = "Image") -> Iterator:
    """The items of a list or stream, until one is `None` or has `None` for its image: a `ValueError` says which."""
    for index, item in enumerate(items):
        if (item.get("images", item) if isinstance(item, dict) else item) is None:
            raise ValueError(f"{what} {index} (counted from 0) is None: leave it out, or put another in its place.")
        yield item


def _is_file(image) -> bool:
    return hasattr(image, "read")


def _opened(image, timeout: float | None):
    """The image in an open file or its bytes, or at a URL if there is a timeout; others as they are."""
    if image is None:
        raise ValueError(_NO_IMAGES)
    if isinstance(image, (bytes, bytearray)):
        image = io.BytesIO(image)
    if _is_file(image):
        return Image.open(image)
    return open_image(image, timeout=timeout) if timeout is not None and isinstance(image, str) else image


def _given(**parameters) -> dict[str, Any]:
    """The parameters that are not `None`."""
    return {name: value for name, value in parameters.items() if value is not None}


class _Stream(torch.utils.data.IterableDataset):
    """An iterator as a dataset: of other iterators transformers takes only generators, which 5.5 reads to the end."""

    def __init__(self, items: Iterator):
        self.items = items

    def __iter__(self):
        return _checked(self.items)


def _merge_generation_arguments(generate_kwargs: dict[str, Any] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """`generate_kwargs` and those of `kwargs` that `generate` takes, which are removed there."""
    merged = dict(generate_kwargs or {})
    for name in _GENERATION_ARGUMENTS & kwargs.keys():
        if name in merged:
            raise ValueError(f"Pass {name} in generate_kwargs or by name, not both.")
        merged[name] = kwargs.pop(name)
    return merged


def _pair(images, texts) -> list[dict]:
    """Each image with its text."""
    if not isinstance(images, (list, tuple)) or len(images) != len(texts):
        got = f"{len(images)} images" if isinstance(images, (list, tuple)) else type(images).__name__
        raise ValueError(f"A list of texts needs a list of as many images: got {len(texts)} texts and {got}.")
    return [{"images": image, "text": text} for image, text in zip(images, texts)]


__all__ = ["CoCaImageTextToTextPipeline", "ImageToTextPipeline"]
