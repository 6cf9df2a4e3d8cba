"""The tokenizer of each family against open_clip's `HFTokenizer` and `SigLipTokenizer`, on the same files."""

from functools import cache
from pathlib import Path

import pytest
import torch
from awkward_texts import ALL_TEXTS
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, basic_clean, get_clean_fn, whitespace_clean
from tiny_tokenizers import TINY_TOKENIZERS, nllb, save_tiny_tokenizer
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast

import open_clip_transformers  # noqa: F401  registers the processor
from open_clip_transformers.processing import tokenization_open_clip
from open_clip_transformers.processing.image_processing_pil_open_clip import OpenClipImageProcessorPil
from open_clip_transformers.processing.processing_open_clip import OpenClipProcessor
from open_clip_transformers.processing.text_cleaning import TEXT_CLEANERS
from open_clip_transformers.processing.tokenization_open_clip import OpenClipTokenizer


pytestmark = pytest.mark.floor

SPECIAL_TEXTS = [
    "a photo of the cat, and two dogs",
    "[CLS] a [SEP] b [PAD] [MASK] [UNK] [unused0] c",
    "<s> a </s> b <pad> <mask> <unk> <bos> <eos> <extra_id_0> c",
    "a</s>b<mask>c",
    "eng_Latn a fra_Latn",
    "\u2581a \u2581\u2581b",
]
EVERY_TEXT = [*SPECIAL_TEXTS, *ALL_TEXTS]
TEXTS = EVERY_TEXT[::8] + SPECIAL_TEXTS
CONTEXT_LENGTH = 19
# What the configurations of open_clip's models say of each family; all of them are tried with every family below.
CLEANERS = tuple(TEXT_CLEANERS)
# open_clip 4 has two more than 3.3.0.
CLEANERS_4 = {
    "none": lambda text: text,
    "whitespace_underscore": lambda text: whitespace_clean(basic_clean(text).replace("_", " ")),
}
SETTINGS = {
    "siglip": {"clean": "canonicalize"},
    "siglip2": {"clean": "canonicalize"},
    "mt5": {"clean": "canonicalize"},
    "bert": {"strip_sep_token": True},
    "clips": {"tokenizer_mode": "clips"},
    "roberta": {},
    "xlm_roberta": {},
    "nllb": {"language": "deu_Latn"},
    "nllb_legacy": {"language": "fra_Latn"},
}

every_family = pytest.mark.parametrize("name", TINY_TOKENIZERS)


def open_clip_tokenizer(folder: Path, language: str | None = None, **settings) -> HFTokenizer:
    """open_clip's tokenizer; its `language` is undone by each call of transformers' tokenizer, `src_lang` is not."""
    languages = {} if language is None else {"src_lang": language}
    return HFTokenizer(str(folder), context_length=CONTEXT_LENGTH, **settings, **languages)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    return cache(lambda name: save_tiny_tokenizer(name, tmp_path_factory.mktemp(name)))


def differing_texts(ids, expected, texts=TEXTS) -> list[str]:
    assert ids.dtype == expected.dtype == torch.int64
    assert ids.shape == expected.shape == (len(texts), CONTEXT_LENGTH)
    return [text for text, row, expected_row in zip(texts, ids, expected) if not torch.equal(row, expected_row)]


@every_family
@pytest.mark.parametrize("clean", CLEANERS)
def test_ids_of_every_family_equal_open_clip(folder_of, name, clean):
    reference = open_clip_tokenizer(folder_of(name))
    reference.clean_fn = CLEANERS_4.get(clean) or get_clean_fn(clean)
    tokenizer = OpenClipTokenizer.from_hf_tokenizer(folder_of(name), context_length=CONTEXT_LENGTH, clean=clean)
    # Half of a surrogate pair, which cleaning mends, is no text for tokenizers.
    texts = [text for text in EVERY_TEXT if clean != "none" or text == text.encode(errors="ignore").decode()]
    ids = tokenizer(texts, return_tensors="pt").input_ids
    assert differing_texts(ids, reference(texts), texts) == []


def test_tiny_tokenizers_know_most_texts(folder_of):
    """Otherwise comparing ids would say little: tokens other than the unknown one and padding are many."""
    for name in TINY_TOKENIZERS:
        tokenizer = OpenClipTokenizer.from_hf_tokenizer(folder_of(name), context_length=CONTEXT_LENGTH)
        ids = tokenizer(EVERY_TEXT, return_tensors="pt").input_ids
        assert ids.unique().numel() > 90, name
        assert (ids == tokenizer.unk_token_id).float().mean() < 0.3, name


def _processor(tokenizer, folder: Path):
    image_processor = OpenClipImageProcessorPil(size={"height": 8, "width": 8})
    OpenClipProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)
    return AutoProcessor.from_pretrained(folder)


def _auto_tokenizer(tokenizer, folder: Path):
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "open_clip"}')
    return AutoTokenizer.from_pretrained(folder)


def _saved_twice(tokenizer, folder: Path):
    tokenizer.save_pretrained(folder / "once")
    OpenClipTokenizer.from_pretrained(folder / "once").save_pretrained(folder / "twice")
    return OpenClipTokenizer.from_pretrained(folder / "twice")


@every_family
@pytest.mark.parametrize("reload", [_saved_twice, _auto_tokenizer, _processor], ids=["twice", "auto", "processor"])
def test_saved_families_give_the_same_ids(tmp_path, folder_of, name, reload):
    settings = SETTINGS[name]
    reference = open_clip_tokenizer(folder_of(name), **settings)
    tokenizer = OpenClipTokenizer.from_hf_tokenizer(folder_of(name), context_length=CONTEXT_LENGTH, **settings)
    tokenizer(TEXTS[:3])  # sets truncation, which must not be saved
    loaded = reload(tokenizer, tmp_path)
    encoding = loaded(text=TEXTS, return_tensors="pt")
    assert sorted(encoding) == ["attention_mask", "input_ids"]
    assert differing_texts(encoding.input_ids, reference(TEXTS)) == []
    assert torch.equal(encoding.attention_mask, tokenizer(TEXTS, return_tensors="pt").attention_mask)
    for tensors, lists in ((loaded, loaded), (tokenizer, tokenizer)):
        assert tensors(text=TEXTS, return_tensors="pt").input_ids.tolist() == lists(text=TEXTS).input_ids
        single = [lists(text=text).input_ids for text in TEXTS[:40]]
        assert [row[0] if isinstance(row[0], list) else row for row in single] == encoding.input_ids[:40].tolist()


@pytest.mark.parametrize("name", ["siglip", "siglip2"])
def test_siglips_tokenizers_equal_the_ones_that_open_clip_imports(folder_of, name):
    reference = SigLipTokenizer.__new__(SigLipTokenizer)
    reference.tokenizer = AutoTokenizer.from_pretrained(folder_of(name))
    reference.tokenizer.pad_token_id, reference.tokenizer.eos_token_id = (1, 1) if name == "siglip" else (0, 1)
    reference.context_length = CONTEXT_LENGTH
    tokenizer = OpenClipTokenizer.from_hf_tokenizer(
        folder_of(name), context_length=CONTEXT_LENGTH, clean="canonicalize"
    )
    assert differing_texts(tokenizer(TEXTS, return_tensors="pt").input_ids, reference(TEXTS)) == []


@every_family
@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_padding_of_every_family_is_fixed_or_dynamic(folder_of, name, padding):
    tokenizer = OpenClipTokenizer.from_hf_tokenizer(folder_of(name), context_length=CONTEXT_LENGTH, **SETTINGS[name])
    texts = ["a cat", "two dogs", ""]
    encoding = tokenizer(texts, padding=padding, return_tensors="pt")
    length = encoding.input_ids.shape[1]
    full = tokenizer(texts, return_tensors="pt")
    assert length == CONTEXT_LENGTH if padding == "max_length" else length < CONTEXT_LENGTH
    kept = torch.arange(CONTEXT_LENGTH) < length
    if name == "clips":  # the class token stays the last
        kept = torch.arange(CONTEXT_LENGTH) < length - 1
        kept[-1] = True
    assert torch.equal(encoding.input_ids, full.input_ids[:, kept])
    assert torch.equal(encoding.attention_mask, full.attention_mask[:, kept])
    assert full.attention_mask[:, ~kept].sum() == 0


@pytest.mark.parametrize("options", [{"padding": "longest"}, {"padding": "max_length", "max_length": 64}, {}], ids=str)
def test_fixed_length_is_kept_whatever_is_asked_for(tmp_path, folder_of, options):
    for context_length in (CONTEXT_LENGTH, 77):
        tokenizer = OpenClipTokenizer.from_hf_tokenizer(
            folder_of("siglip"), context_length=context_length, fixed_length=True
        )
        tokenizer.save_pretrained(tmp_path)
        reference = HFTokenizer(str(folder_of("siglip")), context_length=context_length)
        for each in (tokenizer, OpenClipTokenizer.from_pretrained(tmp_path)):
            ids = each(TEXTS, return_tensors="pt", truncation=True, **options).input_ids
            assert torch.equal(ids, reference(TEXTS))
            batch = each.pad([each(text, padding=False) for text in TEXTS[:9]], return_tensors="pt", **options)
            assert torch.equal(batch.input_ids, reference(TEXTS[:9]))


def test_fixed_length_leaves_texts_unpadded_on_request(folder_of):
    tokenizer = OpenClipTokenizer.from_hf_tokenizer(folder_of("siglip"), context_length=64, fixed_length=True)
    ids = tokenizer("a photo", padding=False).input_ids
    assert len(ids) < 10
    assert tokenizer("a photo", padding=False, max_length=3).input_ids == [*ids[:2], tokenizer.eos_token_id]


@pytest.mark.parametrize("name", ["nllb", "nllb_legacy"])
def test_language_equals_open_clip(tmp_path, folder_of, name):
    tokenizer = OpenClipTokenizer.from_hf_tokenizer(folder_of(name), context_length=CONTEXT_LENGTH)
    assert tokenizer.src_lang == "eng_Latn"
    for language in ("eng_Latn", "zho_Hant", "deu_Latn"):
        reference = open_clip_tokenizer(folder_of(name), language)
        tokenizer.src_lang = language
        tokenizer.save_pretrained(tmp_path)
        given = OpenClipTokenizer.from_hf_tokenizer(folder_of(name), context_length=CONTEXT_LENGTH, language=language)
        for each in (tokenizer, OpenClipTokenizer.from_pretrained(tmp_path), given):
            assert each.src_lang == language
            assert differing_texts(each(TEXTS, return_tensors="pt").input_ids, reference(TEXTS)) == []


def test_language_can_be_chosen_when_loading_and_changed_again(tmp_path, folder_of):
    OpenClipTokenizer.from_hf_tokenizer(folder_of("nllb"), language="deu_Latn").save_pretrained(tmp_path)
    tokenizer = OpenClipTokenizer.from_pretrained(tmp_path, src_lang="fra_Latn")
    assert tokenizer("a cat").input_ids[0] == tokenizer.convert_tokens_to_ids("fra_Latn")
    tokenizer.src_lang = "rus_Cyrl"
    tokenizer.save_pretrained(tmp_path)
    assert OpenClipTokenizer.from_pretrained(tmp_path).src_lang == "rus_Cyrl"


def test_language_of_a_tokenizer_with_one_already_is_kept(tmp_path):
    nllb(src_lang="fra_Latn").save_pretrained(tmp_path)
    tokenizer = OpenClipTokenizer.from_hf_tokenizer(tmp_path, context_length=CONTEXT_LENGTH)
    assert tokenizer.src_lang == "fra_Latn"
    reference = open_clip_tokenizer(tmp_path)
    assert differing_texts(tokenizer(TEXTS, return_tensors="pt").input_ids, reference(TEXTS)) == []


def test_open_clip_sets_the_language_of_a_saved_folder(tmp_path, folder_of):
    OpenClipTokenizer.from_hf_tokenizer(folder_of("nllb"), context_length=CONTEXT_LENGTH).save_pretrained(tmp_path)
    reference = open_clip_tokenizer(folder_of("nllb"), "deu_Latn")
    ours = HFTokenizer(str(tmp_path), context_length=CONTEXT_LENGTH, language="deu_Latn")
    assert differing_texts(ours(TEXTS), reference(TEXTS)) == []


def test_unknown_languages_are_refused(folder_of):
    tokenizer = OpenClipTokenizer.from_hf_tokenizer(folder_of("nllb"))
    with pytest.raises(ValueError, match="Unknown language 'de': this tokenizer has 202, such as ace_Arab"):
        tokenizer.src_lang = "de"
    assert tokenizer.src_lang == "eng_Latn"
    for name in ("siglip", "xlm_roberta", "bert"):
        assert OpenClipTokenizer.from_hf_tokenizer(folder_of(name)).src_lang is None
        with pytest.raises(ValueError, match="'deu_Latn', but this tokenizer marks no language"):
            OpenClipTokenizer.from_hf_tokenizer(folder_of(name), language="deu_Latn")
    with pytest.raises(ValueError, match="marks no language"):
        OpenClipTokenizer(src_lang="deu_Latn")


@pytest.mark.parametrize("context_length", [4, CONTEXT_LENGTH, 60])
def test_class_token_behind_the_padding_equals_open_clip(tmp_path, folder_of, context_length):
    settings = {"context_length": context_length, "tokenizer_mode": "clips", "strip_sep_token": True}
    reference = HFTokenizer(str(folder_of("clips")), **settings)
    OpenClipTokenizer.from_hf_tokenizer(folder_of("clips"), **settings).save_pretrained(tmp_path)
    tokenizer = OpenClipTokenizer.from_pretrained(tmp_path)
    encoding = tokenizer(TEXTS, return_tensors="pt")
    assert torch.equal(encoding.input_ids, reference(TEXTS))
    plain = [i for i, text in enumerate(TEXTS) if "[PAD]" not in text]
    assert torch.equal(encoding.attention_mask[plain] == 1, encoding.input_ids[plain] != tokenizer.pad_token_id)
    single = tokenizer("a cat", padding=False)
    assert tokenizer.convert_ids_to_tokens(single.input_ids)[-2:] == ["[unused1]", "[CLS]"]
    assert len(single.input_ids) == len(single.attention_mask) == min(5, context_length)


def test_class_token_behind_the_padding_refuses_what_it_cannot_do(folder_of):
    with pytest.raises(ValueError, match="tokens that are not set: bos_token, eos_token"):
        OpenClipTokenizer.from_hf_tokenizer(folder_of("bert"), tokenizer_mode="clips")
    tokenizer = OpenClipTokenizer.from_hf_tokenizer(folder_of("clips"), tokenizer_mode="clips")
    with pytest.raises(ValueError, match="of single texts: leave out text pairs"):
        tokenizer("a", "b")


def test_sentencepiece_model_without_its_packages_is_explained(tmp_path, monkeypatch):
    (tmp_path / "spiece.model").write_bytes(b"")
    monkeypatch.setattr(tokenization_open_clip, "is_sentencepiece_available", lambda: False)
    with pytest.raises(ImportError, match=r"sentencepiece model and no tokenizer\.json.*pip install sentencepiece"):
        OpenClipTokenizer.from_hf_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["siglip", "xlm_roberta", "nllb"])
def test_sentencepiece_model_equals_open_clip(tmp_path, name):
    """Repositories such as google/mt5-base hold a sentencepiece model and no tokenizer.json."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    save_tiny_tokenizer(name, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1} if name == "siglip" else {}
    file = "spiece" if name == "siglip" else "sentencepiece.bpe"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text for text in ALL_TEXTS if text.isprintable()),
        model_prefix=str(tmp_path / file),
        model_type="bpe" if name == "nllb" else "unigram",
        vocab_size=1300,
        hard_vocab_limit=False,
        minloglevel=2,
        **ids,
    )
    reference = open_clip_tokenizer(tmp_path)
    tokenizer = OpenClipTokenizer.from_hf_tokenizer(tmp_path, context_length=CONTEXT_LENGTH)
    tokenizer.save_pretrained(tmp_path / "saved")
    for each in (tokenizer, OpenClipTokenizer.from_pretrained(tmp_path / "saved")):
        assert differing_texts(each(TEXTS, return_tensors="pt").input_ids, reference(TEXTS)) == []


def test_from_hf_tokenizer_runs_no_code(tmp_path):
    PreTrainedTokenizerFast(tokenizer_file=str(save_tiny_tokenizer("bert", tmp_path) / "tokenizer.json"))
    with pytest.raises(TypeError, match="trust_remote_code"):
        OpenClipTokenizer.from_hf_tokenizer(tmp_path, trust_remote_code=True)


@pytest.mark.parametrize("name", ["siglip", "siglip2", "bert", "xlm_roberta"])
@pytest.mark.parametrize("clean", ["canonicalize", "whitespace"])
def test_added_tokens_of_every_family_are_found(tmp_path, folder_of, name, clean):
    tokenizer = OpenClipTokenizer.from_hf_tokenizer(folder_of(name), clean=clean)
    before = tokenizer(["a photo of a cat", "<IMG> Cat-Toy"], padding=False).input_ids
    ids = [len(tokenizer) + i for i in range(2)]
    tokenizer.add_tokens(["<IMG>"])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<Cat-Toy>"]})
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        found = each(["a photo, <IMG> of", "a <Cat-Toy>  cat <IMG>"], padding=False).input_ids
        assert [[i for i in row if i in ids] for row in found] == [ids[:1], ids[::-1]]
        assert each("a photo of a cat", padding=False).input_ids == before[0]
