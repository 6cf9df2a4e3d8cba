"""Tokenizer of the open_clip models (open_clip: `SimpleTokenizer` and `HFTokenizer` in `tokenizer.py`).

Texts are cleaned in Python, then cut into ids by the tokenizers library.
"""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, BatchEncoding
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.tokenization_utils_tokenizers import TokenizersBackend
from transformers.utils import PaddingStrategy, TensorType, is_protobuf_available, is_sentencepiece_available

from ..configuration.configuration_common import IS_BUNDLED, AutoClassMixin, check_switches
from .added_tokens import AddedTokenFinder
from .clip_bpe import BOS_TOKEN, EOS_TOKEN, NOT_SPECIAL, build_clip_bpe, is_clip_bpe, mark_literal_tokens
from .language_tokens import get_language, set_language
from .text_cleaning import get_text_cleaner
from .token_padding import check_lengths, checked_side, pad_arrays, pad_lists


# Arguments of a call that ask for more than ids and a mask, which is left to the base class.
_EXTRA_OUTPUTS = {
    "is_split_into_words",
    "return_token_type_ids",
    "return_overflowing_tokens",
    "return_special_tokens_mask",
    "return_offsets_mapping",
    "return_length",
    "sanitize_control_tokens",
}

# Saved behind the padding side. A tokenizer of transformers' own, which AutoTokenizer and AutoProcessor would take in
# silence where they do not know this class, cleans no texts and gives other ids: it refuses such a side, and shows it.
_LOADING_NOTE = (
    "this tokenizer is of the package open_clip_transformers. Import the package before loading, or have "
    "`open-clip-transformers bundle` put its code into the folder and pass trust_remote_code=True"
)

_NEEDED_TOKENS = {
    "strip_sep_token": ("sep_token",),
    "class_token_last": ("bos_token", "eos_token", "cls_token"),
}

# The spaces that decoding CLIP's ids puts before punctuation and before the endings of "don't" and "we'll".
_SPACE_TO_DROP = re.compile(r" (?=(?:[.,!?]+|'(?:s|t|re|ve|m|ll|d))(?: |$))")


class OpenClipTokenizer(AutoClassMixin, TokenizersBackend):
    r"""Tokenizer of the open_clip models: CLIP's byte-pair encoding, or that of any `tokenizer.json`.

    Called with no further arguments it returns what open_clip's tokenizers return: every text cleaned, truncated (its
    last token kept, which is the end-of-text token) and padded to `model_max_length`. Where it departs from other
    tokenizers of transformers:

    - `padding=True` pads as the model allows. open_clip's models were trained on texts of `model_max_length` tokens,
      and for some of them (class token after the text, pooling of the last token, no causal mask) the padding is part
      of the input: `padding=True` is `padding="max_length"`. With `dynamic_padding`, for the others, it is
      `padding="longest"`, which leaves their features unchanged.
    - Texts are truncated unless `truncation=False`, and to `model_max_length` even where `max_length` is larger.
    - With `fixed_length`, any padding is to `model_max_length`.
    - `pad_to_multiple_of` rounds the length up to a multiple, but never beyond `model_max_length`, which is as many
      tokens as the model takes: 77 tokens stay 77. As in the base class, `truncation=True` with a shorter
      `max_length` that is no multiple raises.
    - Tokens added with `add_tokens` or `add_special_tokens` are found in texts before these are cleaned, as with other
      tokenizers of transformers; the special tokens of the vocabulary itself after it, as in open_clip. With other
      vocabularies than CLIP's, what cleaning makes look like an added token (`"&lt;IMG&gt;"`) is one, too, as there.
    - The padding token of CLIP's vocabulary is id 0, which is also the token `"!"` within a word. It is therefore not
      a special token: texts with exclamation marks keep them, and `all_special_ids` does not list it.
    - `decode(..., skip_special_tokens=True)` returns a clean caption: what lies between the begin- and the end-of-text
      token, without white space at its ends. `skip_special_tokens=False` returns what open_clip's `decode` does.

    Args:
        tokenizer_file: path of a `tokenizer.json`; CLIP's vocabulary, which comes with this package, if neither this
            nor `tokenizer_object` is given.
        tokenizer_object: a `tokenizers.Tokenizer` instead of a file; it is copied.
        clean: how texts are cleaned, `"lower"` (the default with CLIP's vocabulary), `"whitespace"` (the default with
            others), `"whitespace_underscore"`, `"canonicalize"` or `"none"`; see `text_cleaning`. open_clip: the same
            name.
        model_max_length: longest text in tokens, special ones included; open_clip: `context_length`.
        pad_token: token that fills texts up; by default `"!"` (id 0) with CLIP's vocabulary, none with others.
        strip_sep_token: replace the separator token by id 0 after padding, as CLIPA's models need; its attention mask
            is 0 then, as that of padding. open_clip: the same name.
        class_token_last: texts are the begin-of-text token, their ids, the end-of-text token, padding, and the class
            token (`cls_token`) as the last of all, as CLIPS' models need; open_clip: `tokenizer_mode="clips"`.
        fixed_length: whether texts that are padded always get `model_max_length` tokens, whatever `padding` and
            `max_length` say, for models whose features depend on how much padding there is. transformers' zero-shot
            pipeline asks for 64 tokens whenever a model is called siglip.
        dynamic_padding: whether `padding=True` pads to the longest text of the batch, as with other tokenizers of
            transformers, for models whose features do not depend on how much padding there is.
        src_lang: language code that goes with texts, for tokenizers that have such codes (NLLB's); by default that of
            the tokenizer's files. It can be set later, too. open_clip: `language`, which has no effect in 3.3.0, as
            each call of transformers' tokenizer undoes it.
        tiktoken_name: tiktoken's name of the vocabulary where it is one of its; read to convert back to open_clip
            only. open_clip: the same name.
        uncleaned_tokens: of the added tokens of a `tokenizer.json`, those to find in texts before these are cleaned;
            set by saving. By default, with CLIP's vocabulary, all but its own two special tokens, with others none.
        clean_up_tokenization_spaces: whether captions read "a cat." instead of "a cat ."; only applies where special
            tokens are skipped. By default true with CLIP's vocabulary, whose ids do not tell the two apart, and false
            with others.
        kwargs: further arguments of `PreTrainedTokenizerFast`, such as `padding_side` and the other special tokens.

    Raises:
        OSError: `tokenizer_file` cannot be read.
        TypeError: `uncleaned_tokens` is no list of strings.
        ValueError: `tokenizer_file` holds no tokenizer, unknown `clean` or `src_lang`, `strip_sep_token` or
            `class_token_last` without the tokens that they need, or both `fixed_length` and `dynamic_padding`.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        tokenizer_file: str | os.PathLike | None = None,
        tokenizer_object: Tokenizer | None = None,
        clean: str | None = None,
        model_max_length: int | None = None,
        pad_token=None,
        strip_sep_token: bool = False,
        class_token_last: bool = False,
        fixed_length: bool = False,
        dynamic_padding: bool = False,
        src_lang: str | None = None,
        tiktoken_name: str | None = None,
        uncleaned_tokens: list[str] | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs,
    ):
        if not IS_BUNDLED:
            kwargs.pop("auto_map", None)
        if isinstance(kwargs.get("padding_side"), str):
            kwargs["padding_side"] = kwargs["padding_side"].partition(":")[0]
        self._tokenizer = _backend(tokenizer_file, tokenizer_object)
        self._is_clip_bpe = is_clip_bpe(self._tokenizer)
        if self._is_clip_bpe:
            pad_token = "!" if pad_token is None else pad_token
            kwargs = {"bos_token": BOS_TOKEN, "eos_token": EOS_TOKEN, **kwargs}
            model_max_length = 77 if model_max_length is None else model_max_length
        if model_max_length is not None and (type(model_max_length) not in (int, float) or not model_max_length >= 1):
            raise ValueError(f"model_max_length must be a number of tokens, 1 or more, got {model_max_length!r}.")
        switches = {"strip_sep_token": strip_sep_token, "class_token_last": class_token_last}
        switches |= {"fixed_length": fixed_length, "dynamic_padding": dynamic_padding}
        check_switches(type(self).__name__, switches)
        self.clean = clean or ("lower" if self._is_clip_bpe else "whitespace")
        self._clean_text = get_text_cleaner(self.clean)
        self.strip_sep_token, self.class_token_last = strip_sep_token, class_token_last
        if fixed_length and dynamic_padding:
            raise ValueError("fixed_length=True and dynamic_padding=True exclude each other: leave one of them out.")
        self.fixed_length, self.dynamic_padding = fixed_length, dynamic_padding
        self.tiktoken_name = tiktoken_name
        if tiktoken_name is not None:
            kwargs["tiktoken_name"] = tiktoken_name
        for setting, names in _NEEDED_TOKENS.items():
            missing = [name for name in names if kwargs.get(name) is None]
            if getattr(self, setting) and missing:
                raise ValueError(f"{setting}=True needs special tokens that are not set: {', '.join(missing)}.")

        self._native_tokens = self._find_native_tokens(uncleaned_tokens)
        self._has_uncleaned_tokens = bool(self.uncleaned_tokens)
        self._finders: dict[bool, AddedTokenFinder] = {}
        # The base class adds every special token that it is given to the vocabulary, as a token to look for in texts.
        plain_pad_token = self._is_plain_token(pad_token)
        super().__init__(
            clean=self.clean,
            **switches,
            model_max_length=model_max_length,
            clean_up_tokenization_spaces=(
                self._is_clip_bpe if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
            ),
            **({} if plain_pad_token else {"pad_token": pad_token}),
            **kwargs,
        )
        if plain_pad_token:
            self.pad_token = str(pad_token)
        if class_token_last:
            self._tokenizer.post_processor = TemplateProcessing(
                single=[self.bos_token, "$A", self.eos_token],
                special_tokens=[(self.bos_token, self.bos_token_id), (self.eos_token, self.eos_token_id)],
            )
        if src_lang is not None:
            self.src_lang = src_lang

    @classmethod
    def convert_to_native_format(cls, trust_remote_code=False, **kwargs):
        """Called by `from_pretrained` with the files that it found; `__init__` reads tokenizer.json itself."""
        if kwargs.get("tokenizer_file") is None and kwargs.get("tokenizer_object") is None:
            raise OSError(
                f"No tokenizer.json in {kwargs.get('name_or_path')!r}. {cls.__name__}() without arguments has CLIP's "
                f"vocabulary; {cls.__name__}.from_hf_tokenizer reads the folders of other tokenizers."
            )
        return kwargs

    @classmethod
    def from_hf_tokenizer(
        cls,
        folder: str | os.PathLike,
        *,
        context_length: int = 77,
        clean: str = "whitespace",
        strip_sep_token: bool = False,
        language: str | None = None,
        tokenizer_mode: str | None = None,
        fixed_length: bool = False,
        dynamic_padding: bool = False,
        **kwargs,
    ) -> "OpenClipTokenizer":
        """The tokenizer of another transformers checkpoint, used as open_clip's `HFTokenizer` uses it.

        Args:
            folder: anything that `AutoTokenizer.from_pretrained` takes.
            context_length: length in tokens to which texts are truncated and padded.
            clean: how texts are cleaned, see the class.
            strip_sep_token: see the class.
            language: see `src_lang` of the class.
            tokenizer_mode: `"clips"` for `class_token_last`, see the class; as in open_clip, there is no other.
            fixed_length, dynamic_padding: see the class.
            kwargs: arguments for `AutoTokenizer.from_pretrained`.

        Raises:
            ValueError: the tokenizer is not built on the tokenizers library, has no padding token, or lacks what the
                other arguments ask for.
            ImportError: the tokenizer is a sentencepiece model, and packages that read it are not installed.
        """
        _check_sentencepiece(folder)
        source = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **kwargs)
        if not isinstance(source, TokenizersBackend):
            raise ValueError(
                f"{folder}: {type(source).__name__} is not built on the tokenizers library, which is needed."
            )
        if source.pad_token is None:
            raise ValueError(
                f"{folder}: the tokenizer has no padding token; set pad_token in its tokenizer_config.json."
            )
        is_clips = tokenizer_mode == "clips"
        return cls(
            tokenizer_object=source.backend_tokenizer,
            clean=clean,
            model_max_length=context_length,
            strip_sep_token=strip_sep_token and not is_clips,
            class_token_last=is_clips,
            fixed_length=fixed_length,
            dynamic_padding=dynamic_padding,
            src_lang=language,
            padding_side=source.padding_side,
            truncation_side=source.truncation_side,
            clean_up_tokenization_spaces=source.clean_up_tokenization_spaces,
            extra_special_tokens=list(source.extra_special_tokens),
            **source.special_tokens_map,
        )

    def __call__(self, text=None, text_pair=None, *args, padding="max_length", **kwargs) -> BatchEncoding:
        """Tokenise one text or a list of texts.

        Takes the arguments of every tokenizer of transformers, with other defaults: `padding="max_length"` and
        truncation, both to `model_max_length`.

        Returns:
            `input_ids` and `attention_mask` (1 for tokens, 0 for padding), lists of ints, or int64 of shape (texts,
            length) with `return_tensors="pt"`.
        """
        is_full = padding == "max_length" or (padding is True and not self.dynamic_padding)
        is_default = text_pair is None and not args and is_full and self._has_max_length
        texts = [text] if isinstance(text, str) else text
        if (
            not is_default
            or kwargs.keys() - {"return_tensors"}
            or not _are_texts(texts)
            or self.class_token_last
            or self.pad_token is None
        ):
            return super().__call__(text, text_pair, *args, padding=padding, **kwargs)
        # What that would come to, without looking at each of twenty arguments first.
        return self._encode_texts(
            [self._prepare_text(each, self.split_special_tokens) for each in texts],
            texts is not text,
            kwargs.get("return_tensors"),
            PaddingStrategy.MAX_LENGTH,
            TruncationStrategy.LONGEST_FIRST,
            self.model_max_length,
        )

    def _get_padding_truncation_strategies(
        self, padding=False, truncation=None, max_length=None, pad_to_multiple_of=None, **kwargs
    ):
        check_lengths(max_length=max_length, pad_to_multiple_of=pad_to_multiple_of)
        if self.fixed_length and self._has_max_length and padding not in (False, PaddingStrategy.DO_NOT_PAD):
            padding, max_length = "max_length", self.model_max_length
        if padding is True and self._has_max_length and not self.dynamic_padding:
            padding = "max_length"
        is_asked = truncation is not None
        if not is_asked:
            truncation = self._has_max_length or max_length is not None
        if max_length is not None and truncation is not False:
            max_length = min(max_length, self.model_max_length)
        # The base class would refuse every multiple that does not divide the model's own length, too.
        if max_length is None or max_length == self.model_max_length or not is_asked:
            pad_to_multiple_of = None
        return super()._get_padding_truncation_strategies(
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            **kwargs,
        )

    @property
    def _has_max_length(self) -> bool:
        """Whether a longest text is set; without one, texts are neither truncated nor padded by default."""
        return self.model_max_length < 10**20

    def _encode_plus(self, text, text_pair=None, *, return_tensors=None, **kwargs) -> BatchEncoding:
        if isinstance(text, (list, tuple)) and not text:
            raise ValueError("Got an empty list of texts to tokenize: pass at least one text.")
        splits = kwargs.get("split_special_tokens")
        splits = self.split_special_tokens if splits is None else splits
        text, text_pair = self._prepare_text(text, splits), self._prepare_text(text_pair, splits)
        texts = [text] if isinstance(text, str) else text
        is_plain = (
            text_pair is None
            and _are_texts(texts)
            and not any(kwargs[option] for option in kwargs.keys() & _EXTRA_OUTPUTS)
        )
        if self.class_token_last and kwargs.get("add_special_tokens", True):
            if not is_plain:
                raise ValueError(
                    "class_token_last gives input_ids and attention_mask of single texts: leave out text pairs and "
                    "what asks for more, such as return_offsets_mapping."
                )
            return self._encode_with_class_token(texts, text is not texts, return_tensors, **kwargs)
        if is_plain:
            return self._encode_texts(texts, text is not texts, return_tensors, **kwargs)
        encoding = super()._encode_plus(text, text_pair, **kwargs)
        self._strip_sep_token(encoding.data)
        is_single = not encoding["input_ids"] or not isinstance(encoding["input_ids"][0], list)
        return encoding.convert_to_tensors(return_tensors, prepend_batch_axis=is_single)

    def _prepare_text(self, text, split_special_tokens: bool):
        if isinstance(text, str):
            if not self._has_uncleaned_tokens:
                return self._clean_and_mark(text)
            mark = NOT_SPECIAL if self._is_clip_bpe else ""
            return self._finder(split_special_tokens).clean(text, self._clean_and_mark, mark)
        if isinstance(text, (list, tuple)):
            for index, part in enumerate(text):
                if part is None:
                    raise ValueError(f"Text {index} (counted from 0) is None: leave it out, or pass a string.")
            return [self._prepare_text(part, split_special_tokens) for part in text]
        return text

    def _clean_and_mark(self, text: str) -> str:
        text = self._clean_text(text)
        return mark_literal_tokens(text) if self._is_clip_bpe else text

    def _find_native_tokens(self, uncleaned_tokens: list[str] | None) -> set[str]:
        """The added tokens that the vocabulary came with, which are found in cleaned texts."""
        tokens = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        if uncleaned_tokens is None:
            return tokens & {BOS_TOKEN, EOS_TOKEN} if self._is_clip_bpe else tokens
        if not isinstance(uncleaned_tokens, list) or not all(isinstance(token, str) for token in uncleaned_tokens):
            raise TypeError(f"uncleaned_tokens must be a list of strings, got {uncleaned_tokens!r:.200}.")
        return tokens - set(uncleaned_tokens)

    @property
    def uncleaned_tokens(self) -> list[str]:
        """The added tokens that are found in texts before these are cleaned, in the order of their ids."""
        return [token for token in self.added_tokens_encoder if token not in self._native_tokens]

    def _finder(self, split_special_tokens: bool) -> AddedTokenFinder:
        """Of the tokens to find in texts before these are cleaned; without special ones that are to be split."""
        if split_special_tokens not in self._finders:
            tokens: list[AddedToken] = [
                token
                for token in self.added_tokens_decoder.values()
                if token.content not in self._native_tokens and not (split_special_tokens and token.special)
            ]
            ignores_case = self.clean in ("lower", "canonicalize")
            self._finders[split_special_tokens] = AddedTokenFinder(tokens, ignores_case)
        return self._finders[split_special_tokens]

    def _add_tokens(self, new_tokens, special_tokens=False) -> int:
        added = super()._add_tokens(new_tokens, special_tokens=special_tokens)
        self._finders.clear()
        self._has_uncleaned_tokens = bool(self.uncleaned_tokens)
        if self._has_uncleaned_tokens:
            self.init_kwargs["uncleaned_tokens"] = None  # saved, from the property of this name
        return added

    def _pad(self, encoded_inputs, max_length=None, padding_strategy=PaddingStrategy.DO_NOT_PAD, **kwargs) -> dict:
        multiple = kwargs.get("pad_to_multiple_of")
        if multiple and padding_strategy != PaddingStrategy.DO_NOT_PAD and self._has_max_length:
            is_longest = padding_strategy == PaddingStrategy.LONGEST or max_length is None
            length = len(encoded_inputs[self.model_input_names[0]]) if is_longest else max_length
            max_length, padding_strategy = self._rounded_up(length, multiple), PaddingStrategy.MAX_LENGTH
            kwargs["pad_to_multiple_of"] = None
        return super()._pad(encoded_inputs, max_length, padding_strategy, **kwargs)

    def _rounded_up(self, length: int, multiple: int) -> int:
        """`length`, or the next multiple that the model still takes."""
        rounded = -(-length // multiple) * multiple
        return rounded if length > self.model_max_length else min(rounded, self.model_max_length)

    def _encode_texts(
        self,
        texts: list[str],
        is_single: bool,
        return_tensors,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        split_special_tokens: bool | None = None,
        verbose: bool = True,
        **kwargs,
    ) -> BatchEncoding:
        """Encode texts as the base class does, in half its time."""
        backend, pads = self._tokenizer, padding_strategy != PaddingStrategy.DO_NOT_PAD
        strategy, side = truncation_strategy.value, self.truncation_side
        truncation = {"max_length": max_length, "stride": 0, "strategy": strategy, "direction": side}
        if backend.truncation != truncation or backend.padding is not None:  # else they are as the last call left them
            self.set_truncation_and_padding(PaddingStrategy.DO_NOT_PAD, truncation_strategy, max_length, 0, None, None)
        splits = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        if backend.encode_special_tokens != splits:
            backend.encode_special_tokens = splits
        if len(texts) == 1:  # without handing it to another thread
            encodings = [backend.encode(texts[0], add_special_tokens=add_special_tokens)]
        else:
            encodings = backend.encode_batch(texts, add_special_tokens=add_special_tokens)
        rows: Any = [encoding.ids for encoding in encodings]
        if max_length is None:
            for row in rows:
                self._eventual_warn_about_too_long_sequence(row, max_length, verbose)
        if pads:
            length = max_length if padding_strategy == PaddingStrategy.MAX_LENGTH else None
            length = max(map(len, rows)) if length is None else length
            if pad_to_multiple_of:
                # The class token is one more.
                length = self._rounded_up(length + self.class_token_last, pad_to_multiple_of) - self.class_token_last
            pad = pad_lists if return_tensors is None else pad_arrays
            rows, masks = pad(rows, length, self.pad_token_id, checked_side(padding_side or self.padding_side))
        else:
            masks = [[1] * len(row) for row in rows]
        data = {"input_ids": rows, "attention_mask": masks}
        if self.strip_sep_token:
            self._strip_sep_token(data)
        wants_mask = (
            "attention_mask" in self.model_input_names if return_attention_mask is None else return_attention_mask
        )
        if not wants_mask:
            del data["attention_mask"]
        if return_tensors is None and is_single:
            data = {key: values[0] for key, values in data.items()}
        elif return_tensors == TensorType.PYTORCH and pads:
            data = {key: torch.from_numpy(array) for key, array in data.items()}
            return_tensors = None
        return BatchEncoding(data, encodings, tensor_type=return_tensors)

    def _encode_with_class_token(
        self, texts: list[str], is_single: bool, return_tensors, max_length: int | None = None, **kwargs
    ) -> BatchEncoding:
        shorter = None if max_length is None else max_length - 1
        encoding = self._encode_texts(texts, False, None, max_length=shorter, **kwargs)
        for key, last in (("input_ids", self.cls_token_id), ("attention_mask", 1)):
            if key in encoding:
                rows = [[*row, last] for row in encoding[key]]
                encoding[key] = rows[0] if is_single else rows
        return encoding.convert_to_tensors(return_tensors, prepend_batch_axis=is_single)

    def _strip_sep_token(self, data: dict):
        """Puts id 0, which is not attended to, in place of the separator in `data`, lists or arrays."""

        def strip(ids, values):
            if ids and isinstance(ids[0], list):
                return [strip(*row) for row in zip(ids, values)]
            return [0 if token_id == self.sep_token_id else value for token_id, value in zip(ids, values)]

        if not self.strip_sep_token:
            return
        for key in ("attention_mask", "input_ids"):
            if isinstance(data["input_ids"], np.ndarray):
                data[key][data["input_ids"] == self.sep_token_id] = 0
            elif key in data:
                data[key] = strip(data["input_ids"], data[key])

    def decode(self, token_ids, skip_special_tokens=False, **kwargs):
        """Text of ids, or list of texts of a batch of ids (lists, numpy arrays or torch tensors).

        With `skip_special_tokens=True` a caption (see the class), else the text of every id, as open_clip's `decode`.
        """
        kwargs.setdefault("clean_up_tokenization_spaces", None)
        return super().decode(token_ids, skip_special_tokens=skip_special_tokens, **kwargs)

    def _decode(self, token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=None, **kwargs) -> str:
        token_ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        if not skip_special_tokens:
            return self._tokenizer.decode(token_ids, skip_special_tokens=False)
        text = self._tokenizer.decode(self._caption_ids(token_ids), skip_special_tokens=True).strip()
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return self.clean_up_tokenization(text) if clean_up_tokenization_spaces else text

    def clean_up_tokenization(self, text: str) -> str:
        """`text` without the spaces that tokenisation left before punctuation."""
        return _SPACE_TO_DROP.sub("", text) if self._is_clip_bpe else super().clean_up_tokenization(text)

    def _caption_ids(self, token_ids: list[int]) -> list[int]:
        """The ids between the begin-of-text token and the first end-of-text token after it, without padding."""
        start = 0
        while start < len(token_ids) and token_ids[start] == self.pad_token_id:
            start += 1
        if start < len(token_ids) and token_ids[start] == self.bos_token_id:
            token_ids = token_ids[start + 1 :]
        if self.eos_token_id in token_ids:
            return token_ids[: token_ids.index(self.eos_token_id)]
        # Cut short. No word of CLIP's vocabulary ends in its padding token, so that these ids are padding.
        end = len(token_ids)
        while end > 1 and token_ids[end - 1] == self.pad_token_id:
            end -= 1
        return token_ids[:end]

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens. A padding token that is also a token of texts is not among them."""
        pad_token = self.pad_token
        tokens = super().all_special_tokens
        return [token for token in tokens if token != pad_token] if self._is_plain_token(pad_token) else tokens

    @property
    def src_lang(self) -> str | None:
        """Language code that goes with texts, `None` with tokenizers that have no such codes."""
        return get_language(self._tokenizer, self.extra_special_tokens)

    @src_lang.setter
    def src_lang(self, language: str):
        set_language(self._tokenizer, language, self.extra_special_tokens)

    def set_src_lang_special_tokens(self, src_lang: str):
        """Sets `src_lang`, by the name that open_clip's `HFTokenizer.set_language` calls."""
        self.src_lang = src_lang

    def _is_plain_token(self, token) -> bool:
        """Whether `token` is an entry of the vocabulary that texts are cut into, not one looked for in them."""
        if token is None or self._tokenizer.token_to_id(str(token)) is None:
            return False
        return str(token) not in self.added_tokens_encoder

    def _save_pretrained(self, save_directory, file_names, **kwargs):
        # The last call's padding and truncation are no part of the tokenizer.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        return super()._save_pretrained(save_directory, file_names, **kwargs)

    def save_chat_templates(self, save_directory, tokenizer_config: dict[str, Any], *args):
        """Saves chat templates, if there are, just before the other settings, of which `padding_side` gets a note."""
        tokenizer_config = {**tokenizer_config, "padding_side": f"{self.padding_side}: {_LOADING_NOTE}"}
        return super().save_chat_templates(save_directory, tokenizer_config, *args)


def _are_texts(texts) -> bool:
    return isinstance(texts, list) and len(texts) > 0 and all(isinstance(text, str) for text in texts)


def _backend(file: str | os.PathLike | None, tokenizer: Tokenizer | None) -> Tokenizer:
    """The tokenizer of tokenizers: a copy of `tokenizer`, that of a `file`, or CLIP's."""
    if tokenizer is not None:
        backend = Tokenizer.from_str(tokenizer.to_str())
    else:
        backend = build_clip_bpe() if file is None else _read_backend(file)
    # These are arguments of a call here. Left in place, the base class would make special tokens of them.
    backend.no_padding()
    backend.no_truncation()
    return backend


def _read_backend(file: str | os.PathLike) -> Tokenizer:
    content = Path(file).read_bytes()
    try:
        return Tokenizer.from_buffer(content)
    except Exception as error:  # tokenizers raises nothing more special
        raise ValueError(f"{os.fspath(file)} is not the file of a tokenizer: {error}") from error


def _check_sentencepiece(folder: str | os.PathLike):
    """Raises ImportError where transformers would: with a tokenizer that only packages not installed can read."""
    path = Path(folder)
    if (path / "tokenizer.json").is_file() or not any(path.glob("*.model")):
        return
    if not (is_sentencepiece_available() and is_protobuf_available()):
        raise ImportError(
            f"{path} holds a sentencepiece model and no tokenizer.json. To read it, install two packages: pip install "
            "sentencepiece protobuf. Saved by transformers, the tokenizer has a tokenizer.json and needs them no more."
        )


__all__ = ["OpenClipTokenizer"]
