"""Texts that are hard to tokenise as open_clip does."""

import random
import string
import unicodedata


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
