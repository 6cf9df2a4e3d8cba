"""tiktoken's encodings as tokenizers here: the ids of tiktoken, with open_clip 4's control tokens around them."""

import base64
import json
import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from awkward_texts import HAND_WRITTEN
from safetensors.torch import load_file, save_file
from tiny_configs import tiny_clip_cfg
from transformers import AutoProcessor, AutoTokenizer

from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.convert_to_open_clip import convert_to_open_clip
from open_clip_transformers.convert_scripts.processors.tiktoken_bpe import (
    ENCODINGS,
    build_tiktoken_bpe,
    find_ranks,
    read_ranks,
)
from open_clip_transformers.convert_scripts.processors.tokenizers import load_tokenizer
from open_clip_transformers.convert_scripts.sources.source import SourceOptions, open_source
from open_clip_transformers.processing.text_cleaning import TEXT_CLEANERS


NAME = "r50k_base"
TEXTS = [
    *(text for texts in HAND_WRITTEN.values() for text in texts),
    "  two  spaces \n\n and lines\n ",
    "<|start|>not special<|end|><|padding|>",
    "x" * 300,
    " ",
    "\n\n",
]


@cache
def make_ranks(size: int = 50256) -> dict[bytes, int]:
    """Tokens of as many ids as GPT-2's, each made of two that came before."""
    choose = random.Random(0)
    tokens = [bytes([byte]) for byte in range(256)]
    common = [bytes([byte]) for byte in b" etaoinshrdlucmfw\n0123'.,!\xc3\xa9"]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    while len(tokens) < size:
        token = choose.choice(common if len(tokens) < 600 else tokens[256:]) + choose.choice(common)
        if token not in ranks and len(token) < 12:
            ranks[token] = len(tokens)
            tokens.append(token)
    return ranks


def write_file(folder, ranks=None):
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in (ranks or make_ranks()).items()]
    (folder / f"{NAME}.tiktoken").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkpoint of open_clip 4 with a tokenizer of tiktoken, whose file lies beside the weights."""
    folder = tmp_path_factory.mktemp("tiktoken") / "source"
    folder.mkdir()
    write_file(folder)
    text_cfg = {"text_arch": "modern", "context_length": 17, "vocab_size": 50260, "width": 12, "heads": 2, "layers": 1}
    ids = {"bos_id": 50259, "eos_id": 50257, "pad_id": 50258}
    tokenizer = {"tokenizer_type": "tiktoken", "tiktoken_name": NAME}
    model_cfg = {**tiny_clip_cfg(), "text_cfg": {**text_cfg, **ids, "pool_type": "eos", **tokenizer}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    save_file(random_weights(model_cfg), folder / "open_clip_model.safetensors")
    return folder


def random_weights(model_cfg: dict) -> dict[str, torch.Tensor]:
    """A checkpoint of open_clip's names, from our own model of it."""
    from open_clip_transformers.convert_scripts.mapping.config import build_config
    from open_clip_transformers.convert_scripts.mapping.plan import MODEL_CLASSES, rename_table
    from open_clip_transformers.convert_scripts.mapping.state_dict import resolve

    config = build_config(model_cfg)
    state_dict = MODEL_CLASSES[config.model_type](config).state_dict()
    steps, _ = resolve(state_dict, rename_table(config), "targets")
    return {key: tensor.contiguous().clone() for step in steps for key, tensor in step.invert(state_dict)}


@pytest.fixture(scope="module")
def converted(source):
    folder = source.parent / "converted"
    convert_open_clip_checkpoint(source, folder, verify="structure")
    return folder


def test_ids_are_those_of_tiktoken(converted):
    tiktoken = pytest.importorskip("tiktoken")
    pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
    encoding = tiktoken.Encoding(
        NAME, pat_str=pattern, mergeable_ranks=make_ranks(), special_tokens={"<|endoftext|>": 50256}
    )
    tokenizer = AutoTokenizer.from_pretrained(converted)
    for text in TEXTS:
        expected = [50259, *encoding.encode_ordinary(text)][:16] + [50257]
        assert tokenizer(text).input_ids == expected + [50258] * (17 - len(expected)), text
        assert tokenizer(text, padding=False, truncation=False).input_ids[1:-1] == encoding.encode_ordinary(text), text


def test_cl100k_cuts_texts_as_tiktoken_does(monkeypatch):
    tiktoken = pytest.importorskip("tiktoken")
    pattern = (
        r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|"""
        r"""\s*[\r\n]|\s+(?!\S)|\s"""
    )
    encoding = tiktoken.Encoding("cl100k_base", pat_str=pattern, mergeable_ranks=make_ranks(), special_tokens={})
    monkeypatch.setitem(ENCODINGS, "cl100k_base", replace(ENCODINGS["cl100k_base"], tokens=50256))
    tokenizer = build_tiktoken_bpe("cl100k_base", make_ranks(), add_bos=False, add_eos=False)
    assert tokenizer.token_to_id("<|end|>") == ENCODINGS["cl100k_base"].size == 100277
    tokenizer.encode_special_tokens = True
    for text in map(TEXT_CLEANERS["none"], TEXTS):
        assert tokenizer.encode(text).ids == encoding.encode_ordinary(text), text


def test_texts_keep_control_tokens_that_people_write(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted)
    ids = tokenizer("a <|end|> b", padding=False).input_ids
    assert ids.count(50257) == 1 and ids[-1] == 50257
    assert tokenizer.decode(tokenizer("a Cat ", padding=False).input_ids, skip_special_tokens=True) == "a Cat"


def test_processor_pads_to_the_longest_where_asked_for(converted):
    processor = AutoProcessor.from_pretrained(converted)
    inputs = processor(text=["a", "a b"], padding=True, return_tensors="pt")
    assert inputs.input_ids.shape[1] < 17
    assert inputs.attention_mask.tolist()[0][-1] == 0


def test_conversion_back_writes_tiktokens_file(source, converted, tmp_path):
    convert_to_open_clip(converted, tmp_path / "back", verify="structure")
    assert read_ranks(tmp_path / "back" / f"{NAME}.tiktoken") == make_ranks()
    given, back = (
        json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
        for folder in (source, tmp_path / "back")
    )
    assert {key: back.get(key) for key in ("tokenizer_type", "tiktoken_name", "eos_id", "pad_id", "bos_id")} == {
        key: given[key] for key in ("tokenizer_type", "tiktoken_name", "eos_id", "pad_id", "bos_id")
    }
    before, after = (load_file(folder / "open_clip_model.safetensors") for folder in (source, tmp_path / "back"))
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_tokens_are_those_of_the_installed_tiktoken(monkeypatch):
    tiktoken = pytest.importorskip("tiktoken")
    encoding = tiktoken.Encoding(
        NAME, pat_str=r"\S+", mergeable_ranks=make_ranks(), special_tokens={"<|endoftext|>": 50256}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", {NAME: encoding}.get)
    assert find_ranks(NAME, None) == make_ranks()


def test_missing_file_is_asked_for(source, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tiktoken", None)
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    with pytest.raises(ConversionError, match=r"r50k_base\.tiktoken beside the weights"):
        convert_open_clip_checkpoint(tmp_path, tmp_path / "out")


REFUSED = {
    "unknown": ({"tiktoken_name": "p51k_base"}, "tiktoken_name must be one of gpt2, r50k_base"),
    "type": ({"tokenizer_type": "sentencepiece"}, 'tokenizer_type must be "tiktoken"'),
    "ids": ({"eos_id": 50256}, r"eos_id = 50256 \(the tokenizer: 50257\)"),
    "vocabulary": ({"vocab_size": 50259, "bos_id": 50258, "pad_id": 50258}, "names other special tokens"),
    "arguments": ({"tokenizer_kwargs": {"add_prefix": True}}, "tokenizer_kwargs may hold clean, add_bos, add_eos"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_tokenizers_that_cannot_be_are_refused(source, tmp_path, changes, message):
    config = json.loads((source / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= changes
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    for name in (f"{NAME}.tiktoken", "open_clip_model.safetensors"):
        (tmp_path / name).symlink_to(source / name)
    with pytest.raises(ConversionError, match=message):
        load_tokenizer(open_source(SourceOptions(tmp_path)))


def test_file_that_was_cut_off_is_refused(source, tmp_path):
    lines = (source / f"{NAME}.tiktoken").read_text().splitlines()[:-1]
    (tmp_path / f"{NAME}.tiktoken").write_text("\n".join(lines))
    with pytest.raises(ConversionError, match=r"got 50255, expected 50256 .* cut off"):
        build_tiktoken_bpe(NAME, read_ranks(tmp_path / f"{NAME}.tiktoken"))


@pytest.mark.parametrize("content", ["not base64! 3\n", "YQ== one\n", "YQ==\n"], ids=["token", "rank", "no-rank"])
def test_file_that_is_not_tiktokens_is_refused(tmp_path, content):
    (tmp_path / "a.tiktoken").write_text(content)
    with pytest.raises(ConversionError, match=r"a\.tiktoken is not a file of tiktoken's"):
        read_ranks(tmp_path / "a.tiktoken")
