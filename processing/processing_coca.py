"""Processor of CoCa: images with prompts to continue, or with whole captions to train on or to score."""

from collections.abc import Mapping, Sequence
from reprlib import repr as brief
from typing import Any

from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import ProcessingKwargs, TextKwargs, Unpack

from .image_settings_open_clip import OpenClipImageProcessorKwargs
from .processing_open_clip import OpenClipProcessor
from .token_padding import check_lengths


class CoCaTextKwargs(TextKwargs, total=False):  # type: ignore[call-arg]
    r"""
    add_eos (`bool`, *optional*):
        Whether texts are whole captions that end, instead of prompts.
    return_labels (`bool`, *optional*):
        Also return `labels` for the caption loss.
    """

    add_eos: bool | None
    return_labels: bool | None


class CoCaProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    images_kwargs: OpenClipImageProcessorKwargs
    text_kwargs: CoCaTextKwargs
    _defaults = {}  # transformers 5.5 reads it


# Where a message may have its image.
_IMAGE_SOURCES = ("image", "path", "url", "base64")

# Arguments of the tokenizer that prompts have no use for.
_OF_CAPTIONS = {
    "is_split_into_words",
    "return_length",
    "return_offsets_mapping",
    "return_overflowing_tokens",
    "return_special_tokens_mask",
    "return_token_type_ids",
    "stride",
    "text_pair",
}

# The texts of messages, one behind the other: what a caption starts with. A captioner was taught no other marks.
CHAT_TEMPLATE = (
    "{%- set prompt = namespace(text='') -%}"
    "{%- for message in messages -%}"
    "{%- if message.content is string -%}{%- set prompt.text = prompt.text ~ ' ' ~ message.content -%}"
    "{%- else -%}{%- for part in message.content if part.type == 'text' -%}"
    "{%- set prompt.text = prompt.text ~ ' ' ~ part.text -%}{%- endfor -%}{%- endif -%}"
    "{%- endfor -%}"
    "{{- prompt.text | trim -}}"
)


class CoCaProcessor(OpenClipProcessor):
    """Processor of [`CoCaModel`] and [`CoCaForConditionalGeneration`]: an image processor and a tokenizer.

    Beside images, `text` is a prompt unless said otherwise: it starts with the begin-of-text token and has no
    end-of-text token, so that `generate` continues it, and prompts of different lengths are padded on the left.
    `add_eos=True` makes it a whole caption, padded on the right to the model's length, as the text tower and the
    caption loss need it; `return_labels=True` and `padding="max_length"` do the same, because a prompt of the model's
    length leaves nothing to continue. Without images, too, texts are whole captions, to be embedded. `generate` takes
    captions as prompts: it drops the end-of-text token.

    ```python
    model.generate(**processor(images=image, return_tensors="pt"))  # a caption
    model.generate(**processor(images=image, text="a photo of", return_tensors="pt"))  # one that begins so
    model(**processor(images=images, text=labels, add_eos=True, return_tensors="pt"))  # similarities
    model(**processor(images=images, text=captions, return_labels=True, return_tensors="pt")).loss
    ```

    Args:
        image_processor: an [`OpenClipImageProcessor`] or [`OpenClipImageProcessorPil`].
        tokenizer: an [`OpenClipTokenizer`]. Called directly it makes whole captions, never prompts.
        chat_template: Jinja template that turns messages into a prompt, by default their texts; see
            [`~CoCaProcessor.apply_chat_template`].
    """

    valid_processor_kwargs = CoCaProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, chat_template: str = CHAT_TEMPLATE, **kwargs):
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def __call__(self, images=None, text=None, **kwargs: Unpack[CoCaProcessorKwargs]) -> BatchFeature:
        """Prepare images, texts, or both.

        Args:
            images: one image or several: PIL images, arrays, tensors, paths or URLs. Nested lists are flattened.
            text: one prompt for all images or one for each; or captions, of any number. Nested lists are flattened.
            add_eos: whether texts are whole captions that end, instead of prompts; by default where there are no
                images, with `return_labels`, or with `padding="max_length"`.
            return_labels: also return `labels` for the caption loss: `input_ids` with -100 in place of padding.
            kwargs: arguments of the image processor and the tokenizer, such as `return_tensors="pt"`. Prompts are
                truncated only with `truncation=True`.

        Returns:
            `pixel_values`, float32 of shape (images, channels, height, width), and `input_ids`, `attention_mask` and
            `labels`, int64 of shape (texts, length): those that were asked for.

        Raises:
            ValueError: neither images nor texts, a text that is not a string, a prompt so long that nothing can follow
                it, other numbers of images and prompts, or `return_labels` without captions.
        """
        settings: dict[str, Any] = dict(kwargs)
        self._check_sections(settings)
        nested = settings["text_kwargs"] = dict(settings.get("text_kwargs") or {})
        add_eos, return_labels, padding = (
            nested.get(name, settings.get(name)) for name in ("add_eos", "return_labels", "padding")
        )
        for each in (settings, nested):  # of no concern to the tokenizer
            each.pop("add_eos", None)
            each.pop("return_labels", None)
        if not nested:  # an empty one would hide the other arguments from transformers 5.5
            del settings["text_kwargs"]
        if add_eos is None:
            add_eos = return_labels or images is None or padding == "max_length"
        if return_labels and (text is None or not add_eos):
            raise ValueError(
                "CoCaProcessor: return_labels=True makes labels of whole captions; pass them as text, without add_eos."
            )
        if text is None or add_eos:
            outputs = super().__call__(images=images, text=text, **settings)
            if return_labels:
                outputs["labels"] = _labels(outputs["input_ids"], outputs["attention_mask"])
            return outputs

        prompts = self._flat_text(text)
        outputs = BatchFeature()
        if images is not None:
            images = make_flat_list_of_images(self.image_processor.fetch_images(images))
            prompts = [prompts] * len(images) if isinstance(prompts, str) else prompts
            if len(prompts) != len(images):
                raise ValueError(
                    f"CoCaProcessor: got {len(images)} images and {len(prompts)} prompts; pass one prompt for each "
                    "image, or one for all as a string. For captions to score, of any number, pass add_eos=True."
                )
            outputs = super().__call__(images=images, **settings)
        merged_kwargs = self._merge_kwargs(
            self.valid_processor_kwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **settings
        )
        outputs.update(self._encode_prompts(prompts, **merged_kwargs["text_kwargs"]))
        return outputs

    def apply_chat_template(self, conversation, chat_template: str | None = None, *args, **kwargs):
        """Prepare the image of a chat, and its text as a prompt.

        A CoCa captions one image and sees no conversation: the last message of the user counts, and what the assistant
        began to say behind it. What lies before is left out. A template of your own gets all messages, whatever they
        are.

        ```python
        image = {"type": "image", "path": "photo.jpg"}  # or "url", "base64", or "image" with a PIL image
        messages = [{"role": "user", "content": [image, {"type": "text", "text": "a photo of"}]}]
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        ```

        Args:
            conversation: messages with `"role"` and `"content"`, or a list of such chats. The last message of the user
                has one image, and may have a text, with which the caption starts.
            chat_template: used instead of the processor's.
            args, kwargs: as in [`~transformers.ProcessorMixin.apply_chat_template`].

        Returns:
            With `tokenize=True` and `return_dict=True` what the processor returns for image and prompt; else the
            prompt or its ids.

        Raises:
            ValueError: the user's last message has no image or several, or there is a message of another role, such as
                a system prompt, or one that is no text and no list of images and texts.
        """
        if chat_template is None and self.chat_template == CHAT_TEMPLATE:
            if not isinstance(conversation, list | tuple):
                raise ValueError(f"CoCaProcessor: a chat is a list of messages, got {brief(conversation)}.")
            is_batch = len(conversation) > 0 and isinstance(conversation[0], (list, tuple))
            needs_source = bool(kwargs.get("tokenize"))
            turns = [_last_turn(chat, needs_source) for chat in (conversation if is_batch else [conversation])]
            conversation = turns if is_batch else turns[0]
        return super().apply_chat_template(conversation, chat_template, *args, **kwargs)

    def _encode_prompts(
        self,
        prompts: str | list[str],
        padding=True,
        truncation=False,
        max_length=None,
        pad_to_multiple_of=None,
        return_tensors=None,
        **kwargs,
    ) -> BatchFeature:
        """`input_ids` and `attention_mask` of prompts, padded on the left."""
        if unread := sorted(name for name in kwargs.keys() & _OF_CAPTIONS if kwargs[name]):
            raise ValueError(
                f"CoCaProcessor: got {', '.join(unread)} for prompts, which are ids and a mask alone: leave it out or "
                "pass add_eos=True for whole captions."
            )
        if self.tokenizer.bos_token_id is None:
            raise ValueError("CoCaProcessor: the tokenizer has no bos_token, with which a prompt begins.")
        prompts = [prompts] if isinstance(prompts, str) else prompts
        encoding = self.tokenizer(prompts, add_special_tokens=False, padding=False, truncation=False, verbose=False)
        rows = [[self.tokenizer.bos_token_id, *row] for row in encoding["input_ids"]]
        check_lengths(max_length=max_length, pad_to_multiple_of=pad_to_multiple_of)
        # One token at least has to follow.
        longest = self.tokenizer.model_max_length - 1 if max_length is None else max_length
        for prompt, row in zip(prompts, rows):
            if len(row) > longest and not truncation:
                raise ValueError(
                    f"CoCaProcessor: the prompt {prompt!r:.80} has {len(row)} tokens; {longest} at most leave room "
                    "for a caption. Shorten it or pass truncation=True. For captions to score or to train on, which "
                    "are cut off, pass add_eos=True."
                )
        return self.tokenizer.pad(
            {"input_ids": [row[:longest] for row in rows]},
            padding="longest" if padding is True else padding,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side="left",
            return_tensors=return_tensors,
        )

    def post_process_image_text_to_text(self, generated_outputs, skip_special_tokens=True, **kwargs) -> list[str]:
        """The texts of generated ids.

        Args:
            generated_outputs: ids of shape (texts, length) or (length,), as `generate` returns them, prompt included.
            skip_special_tokens: clean captions; if false, the text of every id.
            kwargs: arguments of the tokenizer's `batch_decode`, such as `clean_up_tokenization_spaces`.
        """
        return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)


def _last_turn(messages: Sequence[dict[str, Any]], needs_source: bool) -> list[dict[str, Any]]:
    """The last message of the user, and what follows it; `needs_source` where its image is to be opened."""
    if not all(isinstance(message, Mapping) and {"role", "content"} <= message.keys() for message in messages):
        raise ValueError("CoCaProcessor: each message of a chat needs a 'role' and a 'content'.")
    roles = [message["role"] for message in messages]
    if others := sorted({*map(str, roles)} - {"user", "assistant"}):
        raise ValueError(
            f"CoCaProcessor: got messages of the role {', '.join(others)}; a captioner takes no instructions: pass "
            "one message of the user with an image, and perhaps a text that the caption starts with."
        )
    if "user" not in roles:
        raise ValueError("CoCaProcessor: got no message of the user, which would have an image to caption.")
    start = len(roles) - 1 - roles[::-1].index("user")
    # Texts alone, without a type, are nothing that early transformers look for images in.
    turn = [{**message, "content": _parts(message["content"])} for message in messages[start:]]
    images = [part for part in turn[0]["content"] if part["type"] == "image"]
    if len(images) != 1:
        raise ValueError(
            f"CoCaProcessor: the last message of the user has {len(images)} images; expected one to caption."
        )
    if needs_source and not any(images[0].get(name) is not None for name in _IMAGE_SOURCES):
        raise ValueError(f"CoCaProcessor: the image of a message has none of {', '.join(_IMAGE_SOURCES)}.")
    return turn


def _parts(content: Any) -> Sequence[dict[str, Any]]:
    """The parts of a message's content, each an image or a text."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    is_list = isinstance(parts, list | tuple) and all(isinstance(part, Mapping) for part in parts)
    if not is_list or not all(
        part.get("type") == "image" or (part.get("type") == "text" and isinstance(part.get("text"), str))
        for part in parts
    ):
        raise ValueError(
            "CoCaProcessor: the content of a message must be a string, or a list of such parts as {'type': 'image', "
            f"'path': 'photo.jpg'}} and {{'type': 'text', 'text': 'a photo of'}}; got {brief(content)}."
        )
    return parts


def _labels(input_ids, attention_mask):
    if not isinstance(input_ids, list):
        return input_ids * (attention_mask == 1) - 100 * (attention_mask == 0)
    if input_ids and isinstance(input_ids[0], list):
        return [_labels(*row) for row in zip(input_ids, attention_mask)]
    return [token_id if is_token else -100 for token_id, is_token in zip(input_ids, attention_mask)]


__all__ = ["CoCaProcessor", "CoCaProcessorKwargs"]
