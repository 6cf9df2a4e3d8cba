"""Token ids and decoded texts against open_clip's `SimpleTokenizer`, on texts that are hard to get right."""

import gzip
import random
import sys
import unicodedata
from pathlib import Path

import ftfy
import open_clip
import pytest
import torch
from awkward_texts import ALL_TEXTS, TEXTS
from open_clip.tokenizer import SimpleTokenizer, default_bpe, get_clean_fn

from open_clip_transformers.processing import clip_bpe
from open_clip_transformers.processing.text_cleaning import get_text_cleaner
from open_clip_transformers.processing.tokenization_open_clip import OpenClipTokenizer


pytestmark = pytest.mark.floor

every_kind = pytest.mark.parametrize("kind", TEXTS)
every_clean = pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])


@pytest.fixture(scope="module")
def tokenizer() -> OpenClipTokenizer:
    return OpenClipTokenizer()


def differing_texts(tokenizer, reference, texts: list[str]) -> list[str]:
    ids = tokenizer(texts, return_tensors="pt").input_ids
    return [text for text, row, expected in zip(texts, ids, reference(texts)) if not torch.equal(row, expected)]


@every_kind
def test_tokenizer_ids_equal_open_clip(tokenizer, kind):
    assert differing_texts(tokenizer, open_clip.tokenize, TEXTS[kind]) == []


@every_clean
@pytest.mark.parametrize("context_length", [76, 5])
def test_tokenizer_ids_equal_open_clip_with_other_settings(clean, context_length):
    tokenizer = OpenClipTokenizer(clean=clean, model_max_length=context_length)
    reference = SimpleTokenizer(clean=clean, context_length=context_length)
    assert differing_texts(tokenizer, reference, ALL_TEXTS) == []


def test_awkward_texts_are_many_and_different():
    assert len(set(ALL_TEXTS)) >= 450
    tokens = {token_id for row in open_clip.tokenize(ALL_TEXTS).tolist() for token_id in row}
    assert len(tokens) > 2000


def test_vocabulary_equals_open_clip(tokenizer):
    assert tokenizer.get_vocab() == SimpleTokenizer().encoder


def test_merges_file_is_the_part_of_open_clips_that_is_used():
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        expected = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    with gzip.open(Path(clip_bpe.__file__).with_name("clip_bpe_merges.txt.gz"), "rt", encoding="utf-8") as file:
        assert file.read().splitlines() == expected


def test_word_pattern_classifies_characters_as_open_clip(tokenizer):
    # Every character of the scripts that the two regular expression engines could see differently, beside a letter, a
    # sign and itself. Those of later versions of Unicode than Python's may differ between versions of `regex`.
    assigned = [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    chars = [char for char in assigned if not "\u4e00" <= char <= "\ud7a3" and ord(char) < 0x20000][::3]
    words = [f"a{char}#{char}{char}" for char in chars if not char.isspace()]
    texts = [" ".join(words[i : i + 300]) for i in range(0, len(words), 300)]
    reference = SimpleTokenizer()
    reference.clean_fn = str
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    different = [t for t in texts if backend.encode(t, add_special_tokens=False).ids != reference.encode(t)]
    assert different == []


@every_clean
def test_text_cleaner_equals_open_clip(clean):
    clean_text, reference = get_text_cleaner(clean), get_clean_fn(clean)
    assert [text for text in ALL_TEXTS if clean_text(text) != reference(text)] == []


def test_text_cleaner_leaves_out_only_repairs_without_effect():
    rng = random.Random(0)
    printable = [char for char in map(chr, range(0x20, 0x7F)) if char != "&"]
    texts = ["".join(rng.choices(printable, k=40)) for _ in range(500)]
    assert [text for text in texts if ftfy.fix_text(text) != text] == []


def test_text_cleaner_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"'upper'.*'lower'"):
        get_text_cleaner("upper")


@every_kind
def test_decode_equals_open_clip(tokenizer, kind):
    rows = open_clip.tokenize(TEXTS[kind])
    assert tokenizer.batch_decode(rows) == [open_clip.decode(row) for row in rows]


def test_decode_of_random_ids_equals_open_clip(tokenizer):
    rows = torch.randint(0, 49408, (200, 23))
    assert tokenizer.batch_decode(rows) == [open_clip.decode(row) for row in rows]
    assert [tokenizer.decode(int(i)) for i in rows[0]] == [open_clip.decode(i[None]) for i in rows[0]]


def test_padding_to_the_longest_text_cuts_only_padding(tokenizer):
    texts = ["a cat", "!", "a photo of two dogs and a cat.", ""]
    longest = tokenizer(texts, padding="longest", return_tensors="pt")
    full = tokenizer(texts, return_tensors="pt")
    length = longest.input_ids.shape[1]
    assert length < 12
    assert torch.equal(longest.input_ids, full.input_ids[:, :length])
    assert full.attention_mask[:, length:].sum() == 0
    # What is cut off is id 0, smaller than the end-of-text id, so that a causal tower pools the same token.
    assert torch.equal(longest.input_ids.argmax(-1), full.input_ids.argmax(-1))
    assert full.input_ids[:, length:].abs().sum() == 0
