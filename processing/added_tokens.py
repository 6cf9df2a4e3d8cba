"""Tokens that were added to a vocabulary, found in texts before these are cleaned.

transformers' tokenizers split texts at added tokens first, and normalise what lies between.
"""

import re
from collections.abc import Callable, Iterable

from tokenizers import AddedToken


class AddedTokenFinder:
    """Splits texts at added tokens, as the tokenizers library does.

    Args:
        tokens: what to find. Those with `normalized=False`, as special ones are, are found as they are written; then,
            in what is left, the others, with any white space where theirs is.
        ignores_case: find the others in any letter case.
    """

    def __init__(self, tokens: Iterable[AddedToken], ignores_case: bool):
        tokens = sorted(tokens, key=lambda token: -len(token.content))  # the longest of those that begin alike
        self._steps = []
        for normalized, flags in ((False, 0), (True, re.IGNORECASE if ignores_case else 0)):
            group = [token for token in tokens if token.normalized == normalized and token.content]
            if group:
                pattern = re.compile("|".join(map(_pattern, group)), flags)
                self._steps.append((pattern, [token.content for token in group]))
        self._as_written = [token.content for token in tokens if not token.normalized]

    def clean(self, text: str, clean: Callable[[str], str], mark: str = "") -> str:
        """`text` with its added tokens spelt as in the vocabulary, and what lies between them cleaned.

        Args:
            text: as it was given.
            clean: cleans a part of it, white space at its ends included, of which one space stays beside tokens.
            mark: set into what cleaning makes look like a token, if any.
        """
        parts = [text]
        for step in self._steps:
            parts = [piece for i, part in enumerate(parts) for piece in ([part] if i % 2 else _split(part, *step))]
        # Every second part is a token.
        last = len(parts) - 1
        for i in range(0, len(parts), 2):
            cleaned = clean(parts[i])
            for content in self._as_written if mark else ():
                cleaned = cleaned.replace(content, content[0] + mark + content[1:])
            before = " " if i > 0 and parts[i][:1].isspace() else ""
            behind = " " if i < last and parts[i][-1:].isspace() else ""
            parts[i] = before + cleaned + behind if cleaned else before and behind
        return "".join(parts)


def _pattern(token: AddedToken) -> str:
    pattern = re.escape(token.content)
    if token.normalized:
        pattern = re.sub(r"(\\?\s)+", r"\\s+", pattern)
    return rf"((?<!\w){pattern}(?!\w))" if token.single_word else f"({pattern})"


def _split(text: str, pattern: re.Pattern, contents: list[str]) -> list[str]:
    """Text, token, text, token, ..., text."""
    parts, position = [], 0
    for match in pattern.finditer(text):
        parts += [text[position : match.start()], contents[(match.lastindex or 0) - 1]]
        position = match.end()
    return [*parts, text[position:]]


__all__ = ["AddedTokenFinder"]
