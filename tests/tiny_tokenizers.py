"""Tiny tokenizers with the structure of those that open_clip's models come with, and saved as those are.

Each is of transformers' own class, with a vocabulary learnt from a few lines.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertTokenizer,
    GemmaTokenizer,
    NllbTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    T5Tokenizer,
    XLMRobertaTokenizer,
)


CORPUS = [
    "a photo of a cat and a photo of the dog",
    "This is a photo of two cats, nothing and a diagram.",
    "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs",
    "Ein Bild von einer Katze und zwei Hunden auf dem Sofa über den Dächern",
    "une photo d'un chat et de deux chiens près de la forêt",
    "фотография кошки и двух собак",
    "一張貓的照片 と 犬の写真",
    "0 1 2 3 4 5 6 7 8 9 ! ? . , : ; ' - _ ( ) < > & # / @ \" [ ] { } = + * % $ ~ ^ ` | \\",
]


def write_word_tokenizer(folder: Path, words: Sequence[str], single: str, **special_tokens: str):
    """Write the files of a tokenizer of `words`, whose ids are their places.

    Args:
        folder: where to write them.
        words: the vocabulary, special tokens included.
        single: the template of a text, such as `"[CLS] $A [SEP]"`.
        special_tokens: `unk_token` and others.
    """
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, special_tokens["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    added = [(token, words.index(token)) for token in single.split() if token != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=added)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens).save_pretrained(folder)


def _train(model, trainer, pre_tokenizer=None, normalizer=None, **settings) -> Tokenizer:
    tokenizer = Tokenizer(model)
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(CORPUS * 3, trainer(show_progress=False, **settings))
    return tokenizer


def _unigram(special_tokens: list[str]) -> list[tuple[str, float]]:
    """Pieces with their scores: `special_tokens`, which hold "<unk>", come first, as sentencepiece has them."""
    tokenizer = _train(
        models.Unigram(),
        trainers.UnigramTrainer,
        pre_tokenizers.Metaspace(),
        vocab_size=260,
        special_tokens=special_tokens,
        unk_token="<unk>",
    )
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [(piece, 0.0 if piece in special_tokens else -2.0 - 0.01 * index) for piece, index in pieces]


def _bpe(special_tokens: list[str], **settings) -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = _train(models.BPE(), trainers.BpeTrainer, vocab_size=600, special_tokens=special_tokens, **settings)
    return tokenizer.get_vocab(), [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def siglip() -> PreTrainedTokenizerBase:
    """T5's, without sentinels, padded with its end-of-text token (open_clip: `SigLipTokenizer`)."""
    return T5Tokenizer(vocab=_unigram(["<pad>", "</s>", "<unk>"]), extra_ids=0, pad_token="</s>")


def siglip2() -> PreTrainedTokenizerBase:
    """Gemma's, with bytes for characters that it does not know; an end-of-text token and no begin-of-text token."""
    special_tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab, merges = _bpe(
        special_tokens,
        normalizer=normalizers.Replace(" ", "▁"),
        pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous"),
    )
    return GemmaTokenizer(vocab, merges, padding_side="right", add_bos_token=False, add_eos_token=True)


def mt5() -> PreTrainedTokenizerBase:
    return T5Tokenizer(vocab=_unigram(["<pad>", "</s>", "<unk>"]), extra_ids=0)


def bert() -> PreTrainedTokenizerBase:
    tokenizer = _train(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer,
        pre_tokenizers.BertPreTokenizer(),
        normalizers.BertNormalizer(),
        vocab_size=300,
        special_tokens=["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    )
    return BertTokenizer(vocab=tokenizer.get_vocab())


def clips() -> PreTrainedTokenizerBase:
    """BERT's with a begin- and an end-of-text token, for open_clip's `tokenizer_mode="clips"`."""
    tokenizer = bert()
    tokenizer.add_special_tokens({"bos_token": "[unused0]", "eos_token": "[unused1]"})
    return tokenizer


def roberta() -> PreTrainedTokenizerBase:
    special_tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return RobertaTokenizer(
        *_bpe(special_tokens, pre_tokenizer=byte_level, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )


def xlm_roberta() -> PreTrainedTokenizerBase:
    """Also XLM-V's."""
    return XLMRobertaTokenizer(vocab=[*_unigram(["<s>", "<pad>", "</s>", "<unk>"]), ("<mask>", 0.0)])


def nllb(**settings) -> PreTrainedTokenizerBase:
    vocab, merges = _bpe(["<s>", "<pad>", "</s>", "<unk>"], pre_tokenizer=pre_tokenizers.Metaspace())
    return NllbTokenizer(vocab, merges, **settings)


def nllb_legacy() -> PreTrainedTokenizerBase:
    """NLLB's with the language behind the text."""
    return nllb(legacy_behaviour=True)


TINY_TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    make.__name__: make for make in (siglip, siglip2, mt5, bert, clips, roberta, xlm_roberta, nllb, nllb_legacy)
}


def save_tiny_tokenizer(name: str, folder: Path) -> Path:
    """Saves the tiny tokenizer `name` in `folder`, which is returned."""
    TINY_TOKENIZERS[name]().save_pretrained(folder)
    return folder
