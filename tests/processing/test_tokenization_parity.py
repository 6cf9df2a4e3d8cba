"""Token ids and decoded texts against open_clip's `SimpleTokenizer`, on texts that are hard to get right."""

import gzip
import random
import string
import sys
import unicodedata
from pathlib import Path

import ftfy
import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer, default_bpe, get_clean_fn

from open_clip_transformers.processing import clip_bpe
from open_clip_transformers.processing.text_cleaning import get_text_cleaner
from open_clip_transformers.processing.tokenization_open_clip import OpenClipTokenizer


pytestmark = pytest.mark.floor

SPECIALS = ["<start_of_text>", "<end_of_text>", "<|startoftext|>", "<|endoftext|>"]

HAND_WRITTEN = {
    "plain": ["a photo of a cat.", "Two dogs, three cats; and 1 parrot!", "A DIAGRAM", "x", "The quick brown fox"],
    "empty": ["", " ", "\t\n  \r\n", "\u00a0\u2003\u3000", "\u200b", "\ufeff", "\x00", "\x1c\x1d\x1e\x1f", "\x85"],
    "long": [
        "word " * 200,
        "a" * 500,
        "supercalifragilisticexpialidocious" * 12,
        "猫" * 90,
        "!" * 300,
        "😀" * 40,
        "1" * 120,
        "a cat " * 24 + "a cat and",
        "x " * 75,
        "x " * 76,
        "x " * 74,
    ],
    "exclamations": ["!", "!!", "!!!!", "! ! !", "wow!", "!wow", "a!b!c", "¡hola!", "!?!?", "hey!!1!", "#!/bin/sh"],
    "contractions": [
        "don't can't won't",
        "I'm you're he's we've they'll I'd",
        "DON'T CAN'T I'M",
        "o'clock 'tis 'twas rock'n'roll",
        "'s 't 're 've 'm 'll 'd",
        "'S 'T 'RE",
        "'ſ '\u017f",
        "it\u2019s curly, \u2018quoted\u2019 \u201cdouble\u201d",
        "'''s''t",
        "dogs' bones",
    ],
    "entities": [
        "&lt;b&gt;bold&lt;/b&gt;",
        "fish &amp; chips",
        "fish &amp;amp; chips",
        "&amp;lt;i&amp;gt;",
        "&amp;amp;lt;",
        "&eacute;t&Eacute; &EACUTE;",
        "&#39;quoted&#39; &#x27;hex&#x27;",
        "&#10;newline&#9;tab",
        "&#0; &#1; &#127; &#128; &#xD800; &#x110000;",
        "&nbsp;&nbsp;x&nbsp;",
        "&notanentity; & &; &amp &lt",
        "AT&T R&D a&b",
        "&hearts; &spades; &frac12;",
        "<a href='x'>&quot;link&quot;</a>",
        "&zwnj;&zwj;&shy;",
    ],
    "mojibake": [
        "cafÃ© au lait",
        "â€œquotedâ€\x9d",
        "Ã¢â‚¬â„¢",
        "schÃ¶n fÃ¼r mich",
        "ÐŸÑ€Ð¸Ð²ÐµÑ‚",
        "âœ” No problems",
        "ä½\xa0å¥½",
        "The Mona Lisa doesnÃƒÂ¢Ã¢â€šÂ¬Ã¢â€žÂ¢t have eyebrows.",
        "\ud83d\ude00 surrogates",
        "lone \ud800 surrogate",
        "ﬂuﬀy ﬁsh ﬆ",
        "ＬＯＵＤ　ＮＯＩＳＥＳ",
        "\x1b[36;44mterminal\x1b[0m",
        "soft\u00adhyphen",
    ],
    "specials": [
        *SPECIALS,
        *(token.upper() for token in SPECIALS),
        *(f"a {token} b" for token in SPECIALS),
        *(f"a{token}b" for token in SPECIALS),
        *(f"a!{token}?b" for token in SPECIALS),
        *(f"1{token}1" for token in SPECIALS),
        *(token + token for token in SPECIALS),
        *(token + "'s" for token in SPECIALS),
        "<start_of_text><end_of_text><start_of_text>",
        "!<start_of_text><end_of_text>",
        "<<start_of_text>>",
        "<end_of_text",
        "end_of_text>",
        "_<end_of_text>_",
        "<End_Of_Text> <eNd_oF_tExT>",
        "<\u017ftart_of_text> <ſtart_of_text>",
        "&lt;end_of_text&gt;",
        "&amp;lt;start_of_text&amp;gt;x",
        "<end _of_text> < end_of_text >",
        "\u0345<end_of_text>",
        "é<end_of_text>é",
        "²<end_of_text>½",
        "😀<end_of_text>😀",
        "\x1f<end_of_text>",
        "<end_of_text>" * 90,
    ],
    "unicode": [
        "İstanbul IĞDIR ılık",
        "STRASSE straße ẞ",
        "ΟΔΥΣΣΕΥΣ ΣΑΣ",
        "Ǆ ǅ ǆ Ⅷ ⅷ Ⓐ ⓐ K Å Ω",
        "e\u0301 \u00e9 a\u0345 \u0345 \u0399\u0345",
        "नमस्ते दुनिया",
        "สวัสดีชาวโลก",
        "שלום עולם",
        "مرحبا بالعالم ٠١٢٣٤٥",
        "\u202eright to left\u202c",
        "𝐁𝐨𝐥𝐝 𝒮𝒸𝓇𝒾𝓅𝓉 𝟘𝟙𝟚",
        "𐍈 𐤀 𓀀 𝄞 🀄",
        "①②③ ½ ¾ ² ³ Ⅻ ㊿ 一二三",
        "१२३ ১২৩ ໑໒໓ ١٢٣",
        "a\u0300\u0301\u0302\u0303 z͑ͫ̓ͪ̂a̴l͈g̙o̊",
        "日本語のテキスト、漢字とカナ。",
        "한국어 텍스트 \u1112\u1161\u11ab",
        "naïve façade coöperate Ærøskøbing",
        "\u2028line\u2029paragraph",
        "\U000e0041\U000e007f tags \ufffd \uffff \U0010ffff",
        "\ue000 private \U000f0000",
    ],
    "emoji": [
        "😀😃😄",
        "👨‍👩‍👧‍👦 family",
        "👍🏽 thumbs 👍🏿",
        "🏳️‍🌈 🏴‍☠️",
        "🇩🇪🇫🇷",
        "1️⃣2️⃣ #️⃣",
        "☕️ coffee ☕",
        "❤️‍🔥 ♥ <3",
        "🫠🫡🪿",
        "a😀b😀c",
    ],
    "controls": [
        "a\x00b\x01c",
        "bell\x07back\x08space",
        "\x0bvertical\x0cform",
        "del\x7fete",
        "\x80\x81\x9f",
        "a\u200bb\u200cc\u200dd\u2060e\ufefff",
        "\r\nwindows\rmac\n",
        "unit\x1fseparator",
    ],
    "punctuation": [
        string.punctuation,
        "...---...",
        "$1,000.50 (50%) @home #tag",
        "C++ C# .NET a_b_c snake_case",
        "http://example.com/a?b=c&d=e#f",
        "e-mail: someone@example.com",
        "«guillemets» „quotes“ – — … ‰ €",
        "a/b\\c|d~e^f`g",
        ":-) ;-D ¯\\_(ツ)_/¯",
        "{template} [brackets] <tag>",
    ],
}


def _generated_texts(count: int = 300) -> list[str]:
    rng = random.Random(20)
    # Assigned in the Unicode of the oldest Python supported, so that every regex engine agrees on what they are.
    planes = [range(0x20, 0x250), range(0x250, 0x3000), range(0x3000, 0x10000), range(0x10000, 0x30000)]
    codes = [[chr(c) for c in plane if unicodedata.category(chr(c)) not in ("Cn", "Cs")] for plane in planes]
    pieces = [
        *SPECIALS,
        "&amp;",
        "&lt;",
        "&#233;",
        "'s",
        "'LL",
        "!",
        "!!",
        " ",
        "  ",
        "\n",
        "Ã©",
        "â€™",
        "<",
        ">",
        "\x1f",
    ]

    def piece() -> str:
        kind = rng.random()
        if kind < 0.35:
            return "".join(rng.choices(string.ascii_letters, k=rng.randint(1, 9))) + rng.choice(["", " "])
        if kind < 0.65:
            return "".join(rng.choices(rng.choice(codes), k=rng.randint(1, 4)))
        if kind < 0.75:
            return "".join(rng.choices(string.digits + string.punctuation, k=rng.randint(1, 5)))
        text = rng.choice(pieces)
        return "".join(rng.choice((char, char.upper(), char.swapcase())) for char in text) if kind > 0.95 else text

    return ["".join(piece() for _ in range(rng.randint(1, 30))) for _ in range(count)]


TEXTS = {**HAND_WRITTEN, "generated": _generated_texts()}
ALL_TEXTS = [text for texts in TEXTS.values() for text in texts]

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
