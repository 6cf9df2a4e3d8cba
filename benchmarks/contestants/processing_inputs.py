"""Synthetic photographs and captions, the same for every contestant of a cell."""

import io
import json
import math
import string
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import T5Tokenizer

from open_clip_transformers.processing.clip_bpe import END_OF_WORD, build_clip_bpe


# Pixels of a photograph for each of the random colours that it is made of, and the noise of a sensor.
COARSENESS, NOISE = 40, 8
JPEG_QUALITY = 90
COMMON_WORDS, COMMON_SHARE = 3000, 0.9
FOREIGN = (
    "фотография кошки и двух собак",
    "一張貓的照片 と 犬の写真",
    "Ein Bild über den Dächern von Köln",
    "une photo près de la forêt, l’été",
    "it&#39;s a dog &amp; a cat",
    "naïve café – “quoted” …",
    "😀🐕 in the park",
)
FOREIGN_SHARE = 0.7
# Of SigLIP's tokenizer.
PIECES = 32000
SPECIAL_PIECES = ("<pad>", "</s>", "<unk>")


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Make an RGB image of smooth random colours with some noise; sizes in pixels."""
    generator = np.random.default_rng(seed)
    grid = (max(2, height // COARSENESS), max(2, width // COARSENESS), 3)
    colours = Image.fromarray(generator.integers(0, 256, grid, dtype=np.uint8))
    smooth = np.asarray(colours.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = smooth + generator.integers(-NOISE, NOISE + 1, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def photographs(settings: dict) -> list[Image.Image]:
    """Make the photographs of a cell, whose sizes take turns."""
    sizes = settings["sizes"]
    return [photograph(*sizes[index % len(sizes)], index) for index in range(settings["count"])]


def jpeg(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=JPEG_QUALITY)
    return content.getvalue()


def decoded(image: Image.Image) -> torch.Tensor:
    """Return a uint8 tensor (3, height, width) with channels last in memory, as torchvision's decoders do."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def captions(settings: dict) -> list[str]:
    """Make captions of 5 to 20 words, mostly common ones; of kind "mixed", most hold other characters than ASCII."""
    generator = np.random.default_rng(0)
    words = _words()
    return [_caption(generator, words, settings["kind"]) for _ in range(settings["count"])]


def _caption(generator: np.random.Generator, words: list[str], kind: str) -> str:
    common = generator.random(generator.integers(5, 21)) < COMMON_SHARE
    chosen = [words[generator.integers(COMMON_WORDS if is_common else len(words))] for is_common in common]
    text = " ".join(chosen).capitalize() + str(generator.choice(["", ".", "!"]))
    if kind == "mixed" and generator.random() < FOREIGN_SHARE:
        return f"{text} {generator.choice(FOREIGN)}"
    return text


@lru_cache(maxsize=1)
def _words() -> list[str]:
    """The words of CLIP's vocabulary, in the order of its merges: frequent ones first."""
    vocabulary, _ = clip_vocabulary()
    words = [token.removesuffix(END_OF_WORD) for token in vocabulary if token.endswith(END_OF_WORD)]
    return [word for word in words if word.isascii() and word.isalpha() and len(word) > 1]


def common_words() -> list[str]:
    """The words that most captions are drawn from."""
    return _words()[:COMMON_WORDS]


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's vocabulary, in the order of its ids, and its merges."""
    model = json.loads(build_clip_bpe().to_str())["model"]
    vocabulary = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    return vocabulary, [tuple(merge) for merge in model["merges"]]


def siglip_folder(folder: Path) -> Path:
    """Write a tokenizer like SigLIP's: T5's class with 32000 pieces, padded with its end-of-text token."""
    path = folder / "siglip-tokenizer"
    if not path.exists():
        characters = [chr(code) for code in range(33, 127)] + sorted(set("".join(FOREIGN)) - set(string.printable))
        pieces = list(dict.fromkeys(["▁", *(f"▁{word}" for word in _words())]))
        pieces = pieces[: PIECES - len(SPECIAL_PIECES) - len(characters)]
        scored = [(piece, -math.log(rank + 2)) for rank, piece in enumerate([*pieces, *characters])]
        special = [(piece, 0.0) for piece in SPECIAL_PIECES]
        T5Tokenizer(vocab=[*special, *scored], extra_ids=0, pad_token="</s>").save_pretrained(path)
    return path
