"""Tokenizers of checkpoints, in both directions (open_clip: `get_tokenizer` in `factory.py`, and the tokenizer
fields of `CLIPTextCfg` in `model.py`)."""

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from types import UnionType
from typing import Any, TypeGuard

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from ...processing.clip_bpe import is_clip_bpe
from ...processing.text_cleaning import TEXT_CLEANERS
from ...processing.tokenization_open_clip import OpenClipTokenizer
from ..common import ConversionError, argument, read_json
from ..mapping.config import CLIP_VOCAB_SIZE, TokenIds
from ..mapping.config_table import text_fields_of
from ..sources.hub import UNREACHABLE, save_tokenizer_command
from ..sources.source import Source
from ..towers.base import TIKTOKEN_DEFAULTS
from .tiktoken_bpe import (
    BOS_TOKEN,
    CONTROL_TOKENS,
    ENCODINGS,
    EOS_TOKEN,
    PAD_TOKEN,
    build_tiktoken_bpe,
    find_ranks,
    write_ranks,
)


# Files that hold a vocabulary, any of which is enough for transformers.
VOCABULARY_FILES = (
    "tokenizer.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
)
# Files that are downloaded of a repository. Without a `tokenizer_class` in its tokenizer_config.json, as in those of
# older models, transformers looks for the model type in config.json.
HUB_FILES = (
    *VOCABULARY_FILES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "config.json",
)

# The largest vocabularies have a million ids.
LARGEST_ID = 10**7

# Allowed keys of `tokenizer_kwargs`; open_clip hands anything else to the code of the tokenizer.
CLIP_TOKENIZER_KWARGS = ("clean",)
HF_TOKENIZER_KWARGS = ("clean", "strip_sep_token", "language")
TIKTOKEN_KWARGS = ("clean", "add_bos", "add_eos")
_KWARGS_TYPES: dict[str, type | UnionType] = {
    **{"strip_sep_token": bool, "language": str | None},
    **{"add_bos": bool, "add_eos": bool},
}
REFUSED_KWARGS = {
    "reduction_mask": "it shortens long texts at random, which is meant for training; remove it to cut their ends off",
    "bpe_path": "CLIP's vocabulary is the only one of its kind that is known",
}
# Poolings of open_clip's text transformer that padding behind a text does not move.
_FIXED_POOLINGS = ("argmax", "eos", "first")


def load_tokenizer(source: Source, required: bool = True) -> OpenClipTokenizer | None:
    """Load the tokenizer that open_clip gives a checkpoint.

    It is CLIP's, or, with `hf_tokenizer_name`, that of the files beside the weights, else of the Hub repository of
    that name, or with `tokenizer_type` one of tiktoken's. Only tokenizers of the tokenizers library are read, never
    code.

    Args:
        source: the checkpoint.
        required: `False` looks on this machine only, and returns `None` where there is no tokenizer that fits.

    Raises:
        ConversionError: settings that are not supported, a vocabulary larger than the text tower's, or files that are
            not at hand.
    """
    text_cfg = text_fields_of(source.model_cfg)
    uses_tiktoken = _uses_tiktoken(text_cfg)
    uses_hf_tokenizer = bool(text_cfg.get("hf_tokenizer_name")) and not uses_tiktoken
    if not required and not (uses_hf_tokenizer and _local_folder(source)):
        return None
    try:
        if uses_tiktoken:
            return _load_tiktoken_tokenizer(source)
        return _load_hf_tokenizer(source) if uses_hf_tokenizer else _load_clip_tokenizer(source.model_cfg)
    except ConversionError:
        if required:
            raise
        return None


def _load_clip_tokenizer(model_cfg: Mapping[str, Any]) -> OpenClipTokenizer:
    text_cfg = text_fields_of(model_cfg)
    vocab_size = text_cfg.get("vocab_size", CLIP_VOCAB_SIZE)
    if vocab_size < CLIP_VOCAB_SIZE:
        raise ConversionError(
            f"text_cfg: vocab_size is {vocab_size}, but open_clip's own tokenizer, used where there is no "
            f"hf_tokenizer_name, has {CLIP_VOCAB_SIZE} ids. Set hf_tokenizer_name and put the tokenizer's files "
            f"beside the weights, or convert with {argument('with_processor', False)}."
        )
    return OpenClipTokenizer(
        model_max_length=text_cfg.get("context_length", 77),
        **padding_settings(model_cfg),
        **_tokenizer_kwargs(text_cfg, CLIP_TOKENIZER_KWARGS),
    )


def _uses_tiktoken(text_cfg: Mapping[str, Any]) -> bool:
    kind = text_cfg.get("tokenizer_type") or ""
    if kind not in ("", "tiktoken"):
        raise ConversionError(f'text_cfg: tokenizer_type must be "tiktoken" or left out, got {kind!r}.')
    return bool(kind)


def _load_tiktoken_tokenizer(source: Source) -> OpenClipTokenizer:
    text_cfg = text_fields_of(source.model_cfg)
    name = text_cfg.get("tiktoken_name", TIKTOKEN_DEFAULTS["tiktoken_name"])
    if name not in ENCODINGS:
        raise ConversionError(f"text_cfg: tiktoken_name must be one of {', '.join(ENCODINGS)}, got {name!r}.")
    kwargs = _tokenizer_kwargs(text_cfg, TIKTOKEN_KWARGS)
    around = {key: kwargs.get(key, True) for key in ("add_bos", "add_eos")}
    tokenizer = OpenClipTokenizer(
        tokenizer_object=build_tiktoken_bpe(name, find_ranks(name, source.tokenizer_folder), **around),
        tiktoken_name=name,
        clean=kwargs.get("clean") or "none",
        model_max_length=text_cfg.get("context_length", 77),
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        # tiktoken never finds the control tokens in texts.
        split_special_tokens=True,
        **padding_settings(source.model_cfg),
    )
    ids = {"bos_id": tokenizer.bos_token_id, "eos_id": tokenizer.eos_token_id, "pad_id": tokenizer.pad_token_id}
    stated = {key: text_cfg[key] for key in ids if text_cfg.get(key) is not None}
    wrong = [f"{key} = {value} (the tokenizer: {ids[key]})" for key, value in stated.items() if value != ids[key]]
    if wrong:
        raise ConversionError(f"text_cfg names other special tokens than tiktoken's {name} has: {', '.join(wrong)}.")
    if text_cfg.get("vocab_size", CLIP_VOCAB_SIZE) < len(tokenizer):
        raise ConversionError(
            f"text_cfg: vocab_size is {text_cfg.get('vocab_size', CLIP_VOCAB_SIZE)}, and tiktoken's {name} has "
            f"{len(tokenizer)} ids."
        )
    return tokenizer


def _load_hf_tokenizer(source: Source) -> OpenClipTokenizer:
    text_cfg = text_fields_of(source.model_cfg)
    kwargs = _tokenizer_kwargs(text_cfg, HF_TOKENIZER_KWARGS)
    folder = tokenizer_folder(source, text_cfg["hf_tokenizer_name"])
    _check_ids(folder)
    try:
        tokenizer = OpenClipTokenizer.from_hf_tokenizer(
            folder,
            context_length=text_cfg.get("context_length", 77),
            tokenizer_mode=text_cfg.get("tokenizer_mode"),
            **padding_settings(source.model_cfg),
            **kwargs,
        )
    except Exception as error:  # transformers' tokenizers fail in many ways
        raise ConversionError(f"The tokenizer in {folder} cannot be used: {error}") from error
    _check_vocabulary(tokenizer, text_cfg, folder)
    return tokenizer


def _tokenizer_kwargs(text_cfg: Mapping[str, Any], allowed: tuple[str, ...]) -> dict[str, Any]:
    kwargs = dict(text_cfg.get("tokenizer_kwargs") or {})
    refused = sorted(map(str, kwargs.keys() - set(allowed)))
    if refused:
        reasons = "".join(f" {name}: {REFUSED_KWARGS[name]}." for name in refused if name in REFUSED_KWARGS)
        raise ConversionError(
            f"text_cfg: tokenizer_kwargs may hold {', '.join(allowed)} for this tokenizer, got "
            f"{', '.join(refused)}.{reasons}"
        )
    for name, kind in _KWARGS_TYPES.items():
        if name in kwargs and not isinstance(kwargs[name], kind):
            expected = kind.__name__ if isinstance(kind, type) else kind
            raise ConversionError(f"text_cfg: {name} must be {expected} in tokenizer_kwargs, got {kwargs[name]!r}.")
    cleaners = [name for name in TEXT_CLEANERS if name != "none"]
    if kwargs.get("clean") is None and "add_bos" in allowed:
        kwargs.pop("clean", None)
    if not isinstance(kwargs.get("clean", "lower"), str) or kwargs.get("clean", "lower") not in cleaners:
        raise ConversionError(
            f"text_cfg: clean must be one of {', '.join(cleaners)} in tokenizer_kwargs, got {kwargs['clean']!r}."
        )
    return kwargs


def _check_ids(folder: Path):
    """Refuse vocabularies with ids far beyond their size: tokenizers takes memory for all ids below the largest."""
    for name in VOCABULARY_FILES:
        if not name.endswith(".json") or not (folder / name).is_file():
            continue
        vocabulary: Any = read_json(folder / name)
        for part in ("model", "vocab") if name == "tokenizer.json" else ():
            vocabulary = vocabulary.get(part) if isinstance(vocabulary, dict) else None
        # Unigram models have lists, whose ids are the places in them.
        values = vocabulary.values() if isinstance(vocabulary, dict) else ()
        ids = [value for value in values if isinstance(value, int)]
        if max(ids, default=0) > LARGEST_ID:
            raise ConversionError(
                f"{folder / name} is damaged: it has the id {max(ids)}, and {len(ids)} tokens. Expected ids up to "
                f"{LARGEST_ID}."
            )


def _check_vocabulary(tokenizer: OpenClipTokenizer, text_cfg: Mapping[str, Any], folder: Path):
    if text_cfg.get("hf_model_name"):
        return  # the text tower's vocabulary is its encoder's
    vocab_size = text_cfg.get("vocab_size", CLIP_VOCAB_SIZE)
    surplus = {token: token_id for token, token_id in tokenizer.get_vocab().items() if token_id >= vocab_size}
    reached = _reached_token(tokenizer, surplus)
    if reached is not None:
        raise ConversionError(
            f"The tokenizer in {folder} has {len(tokenizer)} ids, the text tower {vocab_size}: these are not its "
            f"files, as texts hold the id {surplus[reached]} ({reached!r}). Put the right ones beside the weights, or "
            f"convert with {argument('with_processor', False)}."
        )


def _reached_token(tokenizer: OpenClipTokenizer, surplus: Mapping[str, int]) -> str | None:
    """One of the tokens `surplus` that texts are cut into, `None` where there is none.

    Special tokens are left aside, unless they are put around texts: nobody writes them. So the vocabulary of SigLIP's
    multilingual models ends in a hundred sentinels of T5, for which the text towers have no embeddings.
    """
    ids = {token_id: token for token, token_id in surplus.items()}
    added = tokenizer.added_tokens_decoder
    plain = {
        token_id: token
        for token_id, token in ids.items()
        if "<extra_id_" not in token and not (token_id in added and added[token_id].special)
    }
    texts = chain([""], *(_texts_with(tokenizer, token_id, token) for token_id, token in plain.items()))
    used = chain.from_iterable(tokenizer(text, padding="max_length").input_ids for text in texts)
    return next((ids[token_id] for token_id in used if token_id in ids), None)


def _texts_with(tokenizer: OpenClipTokenizer, token_id: int, token: str) -> Iterator[str]:
    """Texts one of which is cut into a token, if any is: as a word, and within one."""
    for written in dict.fromkeys((token, tokenizer.decode([token_id]), token.removeprefix("##"))):
        yield from (f"{before}{written}{after}" for before in ("", "a", "a ") for after in ("", "a"))


def padding_settings(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Padding settings of the tokenizer, as arguments of `OpenClipTokenizer`.

    A captioner's has neither: in the features of captions padding shows, but it serves for prompts too.
    """
    if model_cfg.get("multimodal_cfg") is not None or text_fields_of(model_cfg).get("does_full_decoding"):
        return {}
    is_fixed = _needs_fixed_length(model_cfg)
    return {"fixed_length": is_fixed, "dynamic_padding": not is_fixed}


def _needs_fixed_length(model_cfg: Mapping[str, Any]) -> bool:
    """Whether the texts of a dual model must always be padded to the context length.

    So it is where its outputs depend on how much padding there is: where it is pooled or seen. And in models with a
    logit bias, which transformers' zero-shot pipeline otherwise gives texts of 64 tokens.
    """
    text_cfg = text_fields_of(model_cfg)
    if model_cfg.get("init_logit_bias") is not None:
        return True
    if text_cfg.get("hf_model_name") or text_cfg.get("text_arch") == "modern":
        return False  # these hide padding
    sees_padding = text_cfg.get("no_causal_mask", False) and not text_cfg.get("use_pad_mask", False)
    return (
        sees_padding or text_cfg.get("embed_cls", False) or text_cfg.get("pool_type", "argmax") not in _FIXED_POOLINGS
    )


def _local_folder(source: Source) -> Path | None:
    """The folder on this machine that holds a checkpoint's tokenizer: that of the weights, or that of its name."""
    folders = (source.tokenizer_folder, source.named_tokenizer_folder)
    return next((folder for folder in folders if _has_vocabulary(folder)), None)


def _has_vocabulary(folder: Path | None) -> TypeGuard[Path]:
    return folder is not None and any((folder / name).is_file() for name in VOCABULARY_FILES)


def tokenizer_folder(source: Source, hf_name: str) -> Path:
    """Find the folder with the files of the tokenizer `hf_name`: on this machine, else from the Hub.

    Raises:
        ConversionError: neither has them.
    """
    local = _local_folder(source)
    if local is not None:
        return local
    if (named := source.named_tokenizer_folder) is not None:
        raise ConversionError(
            f"{source.name} names a tokenizer in {named}, where there are none of the files "
            f"{', '.join(VOCABULARY_FILES)}. Put them there, or convert with "
            f"{argument('with_processor', False)}."
        )
    # The revision that was asked for is that of the checkpoint's repository, not of another one with a tokenizer.
    repo_id, revision = source.hub or (None, None)
    revision = revision if repo_id == hf_name else None
    try:
        folder = Path(huggingface_hub.snapshot_download(hf_name, revision=revision, allow_patterns=HUB_FILES))
        if _has_vocabulary(folder):
            return folder
        problem, cause = f"{hf_name} has none of the files {', '.join(VOCABULARY_FILES)}.", None
    except UNREACHABLE as error:
        problem, cause = "It is not in the local cache and the Hugging Face Hub cannot be reached.", error
    except (HfHubHTTPError, HFValidationError) as error:
        problem, cause = f"It cannot be downloaded: {error}", error
    raise ConversionError(
        f"The tokenizer {hf_name} is needed and {source.name} does not hold it. {problem} Put its files beside the "
        f"weights (where there is a network: `{save_tokenizer_command(hf_name)}`), or convert with "
        f"{argument('with_processor', False)}."
    ) from cause


def token_ids_of(tokenizer: OpenClipTokenizer) -> TokenIds:
    """Ids that start, end and pad texts; tokenizers like BERT's start with `cls_token` and end with `sep_token`."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    return TokenIds(bos=start, eos=end, pad=tokenizer.pad_token_id)


def tokenizer_cfg_of(tokenizer: OpenClipTokenizer, hf_tokenizer_name: str) -> dict[str, Any]:
    """Build the fields of open_clip's `text_cfg` that choose a tokenizer like one of ours.

    Args:
        tokenizer: our tokenizer.
        hf_tokenizer_name: open_clip's name for it where it is not CLIP's own.

    Raises:
        ConversionError: tokens were added to CLIP's vocabulary, which open_clip has no file for.
    """
    if tokenizer.tiktoken_name is not None:
        return _tiktoken_cfg_of(tokenizer, tokenizer.tiktoken_name)
    if not is_clip_bpe(tokenizer.backend_tokenizer):
        kwargs = {"clean": tokenizer.clean, "strip_sep_token": tokenizer.strip_sep_token}
        defaults = {"clean": "whitespace", "strip_sep_token": False}
        cfg = {
            "hf_tokenizer_name": hf_tokenizer_name,
            "tokenizer_kwargs": {name: value for name, value in kwargs.items() if value != defaults[name]},
            "tokenizer_mode": "clips" if tokenizer.class_token_last else None,
        }
        return {name: value for name, value in cfg.items() if value}
    if len(tokenizer) != CLIP_VOCAB_SIZE:
        raise ConversionError(
            f"The tokenizer has CLIP's vocabulary and {len(tokenizer) - CLIP_VOCAB_SIZE} more tokens, which no file "
            f"of open_clip can hold: convert with {argument('with_processor', False)}, and give open_clip the "
            "tokenizer in code."
        )
    return {} if tokenizer.clean == "lower" else {"tokenizer_kwargs": {"clean": tokenizer.clean}}


def _tiktoken_cfg_of(tokenizer: OpenClipTokenizer, name: str) -> dict[str, Any]:
    more = len(tokenizer) - ENCODINGS[name].size - len(CONTROL_TOKENS)
    if more:
        raise ConversionError(
            f"The tokenizer is tiktoken's {name} with {more} more tokens, which no file of open_clip can hold: "
            f"convert with {argument('with_processor', False)}."
        )
    ids = tokenizer("").input_ids
    kwargs = {
        "clean": None if tokenizer.clean == "none" else tokenizer.clean,
        "add_bos": tokenizer.bos_token_id in ids,
        "add_eos": tokenizer.eos_token_id in ids,
    }
    defaults = {"clean": None, "add_bos": True, "add_eos": True}
    cfg = {
        "tokenizer_type": "tiktoken",
        "tiktoken_name": name,
        "tokenizer_kwargs": {key: value for key, value in kwargs.items() if value != defaults[key]},
    }
    return {key: value for key, value in cfg.items() if value}


def save_open_clip_tokenizer(tokenizer: OpenClipTokenizer, folder: Path):
    """Write the files that open_clip's tokenizer, or a conversion, needs beside the weights; none for CLIP's."""
    if tokenizer.tiktoken_name is not None:
        path = folder / f"{tokenizer.tiktoken_name}.tiktoken"
        write_ranks(path, tokenizer.backend_tokenizer, tokenizer.tiktoken_name)
    elif not is_clip_bpe(tokenizer.backend_tokenizer):
        save_plain_tokenizer(tokenizer, folder)


def save_plain_tokenizer(tokenizer: OpenClipTokenizer, folder: Path, backend: Tokenizer | None = None, **settings):
    """Write a tokenizer as `tokenizer.json` and `tokenizer_config.json` for transformers 4 and 5 without our package.

    Args:
        tokenizer: our tokenizer; its cleaning of texts in Python is left out.
        folder: an existing folder.
        backend: written instead of the tokenizer's own.
        settings: further arguments of `PreTrainedTokenizerFast`.
    """
    names = (
        "model_max_length",
        "padding_side",
        "truncation_side",
        "clean_up_tokenization_spaces",
        "model_input_names",
    )
    plain = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer if backend is None else backend,
        extra_special_tokens=list(tokenizer.extra_special_tokens),
        **{**tokenizer.special_tokens_map, **{name: getattr(tokenizer, name) for name in names}, **settings},
    )
    plain.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    # The names that transformers 4 knows too.
    content["tokenizer_class"] = "PreTrainedTokenizerFast"
    if "extra_special_tokens" in content:
        content["additional_special_tokens"] = content.pop("extra_special_tokens")
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
