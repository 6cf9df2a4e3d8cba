"""Language codes that a multilingual tokenizer puts around texts (open_clip: `HFTokenizer.set_language`).

NLLB's tokenizer writes `eng_Latn ... </s>`, or `... </s> eng_Latn` in its older form: the code is one of the special
tokens in the template of the post-processor, where these functions read and change it.
"""

import json
from collections.abc import Collection

from tokenizers import Tokenizer


def get_language(tokenizer: Tokenizer, languages: Collection[str]) -> str | None:
    """The token of `languages` that `tokenizer` adds to texts, `None` if it adds none."""
    pieces = _template(tokenizer).get("single", [])
    tokens = [piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece]
    return next((token for token in tokens if token in languages), None)


def set_language(tokenizer: Tokenizer, language: str, languages: Collection[str]):
    """Lets `tokenizer` add `language` in place of the token of `languages` that it adds now.

    Raises:
        ValueError: texts of this tokenizer hold no language, or `language` is not one of `languages`.
    """
    current = get_language(tokenizer, languages)
    if current is None:
        raise ValueError(f"Got the language {language!r}, but this tokenizer marks no language: leave it out.")
    if language not in languages:
        known = ", ".join(sorted(map(str, languages))[:8])
        raise ValueError(f"Unknown language {language!r}: this tokenizer has {len(languages)}, such as {known}.")
    template = _template(tokenizer)
    for piece in (*template["single"], *template["pair"]):
        if piece.get("SpecialToken", {}).get("id") == current:
            piece["SpecialToken"]["id"] = language
    del template["special_tokens"][current]
    ids = [tokenizer.token_to_id(language)]
    template["special_tokens"][language] = {"id": language, "ids": ids, "tokens": [language]}
    post_processor = tokenizer.post_processor
    post_processor.__setstate__(json.dumps(template).encode())
    tokenizer.post_processor = post_processor


def _template(tokenizer: Tokenizer) -> dict:
    # The bindings of the tokenizers library show a post-processor's contents in its pickled state only.
    post_processor = tokenizer.post_processor
    return {} if post_processor is None else json.JSONDecoder().decode(post_processor.__getstate__().decode())


__all__ = ["get_language", "set_language"]
