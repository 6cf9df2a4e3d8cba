"""CLIP's byte-pair encoding as a `tokenizers.Tokenizer` (open_clip: `SimpleTokenizer` in `tokenizer.py`).

The tokenizer takes cleaned text: it neither lowers case nor repairs anything. Its vocabulary, built from the merges
beside this file, has 49408 entries: 256 bytes, 256 bytes that end a word (`"</w>"`), 48894 merges, and the two special
tokens 49406 and 49407.
"""

import gzip
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors


BOS_TOKEN = "<start_of_text>"
EOS_TOKEN = "<end_of_text>"
END_OF_WORD = "</w>"

_MERGES_FILE = Path(__file__).with_name("clip_bpe_merges.txt.gz")

# Cleaned text holds no white space but single spaces, so that this character is free to be a mark.
NOT_SPECIAL = "\x1f"

# The letters and numbers that the `regex` module knows (Unicode 18) and the engine of the tokenizers library (Unicode
# 15) does not.
_NEW_LETTERS = (
    r"\x{0558}\x{058b}-\x{058c}\x{088f}\x{0c5c}\x{0cdc}\x{208f}\x{209d}-\x{209f}\x{a7ce}-\x{a7cf}\x{a7d2}\x{a7d4}"
    r"\x{a7dd}\x{a7e2}\x{a7f1}\x{ab6c}-\x{ab6d}\x{107bb}-\x{107bf}\x{10940}-\x{10959}\x{10ec5}-\x{10ec7}"
    r"\x{10ed9}-\x{10eee}\x{11b0a}\x{11db0}-\x{11ddb}\x{11df1}\x{16ea0}-\x{16eb8}\x{16ebb}-\x{16ed3}"
    r"\x{16ff2}-\x{16ff3}\x{187f8}-\x{187ff}\x{18cd6}-\x{18cda}\x{18d09}-\x{18d20}\x{18d80}-\x{18df2}"
    r"\x{18e00}-\x{19191}\x{191a0}-\x{191d2}\x{1b123}-\x{1b128}\x{1b168}\x{1d6a6}\x{1df1f}-\x{1df24}"
    r"\x{1df2b}-\x{1df81}\x{1df90}-\x{1df96}\x{1dfcd}-\x{1dfff}\x{1e6c0}-\x{1e6de}\x{1e6e0}-\x{1e6e2}"
    r"\x{1e6e4}-\x{1e6e5}\x{1e6e7}-\x{1e6ed}\x{1e6f0}-\x{1e6f4}\x{1e6fe}-\x{1e6ff}\x{2b73a}-\x{2b73f}\x{2b81e}"
    r"\x{2cea2}-\x{2cead}\x{323b0}-\x{33479}\x{3d000}-\x{3fc3f}"
)
_NEW_NUMBERS = r"\x{11de0}-\x{11de9}\x{1246f}\x{12475}-\x{1247f}\x{12550}-\x{12686}\x{16ff4}-\x{16ff6}"


def _any_case(text: str) -> str:
    """A pattern for `text` in any letter case; the only letter here with a third form is s (the long s)."""
    forms = {"s": "[sS\u017f]"}
    return "".join(forms.get(char, f"[{char}{char.upper()}]") if char.isalpha() else char for char in text)


def _word_pattern() -> str:
    """The regular expression that cuts cleaned text into words as open_clip's does, letter case ignored.

    It spells letter case out because `(?i)` of the tokenizers library would also let "ss" match "\u00df".
    """
    whole = [_any_case(word) for word in (BOS_TOKEN, EOS_TOKEN, "'s", "'t", "'re", "'ve", "'m", "'ll", "'d")]
    letter, number = rf"\p{{L}}{_NEW_LETTERS}", rf"\p{{N}}{_NEW_NUMBERS}"
    # U+0345 is not a letter, but an upper case iota, which is one, is another case of it: open_clip drops it.
    return "|".join([*whole, f"[{letter}]+", f"[{number}]", rf"[^\s{letter}{number}\x{{0345}}]+"])


_WORDS = pre_tokenizers.Split(Regex(_word_pattern()), behavior="removed", invert=True)


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes, in the order of their ids: bytes that are visible characters first."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(ord("\u00ae"), 256)]
    hidden = 256 - len(visible)
    return [*map(chr, visible), *map(chr, range(256, 256 + hidden))]


@lru_cache(maxsize=1)
def _vocabulary_and_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    if not _MERGES_FILE.is_file():  # a Hub repository's copy of this file: its vocabulary is in tokenizer.json
        raise OSError(
            f"{_MERGES_FILE.name}, CLIP's vocabulary, comes with the package open_clip_transformers, not with a copy "
            "of its code: load the tokenizer of a folder or repository with `from_pretrained`, or install the package."
        )
    with gzip.open(_MERGES_FILE, "rt", encoding="utf-8") as file:
        merges = [(first, second) for first, second in map(str.split, file)]
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(char + END_OF_WORD for char in alphabet), *map("".join, merges), BOS_TOKEN, EOS_TOKEN]
    return {token: token_id for token_id, token in enumerate(tokens)}, merges


def build_clip_bpe() -> Tokenizer:
    """A new tokenizer with CLIP's vocabulary, which adds both special tokens; no padding or truncation is set.

    Raises `OSError` where the vocabulary is not beside this file, in a Hub repository's copy of it.
    """
    vocabulary, merges = _vocabulary_and_merges()
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix=END_OF_WORD))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (BOS_TOKEN, EOS_TOKEN)])
    tokenizer.normalizer = normalizers.Replace(NOT_SPECIAL, "")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            _WORDS,
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A {EOS_TOKEN}",
        pair=f"{BOS_TOKEN} $A $B {EOS_TOKEN}",
        special_tokens=[(token, vocabulary[token]) for token in (BOS_TOKEN, EOS_TOKEN)],
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(END_OF_WORD, " ")])
    return tokenizer


def is_clip_bpe(tokenizer: Tokenizer) -> bool:
    """Whether `tokenizer` is one that `build_clip_bpe` made, or was read from its tokenizer.json."""
    suffix = getattr(tokenizer.model, "end_of_word_suffix", None)
    return suffix == END_OF_WORD and tokenizer.token_to_id(BOS_TOKEN) is not None


def mark_literal_tokens(text: str) -> str:
    """Mark the special tokens written in cleaned `text` that open_clip reads as plain text.

    The tokenizers library finds a special token anywhere, open_clip only where a word may begin: "a<end_of_text>"
    holds one, "a!<end_of_text>" does not, as "!<" is a word there. `build_clip_bpe`'s tokenizer removes the marks.
    """
    if "_of_text>" not in text:
        return text
    parts, position = [], 0
    for word, (start, end) in _WORDS.pre_tokenize_str(text):
        special = word in (BOS_TOKEN, EOS_TOKEN)
        parts += [text[position:start], word if special else word.replace("<", "<" + NOT_SPECIAL)]
        position = end
    return "".join([*parts, text[position:]])


__all__ = [
    "BOS_TOKEN",
    "END_OF_WORD",
    "EOS_TOKEN",
    "NOT_SPECIAL",
    "build_clip_bpe",
    "byte_alphabet",
    "is_clip_bpe",
    "mark_literal_tokens",
]
