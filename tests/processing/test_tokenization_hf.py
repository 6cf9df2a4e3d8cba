"""Tokenizers of other checkpoints against open_clip's `HFTokenizer`, which uses them through transformers too."""

import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from open_clip_transformers.processing.tokenization_open_clip import OpenClipTokenizer


pytestmark = pytest.mark.floor

TEXTS = [
    "A photo of a cat, and two Dogs.",
    "",
    "  spaces \n and_underscores  &amp;lt;b&gt; ",
    "Ünïcode 😀 cafÃ©",
    "[SEP] </s> <s> [PAD] <pad> literal",
    "word " * 40,
]


def _train(model, trainer, pre_tokenizer, special_tokens) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    corpus = [*TEXTS, "the quick brown fox jumps over the lazy dog", "a photo of the cat"] * 3
    tokenizer.train_from_iterator(corpus, trainer(special_tokens=special_tokens, show_progress=False))
    return tokenizer


def _template(tokenizer: Tokenizer, single: str, names: list[str]):
    special_tokens = [(name, tokenizer.token_to_id(name)) for name in names]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special_tokens)


def bert_like() -> PreTrainedTokenizerFast:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = _train(
        models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer, pre_tokenizers.BertPreTokenizer(), names
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.decoder = decoders.WordPiece()
    _template(tokenizer, "[CLS] $A [SEP]", ["[CLS]", "[SEP]"])
    special = {f"{name.strip('[]').lower()}_token": name for name in names}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def t5_like() -> PreTrainedTokenizerFast:
    names = ["<pad>", "</s>", "<unk>"]
    tokenizer = _train(
        models.Unigram(),
        lambda **kwargs: trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", **kwargs),
        pre_tokenizers.Metaspace(),
        names,
    )
    tokenizer.decoder = decoders.Metaspace()
    _template(tokenizer, "$A </s>", ["</s>"])
    # SigLIP's tokenizers pad with their end-of-text token.
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="</s>", eos_token="</s>", unk_token="<unk>")


def roberta_like() -> PreTrainedTokenizerFast:
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = _train(models.BPE(), trainers.BpeTrainer, pre_tokenizers.ByteLevel(), names)
    tokenizer.decoder = decoders.ByteLevel()
    _template(tokenizer, "<s> $A </s>", ["<s>", "</s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        padding_side="left",
    )


SOURCES = {"bert_like": bert_like, "t5_like": t5_like, "roberta_like": roberta_like}
every_source = pytest.mark.parametrize("make_source", SOURCES.values(), ids=SOURCES)


@every_source
@pytest.mark.parametrize("clean", ["whitespace", "canonicalize", "lower"])
def test_from_hf_tokenizer_equals_open_clip(tmp_path, make_source, clean):
    make_source().save_pretrained(tmp_path / "source")
    reference = HFTokenizer(str(tmp_path / "source"), context_length=13, clean=clean)
    tokenizer = OpenClipTokenizer.from_hf_tokenizer(tmp_path / "source", context_length=13, clean=clean)
    tokenizer.save_pretrained(tmp_path / "saved")
    for each in (tokenizer, OpenClipTokenizer.from_pretrained(tmp_path / "saved")):
        encoding = each(TEXTS, return_tensors="pt")
        assert list(encoding) == ["input_ids", "attention_mask"]
        assert torch.equal(encoding.input_ids, reference(TEXTS))
        assert (each.clean, each.model_max_length) == (clean, 13)
        assert each.special_tokens_map == reference.tokenizer.special_tokens_map
        assert len(each) == len(reference.tokenizer)


@pytest.mark.parametrize("return_tensors", ["pt", None], ids=["tensors", "lists"])
@pytest.mark.parametrize("make_source", [bert_like, roberta_like], ids=["bert_like", "roberta_like"])
def test_strip_sep_token_equals_open_clip(tmp_path, make_source, return_tensors):
    make_source().save_pretrained(tmp_path / "source")
    options = {"context_length": 13, "strip_sep_token": True}
    reference = HFTokenizer(str(tmp_path / "source"), **options)
    OpenClipTokenizer.from_hf_tokenizer(tmp_path / "source", **options).save_pretrained(tmp_path / "saved")
    tokenizer = OpenClipTokenizer.from_pretrained(tmp_path / "saved")
    encoding = tokenizer(TEXTS, return_tensors=return_tensors)
    assert torch.equal(torch.as_tensor(encoding.input_ids), reference(TEXTS))
    single = tokenizer(TEXTS[0], return_tensors=return_tensors)
    assert torch.equal(torch.as_tensor(single.input_ids).flatten(), reference(TEXTS[0])[0])
    # The token that took the separator's place is not attended to.
    plain = OpenClipTokenizer.from_hf_tokenizer(tmp_path / "source", context_length=13)(TEXTS[0], return_tensors="pt")
    separators = (plain.input_ids == tokenizer.sep_token_id).sum()
    assert separators == 1
    assert torch.as_tensor(single.attention_mask).sum() == plain.attention_mask.sum() - separators


@every_source
def test_from_hf_tokenizer_decodes_captions(tmp_path, make_source):
    make_source().save_pretrained(tmp_path)
    tokenizer = OpenClipTokenizer.from_hf_tokenizer(tmp_path, context_length=40)
    ids = tokenizer("a photo of the cat").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a photo of the cat"
    reference = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(ids) == reference.decode(ids)


def test_from_hf_tokenizer_without_padding_token_is_refused(tmp_path):
    PreTrainedTokenizerFast(tokenizer_object=t5_like().backend_tokenizer).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no padding token"):
        OpenClipTokenizer.from_hf_tokenizer(tmp_path)


def test_tokenizer_file_of_another_vocabulary(tmp_path):
    bert_like().save_pretrained(tmp_path)
    tokenizer = OpenClipTokenizer(tokenizer_file=tmp_path / "tokenizer.json", pad_token="[PAD]")
    assert tokenizer.clean == "whitespace"
    assert tokenizer.bos_token is None
    ids = tokenizer(["a photo", "the cat and the dog"], padding=True, return_tensors="pt").input_ids
    assert ids.shape[0] == 2 and (ids[0] == tokenizer.pad_token_id).any()
    assert len(tokenizer) == len(bert_like())
