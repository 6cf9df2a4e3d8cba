"""Processor of the dual models: images and texts in one call."""

from typing import Any

from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack

from ..configuration.configuration_common import AutoClassMixin, with_value_errors
from .image_settings_naflex import NaFlexImageProcessorKwargs
from .image_settings_open_clip import OpenClipImageProcessorKwargs


class AnyImageProcessorKwargs(OpenClipImageProcessorKwargs, NaFlexImageProcessorKwargs, total=False):  # type: ignore[call-arg]
    """Settings of either kind of image processor, which refuses those of the other."""


class OpenClipProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    images_kwargs: AnyImageProcessorKwargs
    _defaults = {}  # transformers 5.5 reads it


class OpenClipProcessor(AutoClassMixin, ProcessorMixin):
    """Processor of [`OpenClipModel`] and [`OpenClipSiglipModel`]: an image processor and a tokenizer.

    Args:
        image_processor: an [`OpenClipImageProcessor`] or [`OpenClipImageProcessorPil`]; for a NaFlex tower a
            [`NaFlexImageProcessor`] or [`NaFlexImageProcessorPil`].
        tokenizer: an [`OpenClipTokenizer`].
    """

    valid_processor_kwargs = OpenClipProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(self, images=None, text=None, **kwargs: Unpack[OpenClipProcessorKwargs]) -> BatchFeature:
        """Prepare images, texts, or both.

        Args:
            images: one image or several: PIL images, arrays, tensors, paths or URLs. Nested lists are flattened.
            text: one text or several, cleaned, truncated and padded to the model's length; nested lists are flattened.
            kwargs: arguments of the image processor and the tokenizer, such as `return_tensors="pt"`.

        Returns:
            `pixel_values`, float32 of shape (images, channels, height, width), or what a NaFlex image processor gives,
            and `input_ids` and `attention_mask`, int64 of shape (texts, length): those that were asked for.

        Raises:
            ValueError: neither images nor texts, a text that is not a string, or videos or audio.
        """
        for name in ("videos", "audio"):
            if kwargs.pop(name, None) is not None:
                raise ValueError(f"{type(self).__name__}: got {name}; pass images=..., text=... or both.")
        if images is None and text is None:
            raise ValueError(f"{type(self).__name__}: got neither images nor text; pass images=..., text=... or both.")
        return super().__call__(images=images, text=None if text is None else self._flat_text(text), **kwargs)

    @with_value_errors
    def _merge_kwargs(self, *args, **kwargs):
        self._check_sections(kwargs)
        return super()._merge_kwargs(*args, **kwargs)

    def _check_sections(self, settings: dict[str, Any]):
        """Raise `TypeError` where arguments for one kind of input are no dict."""
        for name in sorted(settings.keys() & {"common_kwargs", "images_kwargs", "text_kwargs"}):
            if not isinstance(settings[name], dict | None):
                raise TypeError(
                    f"{type(self).__name__}: {name} must be a dict of arguments, got {settings[name]!r:.200}."
                )

    def _flat_text(self, text) -> str | list[str]:
        """`text` as a string or a flat list of strings."""
        if isinstance(text, str):
            return text
        texts = []
        if isinstance(text, (list, tuple)):
            for index, part in enumerate(text):
                if part is None:
                    raise ValueError(
                        f"{type(self).__name__}: text must be a string or a list of strings; got None as text {index} "
                        "(counted from 0)."
                    )
                flat = self._flat_text(part)
                texts += [flat] if isinstance(flat, str) else flat
        if not texts:
            raise ValueError(f"{type(self).__name__}: text must be a string or a list of strings; got {text!r:.200}.")
        return texts


__all__ = ["OpenClipProcessor", "OpenClipProcessorKwargs"]
