"""Processors of converted checkpoints: the same pixels and ids as open_clip, and what is refused."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image
from tiny_configs import save_open_clip_folder, tiny_clip_cfg, tiny_coca_cfg
from tiny_tokenizers import write_word_tokenizer
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.image_utils import OPENAI_CLIP_STD

import open_clip_transformers
from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.mapping.config import build_config
from open_clip_transformers.convert_scripts.processors.image import image_processor_settings
from open_clip_transformers.processing.image_processing_pil_open_clip import OpenClipImageProcessorPil


CLIP_VOCABULARY = {"text_cfg": {"vocab_size": 49408}}
WORDS = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "a", "photo", "of", "two", "cats", "dogs", ",", "."]
TEXTS = ["A photo of two cats.", "  two &amp; <b>dogs</b> ", "", "cats " * 40]


def convert(source: Path, output: Path, **kwargs):
    return open_clip_transformers.convert_open_clip_checkpoint(source, output, verify="structure", **kwargs)


def write_tokenizer(folder: Path, words: list[str] = WORDS):
    """Files of a word tokenizer with the ids of `WORDS`."""
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    write_word_tokenizer(folder, words, "[BOS] $A [EOS]", **special)


@pytest.fixture
def worded(tmp_path) -> Path:
    """A tiny CoCa whose tokenizer's files lie beside its weights."""
    model_cfg = tiny_coca_cfg(text_cfg={"hf_tokenizer_name": "org/name", "tokenizer_kwargs": {"clean": "lower"}})
    save_open_clip_folder(tmp_path / "worded", model_cfg)
    write_tokenizer(tmp_path / "worded")
    return tmp_path / "worded"


PREPROCESS = {
    "defaults": {},
    "empty-values": {"mean": None, "resize_mode": None},
    "settings": {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.1], "interpolation": "bilinear"},
    "one-mean": {"mean": 0.5, "std": 0.25},
    "longest": {"resize_mode": "longest", "fill_color": 7},
    "squash": {"resize_mode": "squash"},
    "random-interpolation": {"interpolation": "random"},
    "size-of-another-model": {"size": 99},
    "unknown-field": {"hf_hub": "org/name"},
}


@pytest.mark.parametrize("image_size", [24, [16, 32]], ids=["square", "wide"])
@pytest.mark.parametrize("preprocess_cfg", PREPROCESS.values(), ids=PREPROCESS.keys())
def test_image_processor_gives_the_pixels_of_open_clip(preprocess_cfg, image_size):
    config = build_config(tiny_clip_cfg(vision_cfg={"image_size": image_size}))
    processor = OpenClipImageProcessorPil(**image_processor_settings(preprocess_cfg, config))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8))
    # As open_clip's `create_model` does: defaults, the checkpoint's settings, the size of the vision tower.
    settings = merge_preprocess_dict(PreprocessCfg(), preprocess_cfg) | {"size": image_size}
    expected = image_transform_v2(PreprocessCfg(**settings), is_train=False)(image)
    assert torch.equal(processor(images=image, return_tensors="pt").pixel_values[0], expected)


def test_image_settings_come_along(tmp_path):
    preprocess_cfg = {"mean": [0.4, 0.5, 0.6], "interpolation": "bilinear", "resize_mode": "squash"}
    save_open_clip_folder(tmp_path / "source", tiny_clip_cfg(**CLIP_VOCABULARY), preprocess_cfg=preprocess_cfg)
    convert(tmp_path / "source", tmp_path / "out")
    image_processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert isinstance(image_processor, open_clip_transformers.OpenClipImageProcessor)
    assert tuple(image_processor.image_mean) == (0.4, 0.5, 0.6)
    assert tuple(image_processor.image_std) == tuple(OPENAI_CLIP_STD)
    assert (image_processor.resample, image_processor.resize_mode) == (2, "squash")
    assert dict(image_processor.size) == {"height": 24, "width": 24}


REFUSED_PREPROCESS = {
    "mode": ({"mode": "L"}, "mode must be one of RGB, got 'L'"),
    "interpolation": ({"interpolation": "nearest"}, "interpolation must be one of bicubic, bilinear, random"),
    "resize-mode": ({"resize_mode": "crop"}, "resize_mode must be one of shortest, longest, squash, got 'crop'"),
}


@pytest.mark.parametrize(("cfg", "message"), REFUSED_PREPROCESS.values(), ids=REFUSED_PREPROCESS.keys())
def test_convert_refuses_image_settings_without_a_meaning(tmp_path, cfg, message):
    save_open_clip_folder(tmp_path / "source", tiny_clip_cfg(**CLIP_VOCABULARY), preprocess_cfg=cfg)
    with pytest.raises(ConversionError, match=message):
        convert(tmp_path / "source", tmp_path / "out")


@pytest.mark.parametrize("tokenizer_kwargs", [{}, {"clean": "canonicalize"}], ids=["default", "canonicalize"])
def test_clip_tokenizer_gives_the_ids_of_open_clip(tmp_path, tokenizer_kwargs):
    text_cfg = {"vocab_size": 49408, "tokenizer_kwargs": tokenizer_kwargs}
    save_open_clip_folder(tmp_path / "source", tiny_coca_cfg(text_cfg=text_cfg))
    convert(tmp_path / "source", tmp_path / "out")
    expected = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'source'}")(TEXTS)
    ours = AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS, return_tensors="pt").input_ids
    assert torch.equal(ours, expected)


@pytest.mark.floor
def test_other_tokenizer_is_taken_from_beside_the_weights(tmp_path, worded):
    convert(worded, tmp_path / "out")
    expected = open_clip.get_tokenizer(f"local-dir:{worded}")(TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert torch.equal(tokenizer(TEXTS, return_tensors="pt").input_ids, expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    for ids in (config, generation):
        assert [ids[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")] == [2, 3, 0]


@pytest.mark.parametrize("with_processor", [True, False], ids=["with", "without"])
def test_ids_of_a_tokenizer_beside_the_weights_are_known_without_a_processor(tmp_path, worded, with_processor):
    report = convert(worded, tmp_path / "out", with_processor=with_processor)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], report.notes) == (2, ())
    assert (tmp_path / "out" / "tokenizer.json").exists() == with_processor


@pytest.mark.floor
def test_converted_folder_captions_an_image(tmp_path, worded):
    convert(worded, tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    model = open_clip_transformers.CoCaForConditionalGeneration.from_pretrained(tmp_path / "out")
    image = Image.fromarray(np.full((37, 53, 3), 90, np.uint8))
    ids = model.generate(**processor(images=image, return_tensors="pt"))
    assert ids[0, 0] == 2 and ids.shape[1] <= 10
    assert isinstance(processor.post_process_image_text_to_text(ids)[0], str)


def test_convert_without_a_processor_does_not_mind_a_broken_tokenizer(tmp_path, worded):
    (worded / "tokenizer.json").write_text("{}")
    with pytest.raises(ConversionError, match="cannot be used"):
        convert(worded, tmp_path / "out")
    report = convert(worded, tmp_path / "out", with_processor=False)
    assert "tokenizer is not known" in report.notes[0]


def test_convert_runs_no_code_of_a_tokenizer(tmp_path, worded):
    (worded / "evil.py").write_text("raise SystemExit('ran')")
    config = json.loads((worded / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (worded / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match="cannot be used"):
        convert(worded, tmp_path / "out")
