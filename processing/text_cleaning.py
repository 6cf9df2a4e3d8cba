"""Text cleaning before tokenisation (open_clip: the `clean` functions of `tokenizer.py`).

A cleaner takes a `str` and returns a `str`. `"none"`, open_clip's default for tiktoken's vocabularies, returns it as
it is. All others repair mis-decoded text with ftfy, resolve HTML entities and leave single spaces between words and
none at the ends:

- `"whitespace"`: nothing more; open_clip's default for tokenizers of Hugging Face checkpoints.
- `"whitespace_underscore"`: with spaces for underscores.
- `"lower"`: then lower case; open_clip's default for CLIP's own vocabulary.
- `"canonicalize"`: then lower case without ASCII punctuation (underscores become spaces); SigLIP's.
"""

import html
import string
from collections.abc import Callable


try:
    import ftfy
except ImportError:  # in a Hub repository's copy of this file: most texts do not need it
    ftfy = None  # type: ignore[assignment]

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _repair(text: str) -> str:
    # Nothing below changes printable ASCII without entities, and ftfy is most of the time that tokenising takes.
    if text.isascii() and text.isprintable() and "&" not in text:
        return text
    if ftfy is None:
        raise ImportError(f"The text {text!r} needs ftfy, which is not installed: pip install ftfy.")
    # Twice, as captions from the web are often escaped twice ("&amp;lt;").
    return html.unescape(html.unescape(ftfy.fix_text(text)))


def _as_it_is(text: str) -> str:
    if text.isascii():
        return text
    # Halves of surrogate pairs, which no encoding of Unicode has, become one character or "\ufffd".
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _single_spaces(text: str) -> str:
    return " ".join(text.split())


def _clean_whitespace(text: str) -> str:
    return _single_spaces(_repair(text))


def _clean_whitespace_underscore(text: str) -> str:
    return _single_spaces(_repair(text).replace("_", " "))


def _clean_lower(text: str) -> str:
    return _single_spaces(_repair(text)).lower()


def _clean_canonicalize(text: str) -> str:
    return _single_spaces(_repair(text).replace("_", " ").translate(_NO_PUNCTUATION).lower())


TEXT_CLEANERS: dict[str, Callable[[str], str]] = {
    "none": _as_it_is,
    "lower": _clean_lower,
    "whitespace": _clean_whitespace,
    "whitespace_underscore": _clean_whitespace_underscore,
    "canonicalize": _clean_canonicalize,
}


def get_text_cleaner(name: str) -> Callable[[str], str]:
    """The cleaner called `name`. Raises ValueError for an unknown name."""
    if name not in TEXT_CLEANERS:
        raise ValueError(f"Unknown text cleaning clean={name!r}: choose one of {', '.join(map(repr, TEXT_CLEANERS))}.")
    return TEXT_CLEANERS[name]


__all__ = ["TEXT_CLEANERS", "get_text_cleaner"]
