"""The tokenizer's own behaviour: defaults, padding, decoding, saving and loading."""

import copy
import json
import pickle
import random

import numpy as np
import open_clip
import pytest
import torch
from tokenizers import AddedToken
from transformers import (
    AutoTokenizer,
    CLIPTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    TextStreamer,
)

from open_clip_transformers.processing.tokenization_open_clip import OpenClipTokenizer


pytestmark = pytest.mark.floor

BOS, EOS, A, CAT, DOT = 49406, 49407, 320, 2368, 269
# "!<" is one word of two tokens, the first of which is the id that padding has.
EXCLAMATION = "a!<"
EXCLAMATION_IDS = [BOS, A, 0, 283, EOS]


@pytest.fixture(scope="module")
def tokenizer() -> OpenClipTokenizer:
    return OpenClipTokenizer()


def test_call_defaults_pad_and_truncate(tokenizer):
    encoding = tokenizer(["a cat.", "cat " * 200])
    assert list(encoding) == ["input_ids", "attention_mask"]
    assert encoding.input_ids == [[BOS, A, CAT, DOT, EOS] + [0] * 72, [BOS] + [CAT] * 75 + [EOS]]
    assert encoding.attention_mask == [[1] * 5 + [0] * 72, [1] * 77]


@pytest.mark.parametrize("padding", ["max_length", True, "longest"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_call_tensors_equal_lists(tokenizer, padding, side):
    texts = ["a cat.", EXCLAMATION, "", "cat " * 200, "Ünï 😀"]
    tensors = tokenizer(texts, padding=padding, padding_side=side, return_tensors="pt")
    arrays = tokenizer(texts, padding=padding, padding_side=side, return_tensors="np")
    lists = tokenizer(texts, padding=padding, padding_side=side)
    assert tensors.input_ids.dtype == tensors.attention_mask.dtype == torch.int64
    for key in ("input_ids", "attention_mask"):
        assert tensors[key].tolist() == arrays[key].tolist() == lists[key]


def test_call_single_text(tokenizer):
    assert tokenizer("a cat.", padding=False).input_ids == [BOS, A, CAT, DOT, EOS]
    assert tokenizer("a cat.", return_tensors="pt").input_ids.shape == (1, 77)
    assert tokenizer("a cat.", padding=False, return_tensors="pt").input_ids.shape == (1, 5)
    assert len(tokenizer("a cat.").input_ids) == 77


def test_call_padding_true_is_the_models_length(tokenizer):
    # As the zero-shot pipelines call it.
    ids = tokenizer(["a cat.", "cat " * 200], return_tensors="pt", padding=True).input_ids
    assert torch.equal(ids, open_clip.tokenize(["a cat.", "cat " * 200]))
    ids = tokenizer(["a cat."], return_tensors="pt", padding="max_length", max_length=64, truncation=True).input_ids
    assert ids.shape == (1, 64)
    short = OpenClipTokenizer(model_max_length=13)
    ids = short(["cat " * 40], return_tensors="pt", padding="max_length", max_length=64, truncation=True).input_ids
    assert torch.equal(ids, open_clip.tokenize(["cat " * 40], context_length=13))


def test_dynamic_padding(tmp_path):
    OpenClipTokenizer(dynamic_padding=True).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["a cat.", "a"]
    assert torch.equal(tokenizer(texts, return_tensors="pt").input_ids, open_clip.tokenize(texts))
    assert tokenizer(texts, padding=True).input_ids == [[BOS, A, CAT, DOT, EOS], [BOS, A, EOS, 0, 0]]
    assert tokenizer.pad({"input_ids": [[BOS, EOS], [BOS]]}).input_ids == [[BOS, EOS], [BOS, 0]]
    # Texts that are too long are cut, as the zero-shot pipeline does not say so.
    assert torch.equal(
        tokenizer(["cat " * 200], padding=True, return_tensors="pt").input_ids, open_clip.tokenize(["cat " * 200])
    )
    with pytest.raises(ValueError, match="OpenClipTokenizer: fixed_length must be true or false, got 'false'"):
        OpenClipTokenizer(fixed_length="false")
    with pytest.raises(ValueError, match="exclude each other"):
        OpenClipTokenizer(dynamic_padding=True, fixed_length=True)


def test_call_pads_to_a_multiple(tokenizer):
    options = {"padding": "longest", "pad_to_multiple_of": 8, "truncation": False}
    ids = tokenizer(["a cat.", "a"], return_tensors="pt", **options).input_ids
    assert ids.tolist() == [[BOS, A, CAT, DOT, EOS, 0, 0, 0], [BOS, A, EOS, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("padding", [True, "longest", "max_length"])
def test_call_pads_to_a_multiple_that_the_model_takes(tokenizer, padding):
    for texts, longest in ((["a cat.", "a"], 8), (["cat " * 72], 77), (["cat " * 200], 77)):
        ids = tokenizer(texts, padding=padding, pad_to_multiple_of=8, return_tensors="pt").input_ids
        length = longest if padding == "longest" else 77
        assert torch.equal(ids, open_clip.tokenize(texts)[:, :length]) and ids.shape[1] == length
    features = {"input_ids": [[BOS] * 74, [BOS]]}
    assert len(tokenizer.pad(features, padding=padding, pad_to_multiple_of=8).input_ids[1]) == 77
    with pytest.raises(ValueError, match="multiple of pad_to_multiple_of"):
        tokenizer("a", padding=padding, truncation=True, max_length=12, pad_to_multiple_of=8)


def test_call_left_padding(tokenizer):
    encoding = tokenizer(["a cat.", "a"], padding="longest", padding_side="left", return_tensors="pt")
    assert encoding.input_ids.tolist() == [[BOS, A, CAT, DOT, EOS], [0, 0, BOS, A, EOS]]
    assert encoding.attention_mask.tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    left = OpenClipTokenizer(padding_side="left", model_max_length=6)
    assert left("a cat.", return_tensors="pt").input_ids.tolist() == [[0, BOS, A, CAT, DOT, EOS]]


def test_call_without_truncation(tokenizer):
    assert len(tokenizer("cat " * 100, truncation=False, padding=False).input_ids) == 102
    with pytest.raises(ValueError, match="102 tokens does not fit the length of 77"):
        tokenizer("cat " * 100, truncation=False, return_tensors="pt")


@pytest.mark.parametrize("option", ["return_offsets_mapping", "return_special_tokens_mask", "return_length"])
def test_call_extra_outputs_come_padded(tokenizer, option):
    encoding = tokenizer(["a cat.", "a"], return_tensors="pt", **{option: True})
    assert encoding.input_ids.tolist() == tokenizer(["a cat.", "a"]).input_ids
    assert {"return_offsets_mapping": "offset_mapping"}.get(option, option.removeprefix("return_")) in encoding


OPTIONS = {
    "padding": [False, True, "longest", "max_length"],
    "truncation": [None, False, True, "only_first"],
    "max_length": [None, 8, 100],
    "pad_to_multiple_of": [None, 4],
    "padding_side": [None, "left"],
    "add_special_tokens": [True, False],
    "return_attention_mask": [None, False],
    "split_special_tokens": [None, True],
    "return_tensors": [None, "np", "pt"],
}


def _outcome(tokenizer, text, **options):
    """Result of a call, as lists, or the error that it raises."""
    try:
        encoding = tokenizer(text, **options)
    except ValueError:
        return ValueError
    if options["return_tensors"] is None:
        return dict(encoding)
    return {key: [np.asarray(row).tolist() for row in value] for key, value in encoding.items()}


@pytest.mark.parametrize("text", ["a cat <end_of_text>", ["a cat.", "", "cat " * 20]], ids=["text", "texts"])
def test_call_equals_the_base_class_with_every_option(text):
    """Asked for lengths, which it knows, the base class does the same work on its own ways."""
    tokenizer, rng = OpenClipTokenizer(model_max_length=12), random.Random(0)
    outcomes = []
    for _ in range(300):
        options = {name: rng.choice(values) for name, values in OPTIONS.items()}
        ours, theirs = (_outcome(tokenizer, text, **options, return_length=asked) for asked in (False, True))
        if theirs is not ValueError:
            del theirs["length"]
        # Texts that are longer than what they were to be padded to are refused, and not returned longer.
        may_refuse = options["return_tensors"] and options["padding"] and options["truncation"] is False
        assert ours == theirs or (may_refuse and ours is ValueError), options
        outcomes.append(ours)
    assert sum(outcome is not ValueError for outcome in outcomes) > 100


def test_call_keeps_what_the_tokenizers_library_says(tokenizer):
    encoding = tokenizer(["a cat.", "two  dogs"], return_tensors="pt")
    assert encoding.is_fast
    assert encoding.tokens(0) == ["<start_of_text>", "a</w>", "cat</w>", ".</w>", "<end_of_text>"]
    assert encoding.char_to_token(1, 4) == 2
    assert tokenizer("a cat").tokens()[1] == "a</w>"


def test_data_collator_pads_features(tokenizer):
    features = [tokenizer(text, padding=False) for text in ("a cat.", "a")]
    batch = DataCollatorWithPadding(tokenizer)(features)
    assert torch.equal(batch["input_ids"], open_clip.tokenize(["a cat.", "a"]))


def test_call_empty_list_is_refused(tokenizer):
    with pytest.raises(ValueError, match="empty list of texts"):
        tokenizer([])


@pytest.mark.parametrize("text", [None, 3, [3]], ids=["none", "number", "numbers"])
def test_call_other_than_text_is_refused(tokenizer, text):
    with pytest.raises(ValueError, match="text"):
        tokenizer(text)


def test_call_says_which_text_is_none(tokenizer):
    with pytest.raises(ValueError, match=r"Text 1 .* is None"):
        tokenizer(["a", None])


def test_encode_and_tokenize_clean_texts(tokenizer):
    text = "  A\n&amp;lt;CAFÃ‰"
    assert tokenizer.encode(text) == [BOS, *open_clip.tokenizer._tokenizer.encode(text), EOS]
    assert tokenizer.encode("a cat.", add_special_tokens=False) == [A, CAT, DOT]
    assert len(tokenizer.encode("cat " * 200)) == 77
    assert tokenizer.tokenize("A  CAT.") == ["a</w>", "cat</w>", ".</w>"]


def test_exclamation_mark_is_a_token_and_the_padding(tokenizer):
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("!", 0)
    assert tokenizer.all_special_tokens == ["<start_of_text>", "<end_of_text>"]
    assert tokenizer.all_special_ids == [BOS, EOS]
    encoding = tokenizer(EXCLAMATION, return_tensors="pt")
    assert encoding.input_ids[0, :6].tolist() == [*EXCLAMATION_IDS, 0]
    assert encoding.attention_mask[0, :6].tolist() == [1, 1, 1, 1, 1, 0]
    assert tokenizer.decode(encoding.input_ids[0], skip_special_tokens=True) == "a !<"
    assert tokenizer.convert_ids_to_tokens([BOS, A, 0], skip_special_tokens=True) == ["a</w>", "!"]


def test_special_ids(tokenizer):
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<start_of_text>", BOS)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<end_of_text>", EOS)
    assert len(tokenizer) == tokenizer.vocab_size == 49408
    assert tokenizer.model_max_length == 77
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("ids", "caption"),
    {
        "whole": ([BOS, A, CAT, EOS, 0, 0], "a cat"),
        "after_the_end": ([BOS, A, CAT, EOS, A, CAT], "a cat"),
        "left_padded": ([0, 0, BOS, A, CAT, EOS], "a cat"),
        "cut_short": ([BOS, A, CAT], "a cat"),
        "cut_short_and_padded": ([BOS, A, CAT, 0, 0, 0], "a cat"),
        "no_begin": ([A, CAT, EOS], "a cat"),
        "padding_id_within": ([BOS, A, 0, 283, CAT], "a !< cat"),
        "nothing": ([BOS, EOS, 0], ""),
        "begin": ([BOS], ""),
        "no_ids": ([], ""),
        "end_first": ([EOS, A, CAT], ""),
        "word_in_parts": ([BOS, 321, 539, EOS], "b of"),
        "byte_of_a_character": ([BOS, 127, EOS], "\ufffd"),
    }.values(),
    ids=lambda value: None if isinstance(value, list) else repr(value),
)
def test_decode_captions(tokenizer, ids, caption):
    assert tokenizer.decode(ids, skip_special_tokens=True) == caption
    assert tokenizer.batch_decode([ids], skip_special_tokens=True) == [caption]


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("A cat, a dog. Two!", "a cat, a dog. two!"),
        ("don't, it's, we'll; I'd", "don't, it's, we'll ; i'd"),
        ("What?! Really...", "what?! really..."),
        ("the cats' '90s", "the cats ' ' 9 0 s"),
        ("a .net :)", "a. net :)"),
    ],
    ids=["commas", "contractions", "runs", "apostrophes", "signs"],
)
def test_decode_drops_spaces_before_punctuation(tokenizer, text, caption):
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == caption


def test_decode_with_open_clips_spacing(tokenizer):
    ids = tokenizer("A cat, it's here.").input_ids
    expected = open_clip.decode(torch.tensor(ids)).split("<end_of_text>")[0].replace("<start_of_text>", "").strip()
    assert expected == "a cat , it 's here ."
    assert tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == expected
    plain = OpenClipTokenizer(clean_up_tokenization_spaces=False)
    assert plain.decode(ids, skip_special_tokens=True) == expected


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor], ids=["lists", "numpy", "torch"])
def test_decode_takes_batches(tokenizer, convert):
    rows = convert([[BOS, A, CAT, DOT, EOS], [BOS, A, EOS, 0, 0]])
    assert tokenizer.decode(rows, skip_special_tokens=True) == ["a cat.", "a"]
    assert tokenizer.batch_decode(rows, skip_special_tokens=True) == ["a cat.", "a"]
    assert tokenizer.decode(rows[0], skip_special_tokens=True) == "a cat."
    assert tokenizer.decode(rows) == ["<start_of_text>a cat . <end_of_text>", "<start_of_text>a <end_of_text>!!"]


def test_decode_streams_captions(tokenizer, capsys):
    streamer = TextStreamer(tokenizer, skip_special_tokens=True)
    ids = tokenizer("A cat, it's a dog!", padding=False).input_ids
    for token_id in ids:
        streamer.put(torch.tensor([token_id]))
    streamer.end()
    assert capsys.readouterr().out == "a cat, it's a dog!\n"


def test_pad_method_pads_features(tokenizer):
    features = [{"input_ids": [BOS, A, CAT]}, {"input_ids": [BOS]}]
    batch = tokenizer.pad(features, padding="longest", padding_side="left", return_tensors="pt")
    assert batch.input_ids.tolist() == [[BOS, A, CAT], [0, 0, BOS]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]


TEXTS = ["A cat!", EXCLAMATION, "<end_of_text> a!<start_of_text>", "", "Straße 12 😀 &amp;", "cat " * 200]


def _saved(tokenizer, folder):
    tokenizer(TEXTS)  # sets padding and truncation, which must not be saved
    tokenizer.save_pretrained(folder)
    return OpenClipTokenizer.from_pretrained(folder)


COPIES = {
    "saved": _saved,
    "saved_twice": lambda tokenizer, folder: _saved(_saved(tokenizer, folder), folder),
    "tokenizer_file": lambda tokenizer, folder: OpenClipTokenizer(
        tokenizer_file=tokenizer.save_pretrained(folder)[-1], clean=tokenizer.clean, model_max_length=33
    ),
    "pickled": lambda tokenizer, folder: pickle.loads(pickle.dumps(tokenizer)),
    "deep_copy": lambda tokenizer, folder: copy.deepcopy(tokenizer),
    "copy": lambda tokenizer, folder: copy.copy(tokenizer),
}


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("clean", ["lower", "whitespace"])
def test_copies_give_the_same_ids(tmp_path, make_copy, clean):
    original = OpenClipTokenizer(clean=clean, model_max_length=33)
    expected = original(TEXTS, return_tensors="pt").input_ids
    other = make_copy(original, tmp_path)
    assert torch.equal(other(TEXTS, return_tensors="pt").input_ids, expected)
    assert (other.clean, other.model_max_length, other.pad_token_id) == (clean, 33, 0)
    assert other.all_special_ids == [BOS, EOS]
    assert other.batch_decode(expected, skip_special_tokens=True) == original.batch_decode(
        expected, skip_special_tokens=True
    )


def test_saved_files_are_self_contained(tmp_path):
    OpenClipTokenizer(clean="whitespace", model_max_length=76).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    expected = {
        "tokenizer_class": "OpenClipTokenizer",
        "clean": "whitespace",
        "model_max_length": 76,
        "pad_token": "!",
        "bos_token": "<start_of_text>",
        "eos_token": "<end_of_text>",
    }
    assert {key: config[key] for key in expected} == expected
    backend = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert backend["padding"] is None
    assert backend["truncation"] is None
    assert [token["content"] for token in backend["added_tokens"]] == ["<start_of_text>", "<end_of_text>"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_saved_files_are_refused_by_a_tokenizer_that_would_not_clean(tmp_path, side):
    """transformers' own, which the Auto classes take where they do not know ours, says what to do."""
    OpenClipTokenizer(padding_side=side).save_pretrained(tmp_path / "first")
    again = OpenClipTokenizer.from_pretrained(tmp_path / "first")
    again.save_pretrained(tmp_path / "second")
    for loaded in (again, OpenClipTokenizer.from_pretrained(tmp_path / "second")):
        assert loaded.padding_side == side
    for folder in ("first", "second"):
        with pytest.raises(
            ValueError, match=r"open_clip_transformers\. Import the package before.*trust_remote_code=True"
        ):
            PreTrainedTokenizerFast.from_pretrained(tmp_path / folder)


def test_padding_sides_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="'right' and 'left', current value: above"):
        OpenClipTokenizer(padding_side="above")


def test_auto_tokenizer_loads_a_saved_folder(tmp_path):
    import open_clip_transformers  # noqa: F401

    OpenClipTokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "open_clip"}')
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is OpenClipTokenizer
    assert torch.equal(tokenizer(TEXTS, return_tensors="pt").input_ids, open_clip.tokenize(TEXTS))


def test_from_pretrained_without_tokenizer_file_is_refused(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(OSError, match=r"tokenizer"):
        OpenClipTokenizer.from_pretrained(tmp_path)


def test_added_tokens_are_found_in_texts(tmp_path):
    tokenizer = OpenClipTokenizer()
    tokenizer.add_tokens(["<blip>"])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<blop>"]})
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, OpenClipTokenizer.from_pretrained(tmp_path)):
        assert each.encode("a <blip> cat <blop>") == [BOS, A, 49408, CAT, 49409, EOS]
        assert each.encode(EXCLAMATION) == EXCLAMATION_IDS


ADDED_TOKENS = ["<IMG>", "NewWord", "<cat-toy>", "New York", AddedToken("single", single_word=True)]
ADDED_SPECIAL_TOKENS = ["<special>", "“Quoted”"]
TEXTS_WITH_ADDED_TOKENS = [
    "A photo of <IMG> NewWord",
    "<img>newword NEWWORD <CAT-TOY> <cat-toy>s",
    "x<IMG>Y NewWords <IMG><IMG>  !",
    "  <IMG>",
    "New   York city",
    "xsingle single Single singles",
    "<SPECIAL> <special> A“Quoted”b",
    "A cat",
]


@pytest.fixture(scope="module")
def clip_tokenizer():
    """transformers' own tokenizer of CLIP, whose two special tokens have other names."""
    backend = json.loads(OpenClipTokenizer().backend_tokenizer.to_str())["model"]
    tokenizer = CLIPTokenizer(
        vocab={
            token.replace("_of_text>", "oftext|>").replace("<start", "<|start").replace("<end", "<|end")
            if token.endswith("_of_text>")
            else token: i
            for token, i in backend["vocab"].items()
        },
        merges=[tuple(merge) for merge in backend["merges"]],
    )
    return add_tokens(tokenizer)


def add_tokens(tokenizer):
    tokenizer.add_tokens(ADDED_TOKENS)
    tokenizer.add_special_tokens({"extra_special_tokens": ADDED_SPECIAL_TOKENS})
    return tokenizer


def test_added_tokens_are_found_as_transformers_finds_them(tmp_path, clip_tokenizer):
    tokenizer, texts = add_tokens(OpenClipTokenizer()), TEXTS_WITH_ADDED_TOKENS
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path / "again")
    for each in (tokenizer, loaded, AutoTokenizer.from_pretrained(tmp_path / "again"), copy.deepcopy(tokenizer)):
        for text in texts:
            assert each(text, padding=False).input_ids == clip_tokenizer(text).input_ids, text
        assert each(texts).input_ids == [each(text).input_ids for text in texts]
        assert each(texts, return_length=True).input_ids == each(texts, return_tensors="pt").input_ids.tolist()
        text = "a <special> <IMG> cat"
        split = {"split_special_tokens": True}
        assert each(text, padding=False, **split).input_ids == clip_tokenizer(text, **split).input_ids


def test_added_tokens_leave_other_texts_as_they_were(tokenizer):
    texts = ["A  cat &amp; <end_of_text>", EXCLAMATION, "a!<end_of_text> <START_OF_TEXT>", "Ünï 😀", ""]
    assert add_tokens(OpenClipTokenizer())(texts).input_ids == tokenizer(texts).input_ids


def test_uncleaned_tokens_of_another_type_are_refused():
    with pytest.raises(TypeError, match="uncleaned_tokens must be a list of strings"):
        OpenClipTokenizer(uncleaned_tokens="<IMG>")


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="clean='upper'"):
        OpenClipTokenizer(clean="upper")
    with pytest.raises(ValueError, match="sep_token"):
        OpenClipTokenizer(strip_sep_token=True)
