"""Tokenizers of converted checkpoints: the ids that open_clip gives them, where files come from, what is refused."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from tiny_configs import (
    save_open_clip_folder,
    tiny_clip_cfg,
    tiny_coca_cfg,
    tiny_hf_text_cfg,
    tiny_siglip_cfg,
)
from tiny_folders import COCA_CLIP_VOCABULARY
from tiny_tokenizers import save_tiny_tokenizer, write_word_tokenizer
from transformers import AutoTokenizer

import open_clip_transformers
from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.processors import tokenizers
from open_clip_transformers.convert_scripts.processors.tokenizers import (
    load_tokenizer,
    padding_settings,
    tokenizer_folder,
)
from open_clip_transformers.convert_scripts.sources.architectures import get_architecture
from open_clip_transformers.convert_scripts.sources.source import Source


TEXTS = ["A photo of two cats.", "  zwei &amp;amp; <b>Hunde</b> ", "", "cats " * 40, "[SEP] </s> \U0001f600 été"]


def source_of(model_cfg: dict, folder: Path | None = None) -> Source:
    return Source(
        name="source", weights=Path("weights"), model_cfg=model_cfg, preprocess_cfg={}, tokenizer_folder=folder
    )


def text_cfg(**settings) -> dict:
    return {"hf_tokenizer_name": "org/name", "vocab_size": 700, "context_length": 13, **settings}


# Tokenizer, and what open_clip's configuration says: as those of the models named do.
CHECKPOINTS = {
    "ViT-B-16-SigLIP": ("siglip", tiny_siglip_cfg(text_cfg=text_cfg(tokenizer_kwargs={"clean": "canonicalize"}))),
    "ViT-B-16-SigLIP2": ("siglip2", tiny_siglip_cfg(text_cfg=text_cfg(tokenizer_kwargs={"clean": "canonicalize"}))),
    "ViT-L-14-CLIPA": ("bert", tiny_clip_cfg(text_cfg=text_cfg(tokenizer_kwargs={"strip_sep_token": True}))),
    "ViT-L-14-worldwide": ("mt5", tiny_clip_cfg(text_cfg=text_cfg(tokenizer_kwargs={"clean": "canonicalize"}))),
    "ViT-H-14-worldwide": ("xlm_roberta", tiny_clip_cfg(text_cfg=text_cfg())),
    "CLIPS": ("clips", tiny_clip_cfg(text_cfg=text_cfg(tokenizer_mode="clips"))),
    "roberta-ViT-B-32": ("roberta", tiny_clip_cfg(text_cfg=text_cfg(tokenizer_mode="another"))),
    "nllb-clip-base": ("nllb", tiny_clip_cfg(text_cfg=text_cfg())),
}


@pytest.mark.floor
@pytest.mark.parametrize(("name", "model_cfg"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_tokenizer_files_beside_the_weights_give_open_clips_ids(tmp_path, name, model_cfg):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    save_tiny_tokenizer(name, tmp_path)
    load_tokenizer(source_of(model_cfg, tmp_path)).save_pretrained(tmp_path / "out")
    expected = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS)
    assert torch.equal(AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS, return_tensors="pt").input_ids, expected)


@pytest.mark.parametrize("settings", [{}, {"tokenizer_mode": "clips"}], ids=["plain", "mode without effect"])
def test_clip_tokenizer_takes_no_mode(settings):
    model_cfg = tiny_clip_cfg(text_cfg={"vocab_size": 49408, **settings})
    tokenizer = load_tokenizer(source_of(model_cfg))
    assert torch.equal(tokenizer(TEXTS, return_tensors="pt").input_ids, open_clip.tokenize(TEXTS, context_length=11))


def test_language_is_set(tmp_path):
    save_tiny_tokenizer("nllb", tmp_path)
    model_cfg = tiny_clip_cfg(text_cfg=text_cfg(tokenizer_kwargs={"language": "deu_Latn"}))
    assert load_tokenizer(source_of(model_cfg, tmp_path)).src_lang == "deu_Latn"


def test_sentinels_beyond_the_vocabulary_are_no_hindrance(tmp_path):
    """SigLIP's multilingual vocabulary has 250100 ids, the last hundred sentinels, and its text towers have 250000."""
    save_tiny_tokenizer("mt5", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    size = len(tokenizer)
    tokenizer.add_tokens([f"<extra_id_{i}>" for i in range(3)])
    tokenizer.save_pretrained(tmp_path)
    source = source_of(tiny_siglip_cfg(text_cfg=text_cfg(vocab_size=size)), tmp_path)
    assert len(load_tokenizer(source)) == size + 3
    source.model_cfg["text_cfg"]["vocab_size"] = size - 1
    with pytest.raises(
        ConversionError, match=f"has {size + 3} ids, the text tower {size - 1}: these are not its files"
    ):
        load_tokenizer(source)


def test_vocabulary_of_an_encoder_is_its_own(tmp_path):
    save_tiny_tokenizer("roberta", tmp_path)
    model_cfg = tiny_hf_text_cfg(text_cfg={"hf_tokenizer_name": "org/name"})
    assert len(load_tokenizer(source_of(model_cfg, tmp_path))) > 101


# Whether outputs depend on how much padding there is; of CoCa the caller must say.
FIXED_LENGTH = {
    "ViT-B-16-SigLIP": True,
    "ViT-B-16-SigLIP2": True,
    "nllb-clip-base-siglip": True,
    "ViT-L-14-CLIPA": True,
    "MobileCLIP-S1": True,
    "MobileCLIP2-S4": True,
    "MobileCLIP-B": False,
    "ViT-B-32": False,
    "ViT-H-14-worldwide": False,
    "PE-Core-B-16": False,
    "nllb-clip-base": False,
    "xlm-roberta-base-ViT-B-32": False,
    "coca_ViT-B-32": None,
}


@pytest.mark.parametrize(("name", "fixed"), FIXED_LENGTH.items(), ids=FIXED_LENGTH)
def test_fixed_length_where_outputs_depend_on_the_padding(name, fixed):
    expected = {} if fixed is None else {"fixed_length": fixed, "dynamic_padding": not fixed}
    assert padding_settings(get_architecture(name)) == expected


# Configuration, and tokens of "a cat" padded with `True` and with "longest".
CONVERTED = {
    "fixed": (tiny_clip_cfg(text_cfg={"vocab_size": 49408, "no_causal_mask": True}), 11, 11),
    "dynamic": (tiny_clip_cfg(text_cfg={"vocab_size": 49408}), 4, 4),
    "coca": (tiny_coca_cfg(**COCA_CLIP_VOCABULARY), 23, 4),
}


@pytest.mark.parametrize(("model_cfg", "by_default", "longest"), CONVERTED.values(), ids=CONVERTED)
def test_converted_tokenizer_knows_how_its_model_is_padded(tmp_path, model_cfg, by_default, longest):
    save_open_clip_folder(tmp_path / "source", model_cfg)
    open_clip_transformers.convert_open_clip_checkpoint(tmp_path / "source", tmp_path / "ours", verify="structure")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert len(tokenizer("a cat", padding=True).input_ids) == by_default
    assert len(tokenizer("a cat", padding="longest").input_ids) == longest
    assert len(tokenizer("a cat").input_ids) == tokenizer.model_max_length


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with one repository, a folder on this machine; returns what was asked for."""
    asked = []

    def snapshot_download(repo_id, revision, allow_patterns):
        assert revision is None  # that of the weights is another repository's
        asked.append((repo_id, allow_patterns))
        return str(tmp_path / "hub")

    (tmp_path / "hub").mkdir()
    monkeypatch.setattr(tokenizers.huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_tokenizer_files_come_from_the_hub_where_they_do_not_lie_beside_the_weights(tmp_path, hub):
    save_tiny_tokenizer("bert", tmp_path / "hub")
    tokenizer = load_tokenizer(source_of(tiny_clip_cfg(text_cfg=text_cfg()), tmp_path))
    assert tokenizer.cls_token == "[CLS]"
    ((repo_id, patterns),) = hub
    assert repo_id == "org/name"
    assert {"tokenizer.json", "tokenizer_config.json", "config.json", "spiece.model"} <= set(patterns)


def test_model_type_of_the_hub_says_the_class_of_old_tokenizers(tmp_path, hub):
    """bert-base-uncased has a tokenizer_config.json that names neither class nor special tokens."""
    save_tiny_tokenizer("bert", tmp_path / "hub")
    (tmp_path / "hub" / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 512}')
    (tmp_path / "hub" / "config.json").write_text('{"model_type": "bert"}')
    tokenizer = load_tokenizer(source_of(tiny_clip_cfg(text_cfg=text_cfg())))
    assert (tokenizer.pad_token, tokenizer.sep_token) == ("[PAD]", "[SEP]")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalEntryNotFoundError("offline"), "not in the local cache and the Hugging Face Hub cannot be reached"),
        (RepositoryNotFoundError.__new__(RepositoryNotFoundError), "cannot be downloaded"),
        (None, "has none of the files tokenizer.json, spiece.model"),
    ],
    ids=["offline", "no repository", "no tokenizer"],
)
def test_missing_tokenizer_files_are_explained(tmp_path, hub, monkeypatch, error, message):
    if error is not None:

        def fail(*args, **kwargs):
            raise error

        monkeypatch.setattr(tokenizers.huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ConversionError) as raised:
        tokenizer_folder(source_of({}, tmp_path), "org/name")
    for part in ("tokenizer org/name is needed and source", message, "AutoTokenizer.from_pretrained('org/name')"):
        assert part in str(raised.value)
    assert "beside the weights" in str(raised.value) and "with_processor=False" in str(raised.value)


def test_tokenizer_that_is_not_required_is_not_downloaded(tmp_path, hub):
    assert load_tokenizer(source_of(tiny_clip_cfg(text_cfg=text_cfg()), tmp_path), required=False) is None
    assert load_tokenizer(source_of(tiny_clip_cfg()), required=False) is None
    save_tiny_tokenizer("bert", tmp_path)
    assert load_tokenizer(source_of(tiny_clip_cfg(text_cfg=text_cfg()), tmp_path), required=False) is not None
    assert load_tokenizer(source_of(tiny_clip_cfg(text_cfg=text_cfg(vocab_size=9)), tmp_path), required=False) is None
    assert hub == []


def test_sentencepiece_model_beside_the_weights_is_explained(tmp_path, monkeypatch):
    from open_clip_transformers.processing import tokenization_open_clip

    monkeypatch.setattr(tokenization_open_clip, "is_sentencepiece_available", lambda: False)
    (tmp_path / "spiece.model").write_bytes(b"")
    with pytest.raises(ConversionError, match=r"cannot be used: .*pip install sentencepiece protobuf"):
        load_tokenizer(source_of(tiny_clip_cfg(text_cfg=text_cfg()), tmp_path))


def test_coca_with_a_tokenizer_of_its_own_starts_and_ends_captions_with_its_ids(tmp_path):
    model_cfg = tiny_coca_cfg(text_cfg=text_cfg(context_length=10), multimodal_cfg={"vocab_size": 700})
    save_open_clip_folder(tmp_path / "source", model_cfg)
    save_tiny_tokenizer("xlm_roberta", tmp_path / "source")
    open_clip_transformers.convert_open_clip_checkpoint(tmp_path / "source", tmp_path / "out", verify="structure")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")] == [0, 2, 1]


CLIP, OTHER = {"vocab_size": 49408}, {"hf_tokenizer_name": "org/name"}
REFUSED = {
    "small vocabulary": ({}, "vocab_size is 97, but open_clip's own tokenizer.*has 49408 ids"),
    "reduction mask": (
        {**CLIP, "tokenizer_kwargs": {"clean": "lower", "reduction_mask": "shuffle"}},
        "tokenizer_kwargs may hold clean for this tokenizer, got reduction_mask. reduction_mask: .*at random",
    ),
    "vocabulary": ({**CLIP, "tokenizer_kwargs": {"bpe_path": "x.gz"}}, "got bpe_path.*only one of its kind"),
    "strip_sep_token": (
        {**CLIP, "tokenizer_kwargs": {"strip_sep_token": True}},
        "may hold clean .*got strip_sep_token",
    ),
    "code": (
        {**OTHER, "tokenizer_kwargs": {"trust_remote_code": True, "clean": "lower"}},
        "may hold clean, strip_sep_token, language for this tokenizer, got trust_remote_code",
    ),
    "language": ({**OTHER, "tokenizer_kwargs": {"language": "deu_Latn"}}, "cannot be used: .*marks no language"),
    "mode": ({**OTHER, "tokenizer_mode": "clips"}, "cannot be used: class_token_last=True needs .*: bos_token"),
    "clean": ({**OTHER, "tokenizer_kwargs": {"clean": "upper"}}, "clean must be one of lower, .*, got 'upper'"),
    "clean of CLIP's": ({**CLIP, "tokenizer_kwargs": {"clean": None}}, "clean must be one of lower, .*, got None"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_convert_refuses_tokenizers_in_doubt(tmp_path, settings, message):
    source = tmp_path / "source"
    save_open_clip_folder(source, tiny_clip_cfg(text_cfg=settings))
    save_tiny_tokenizer("bert", source)
    with pytest.raises(ConversionError, match=message):
        open_clip_transformers.convert_open_clip_checkpoint(source, tmp_path / "out", verify="structure")
    assert not (tmp_path / "out").exists()


def write_words(folder: Path, words: list[str], **special_tokens: str):
    write_word_tokenizer(folder, words, "[CLS] $A", unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens(special_tokens)
    tokenizer.save_pretrained(folder)


WORDS = ["[PAD]", "[UNK]", "[CLS]", "a", "cat"]


@pytest.mark.parametrize(
    ("surplus", "special"),
    [(["<unused1>", "two words"], {}), ([], {"mask_token": "[MASK]"}), (["Cat"], {})],
    ids=["never_one_word", "special", "upper_case"],
)
def test_tokens_that_no_text_holds_may_lie_beyond_the_vocabulary(tmp_path, surplus, special):
    write_words(tmp_path, WORDS + surplus, **special)
    cfg = tiny_clip_cfg(text_cfg=text_cfg(vocab_size=len(WORDS), tokenizer_kwargs={"clean": "lower"}))
    tokenizer = load_tokenizer(source_of(cfg, tmp_path))
    assert len(tokenizer) > len(WORDS)
    assert tokenizer("a Cat <unused1> two words").input_ids == [2, 3, 4, *[1] * 5, *[0] * 5]


@pytest.mark.parametrize(
    ("words", "reached"),
    [([*WORDS, "dog"], r"5 \('dog'\)"), (["[UNK]", "a", "cat", "[CLS]", "dog", "[PAD]"], r"5 \('\[PAD\]'\)")],
    ids=["word", "padding"],
)
def test_tokens_that_texts_hold_may_not_lie_beyond_the_vocabulary(tmp_path, words, reached):
    write_words(tmp_path, words)
    with pytest.raises(ConversionError, match=rf"has 6 ids, the text tower 5: .* as texts hold the id {reached}"):
        load_tokenizer(source_of(tiny_clip_cfg(text_cfg=text_cfg(vocab_size=5)), tmp_path))


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json"])
def test_ids_far_beyond_the_vocabulary_are_refused_before_they_are_read(tmp_path, name):
    vocabulary = {"[PAD]": 0, "a": 4_000_000_000}
    content = {"model": {"type": "WordLevel", "vocab": vocabulary}} if name == "tokenizer.json" else vocabulary
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ConversionError, match=r"is damaged: it has the id 4000000000, and 2 tokens"):
        load_tokenizer(source_of(tiny_clip_cfg(text_cfg=text_cfg()), tmp_path))
