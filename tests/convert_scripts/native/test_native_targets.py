"""transformers' own models and single towers as outputs: equal to ours and to open_clip's, or refused by name."""

import json
import warnings
from pathlib import Path

import open_clip
import pytest
import torch
import transformers
from model_pairs import BOUND, random_images, random_texts, relative_difference
from reduced_models import reduced_cfg, reduced_timm
from safetensors.torch import load_file
from tiny_configs import VOCAB_SIZE, save_open_clip_folder, tiny_clip_cfg, tiny_coca_cfg, tiny_siglip_cfg
from tiny_tokenizers import write_word_tokenizer
from transformers import AutoModel, AutoProcessor, AutoTokenizer, pipeline
from transformers.utils import logging

from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.mapping.config import TokenIds, build_config
from open_clip_transformers.convert_scripts.native.targets import find_target
from open_clip_transformers.convert_scripts.sources.architectures import get_architecture
from open_clip_transformers.modeling.modeling_text import OpenClipTextModel
from open_clip_transformers.modeling.modeling_vit import OpenClipVitModel


CLIP_VOCABULARY = {"text_cfg": {"vocab_size": 49408}}
EOS = {"pool_type": "eos", "eos_id": VOCAB_SIZE - 1}
CLIPS = {
    "clip": (tiny_clip_cfg(), "CLIPModel"),
    "quick-gelu": (tiny_clip_cfg(quick_gelu=True), "CLIPModel"),
    "tanh-epsilon": (
        tiny_clip_cfg(vision_cfg={"act_kwargs": {"approximate": "tanh"}}, text_cfg={"norm_kwargs": {"eps": 1e-3}}),
        "CLIPModel",
    ),
    "norm-after-pool": (tiny_clip_cfg(vision_cfg={"final_ln_after_pool": True}), "CLIPModel"),
    "sin-cos": (tiny_clip_cfg(vision_cfg={"pos_embed_type": "sin_cos_2d"}), "CLIPModel"),
    "1d-temperature": (tiny_clip_cfg(nonscalar_logit_scale=True), "CLIPModel"),
    "custom-text": (tiny_clip_cfg(custom_text=True), "CLIPModel"),
    "eos": (tiny_clip_cfg(text_cfg=EOS), "CLIPModel"),
    "metaclip-2": (tiny_clip_cfg(text_cfg={**EOS, "eos_id": 2}), "MetaClip2Model"),
}


def convert(tmp_path: Path, model_cfg: dict, **kwargs):
    """`(open_clip's model, report)` of a random model converted to `tmp_path / "out"`."""
    model = save_open_clip_folder(tmp_path / "source", model_cfg, preprocess_cfg=kwargs.pop("preprocess_cfg", None))
    kwargs = {"with_processor": False, "verify": "full", "target": "native", **kwargs}
    return model, convert_open_clip_checkpoint(tmp_path / "source", tmp_path / "out", **kwargs)


def load(model_class, folder: Path, caplog):
    """A model loaded without a word of warning."""
    caplog.clear()
    logging.enable_propagation()
    with warnings.catch_warnings(), caplog.at_level("WARNING"):
        warnings.simplefilter("error")
        model, info = model_class.from_pretrained(folder, output_loading_info=True)
    logging.disable_propagation()
    assert not any(info.values()) and caplog.text == ""
    return model.eval()


@pytest.mark.floor
@pytest.mark.parametrize(("model_cfg", "name"), CLIPS.values(), ids=CLIPS.keys())
def test_native_model_equals_open_clip(tmp_path, caplog, model_cfg, name):
    reference, report = convert(tmp_path, model_cfg)
    assert report.architecture == name
    assert report.verification.differences.keys() == {"image features", "text features", "logits"}
    model = load(getattr(transformers, name), tmp_path / "out", caplog)
    assert type(load(AutoModel, tmp_path / "out", caplog)) is type(model)
    images, texts = random_images(model_cfg), random_texts([11, 6, 3], 11)
    texts[0, 5] = 2  # the end of the text for MetaCLIP 2
    texts[1:, -1] = 2
    with torch.inference_mode():
        outputs = model(pixel_values=images, input_ids=texts)
        expected, _ = reference.get_logits(images, texts)
    assert relative_difference(outputs.logits_per_image, expected) <= BOUND


@pytest.mark.floor
@pytest.mark.parametrize("target", ["ours", "native"])
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_single_tower_equals_open_clip(tmp_path, caplog, target, tower):
    model_cfg = tiny_clip_cfg()
    reference, report = convert(tmp_path, model_cfg, target=target, tower=tower)
    assert list(report.verification.differences) == [{"vision": "image features", "text": "text features"}[tower]]
    classes = {
        ("ours", "vision"): OpenClipVitModel,
        ("ours", "text"): OpenClipTextModel,
        ("native", "vision"): transformers.CLIPVisionModelWithProjection,
        ("native", "text"): transformers.CLIPTextModelWithProjection,
    }
    model_class = classes[target, tower]
    assert report.architecture == model_class.__name__
    model = load(AutoModel if target == "ours" else model_class, tmp_path / "out", caplog)
    assert type(model) is model_class
    images, texts = random_images(model_cfg), random_texts([11, 6, 3], 11)
    with torch.inference_mode():
        if tower == "vision":
            outputs, expected = model(pixel_values=images), reference.encode_image(images)
        else:
            outputs, expected = model(input_ids=texts), reference.encode_text(texts)
    embeds = {"vision": "image_embeds", "text": "text_embeds"}[tower] if target == "native" else "pooler_output"
    assert relative_difference(outputs[embeds], expected) <= BOUND


KINDS = {
    "resnet": ("RN50", "vision", "ModifiedResNetModel"),
    "timm": ("MobileCLIP-S1", "vision", "TimmVisionModel"),
    "siglip": ("ViT-B-16-SigLIP2", "vision", "SiglipVitModel"),
    "hugging-face": ("mt5-base-ViT-B-32", "text", "HfTextModel"),
    "coca-vision": ("coca_ViT-B-32", "vision", "OpenClipVitModel"),
    "coca-text": ("coca_ViT-B-32", "text", "OpenClipTextModel"),
}


@pytest.mark.parametrize(("name", "tower", "model_class"), KINDS.values(), ids=KINDS.keys())
def test_single_tower_of_every_kind_equals_open_clip(tmp_path, name, tower, model_class):
    with reduced_timm():
        _, report = convert(tmp_path, reduced_cfg(get_architecture(name)), target="ours", tower=tower)
        assert report.architecture == type(AutoModel.from_pretrained(tmp_path / "out")).__name__ == model_class
    assert "open_clip" in report.verification.detail


def test_tower_of_coca_is_written_alone(tmp_path):
    model_cfg = tiny_coca_cfg(vision_cfg={"width": 36, "head_width": 12, "attentional_pool": False})
    _, report = convert(tmp_path, model_cfg, tower="vision")
    assert report.architecture == "CLIPVisionModelWithProjection"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_native_weights_are_cast_and_sharded(tmp_path, dtype):
    _, report = convert(tmp_path, tiny_clip_cfg(), dtype=dtype, max_shard_size="60KB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    model = transformers.CLIPModel.from_pretrained(tmp_path / "out")
    assert str(model.dtype) == f"torch.{report.dtype}" == f"torch.{dtype}"
    assert model.config.vision_config.dtype == model.dtype


def test_what_matters_in_training_alone_is_noted(tmp_path):
    _, report = convert(tmp_path, tiny_clip_cfg(vision_cfg={"patch_dropout": 0.4}))
    assert report.notes == ("left out, as it matters in training alone: vision_config.patch_dropout = 0.4",)


EOS_IDS = {
    "highest-id": ({}, VOCAB_SIZE - 1, VOCAB_SIZE - 1),
    "unknown": ({}, None, 2),
    "added-tokens": ({}, VOCAB_SIZE - 3, 2),
    "first-eos": ({"pool_type": "eos", "eos_id": 7}, None, 7),
}


@pytest.mark.parametrize(("text_cfg", "eos", "expected"), EOS_IDS.values(), ids=EOS_IDS.keys())
def test_eos_token_id_makes_transformers_pool_where_open_clip_does(text_cfg, eos, expected):
    from open_clip_transformers.convert_scripts.native.targets import native_config

    config = build_config(tiny_clip_cfg(text_cfg=text_cfg), TokenIds(bos=1, eos=eos, pad=0))
    assert native_config(find_target(config), config).text_config.eos_token_id == expected


BLOCK = ("qk_norm", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
REFUSALS = {
    "attentional-pool": ({"vision_cfg": {"attentional_pool": True}}, "vision_config.attentional_pool is True"),
    "average": ({"vision_cfg": {"pool_type": "avg"}}, "vision_config.pool_type is 'avg', needed 'tok'"),
    "no-pre-norm": ({"vision_cfg": {"no_ln_pre": True}}, "vision_config.use_pre_layer_norm is False"),
    "rectangle": (
        {"vision_cfg": {"image_size": [16, 32]}},
        r"vision_config.image_size is \[16, 32\], needed a square",
    ),
    "layer-scale": (
        {"vision_cfg": {"ls_init_value": 0.1}},
        "vision_config.layer_scale_init_value is 0.1, needed None",
    ),
    "last": ({"text_cfg": {"pool_type": "last"}}, "text_config.pool_type is 'last', needed 'argmax' or 'eos'"),
    "bidirectional": ({"text_cfg": {"no_causal_mask": True}}, "text_config.is_causal is False"),
    "no-projection": (
        {"embed_dim": 36, "vision_cfg": {"attn_pooler_heads": 6}, "text_cfg": {"proj_type": "none"}},
        "text_config.proj_type is 'none'",
    ),
    "projection-bias": ({"text_cfg": {"proj_bias": True}}, "text_config.proj_bias is True"),
    "class-token": ({"custom_text": True, "text_cfg": {"embed_cls": True}}, "text_config.embed_cls is True"),
    "logit-bias": ({"init_logit_bias": -3.0}, "logit_bias_init_value is -3.0, needed None"),
    **{name: ({"vision_cfg": {name: True}}, f"vision_config.{name} is True, needed False") for name in BLOCK},
}


@pytest.mark.parametrize(("changes", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_stands_in_the_way_is_named(changes, message):
    with pytest.raises(ConversionError, match=rf"(?s)stands in the way of CLIPModel .*:\n  {message}[^\n]*\nWithout"):
        find_target(build_config(tiny_clip_cfg(**changes)))


def test_everything_that_stands_in_the_way_of_coca_is_named():
    with pytest.raises(ConversionError) as raised:
        find_target(build_config(tiny_coca_cfg()))
    for name in ("vision_config.attentional_pool", "text_config.embed_cls", "multimodal_config is CoCaDecoderConfig"):
        assert name in str(raised.value)


@pytest.mark.parametrize("kwargs", [{"target": "theirs"}, {"tower": "audio"}], ids=["target", "tower"])
def test_unknown_forms_are_refused(tmp_path, kwargs):
    with pytest.raises(ConversionError, match="must be one of"):
        convert_open_clip_checkpoint(tmp_path, tmp_path / "out", **kwargs)


def test_refusal_writes_nothing(tmp_path):
    with pytest.raises(ConversionError, match="stands in the way"):
        convert(tmp_path, tiny_coca_cfg())
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


TEXTS = ["a photo of a cat", "two Dogs, and a bird's nest!", "hello   world 123"]


@pytest.mark.floor
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_native_processor_prepares_what_open_clip_does(tmp_path, image, resize_mode):
    preprocess_cfg = {"resize_mode": resize_mode, "mean": [0.5, 0.4, 0.3], "interpolation": "bilinear"}
    _, report = convert(
        tmp_path, tiny_clip_cfg(**CLIP_VOCABULARY), with_processor=True, verify="none", preprocess_cfg=preprocess_cfg
    )
    assert any(note.startswith("images:") for note in report.notes)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "conversion.json",
        "merges.txt",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    }
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(processor) is transformers.CLIPProcessor
    inputs = processor(
        images=image, text=TEXTS, padding="max_length", max_length=11, truncation=True, return_tensors="pt"
    )
    ids = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'source'}")(TEXTS)
    end = 49407
    for row, expected in zip(inputs["input_ids"], ids):
        length = 1 + expected.tolist().index(end)
        assert row[:length].tolist() == expected[:length].tolist()
        assert set(row[length:].tolist()) <= {end}
    _, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'source'}")
    assert (inputs["pixel_values"][0] - preprocess(image)).abs().max() < 0.05


@pytest.mark.floor
def test_zero_shot_pipeline_runs_on_the_native_folder(tmp_path, image):
    convert(tmp_path, tiny_clip_cfg(text_cfg={"vocab_size": 49408, "context_length": 77}), with_processor=True)
    results = pipeline("zero-shot-image-classification", model=str(tmp_path / "out"))(
        image, candidate_labels=["cat", "dog"]
    )
    assert sum(result["score"] for result in results) == pytest.approx(1)


def test_native_folder_loads_with_clips_slow_files(tmp_path):
    convert(tmp_path, tiny_clip_cfg(**CLIP_VOCABULARY), with_processor=True, verify="none")
    vocabulary = json.loads((tmp_path / "out" / "vocab.json").read_text())
    assert (vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"], len(vocabulary)) == (49406, 49407, 49408)
    merges = (tmp_path / "out" / "merges.txt").read_text().splitlines()
    assert (len(merges), merges[0], merges[1]) == (1 + 48894, "#version: 0.2", "i n")


def test_image_settings_that_transformers_lacks_are_refused(tmp_path):
    with pytest.raises(ConversionError, match="resize_mode 'longest' to 24 x 24"):
        convert(
            tmp_path, tiny_clip_cfg(**CLIP_VOCABULARY), with_processor=True, preprocess_cfg={"resize_mode": "longest"}
        )


@pytest.mark.parametrize("target", ["ours", "native"])
@pytest.mark.parametrize(
    ("tower", "loads", "lacks"),
    [("vision", transformers.AutoImageProcessor, AutoTokenizer), ("text", AutoTokenizer, None)],
    ids=["vision", "text"],
)
def test_single_tower_has_its_part_of_the_processor(tmp_path, image, target, tower, loads, lacks):
    convert(tmp_path, tiny_clip_cfg(**CLIP_VOCABULARY), with_processor=True, target=target, tower=tower)
    part = loads.from_pretrained(tmp_path / "out")
    inputs = part(image, return_tensors="pt") if tower == "vision" else part(TEXTS[:1], return_tensors="pt")
    model_class = getattr(
        transformers, json.loads((tmp_path / "out" / "config.json").read_text())["architectures"][0], AutoModel
    )
    assert model_class.from_pretrained(tmp_path / "out")(**inputs)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert ("tokenizer.json" in names) == (tower == "text")
    assert ("preprocessor_config.json" in names) == (tower == "vision")


def test_vision_tower_needs_no_tokenizer(tmp_path):
    _, report = convert(
        tmp_path, tiny_clip_cfg(text_cfg={"hf_tokenizer_name": "org/unknown"}), tower="vision", with_processor=True
    )
    assert report.architecture == "CLIPVisionModelWithProjection"


@pytest.fixture
def siglip_cfg():
    """`model_cfg` of a SigLIP at reduced size, within which timm builds its tower so."""
    with reduced_timm():
        yield reduced_cfg(get_architecture("ViT-B-16-SigLIP"))


@pytest.mark.floor
def test_native_siglip_equals_open_clip(tmp_path, caplog, siglip_cfg):
    reference, report = convert(tmp_path, siglip_cfg)
    assert report.architecture == "SiglipModel"
    model = load(transformers.SiglipModel, tmp_path / "out", caplog)
    images, texts = torch.randn(2, 3, 224, 224), torch.randint(1, VOCAB_SIZE, (2, 64))
    with torch.inference_mode():
        logits = model(pixel_values=images, input_ids=texts).logits_per_image
        expected, _ = reference.get_logits(images, texts)
    assert relative_difference(logits, expected) <= BOUND


@pytest.mark.floor
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_native_tower_of_siglip_equals_open_clip(tmp_path, caplog, siglip_cfg, tower):
    reference, report = convert(tmp_path, siglip_cfg, tower=tower)
    assert report.architecture == {"vision": "SiglipVisionModel", "text": "SiglipTextModel"}[tower]
    model = load(getattr(transformers, report.architecture), tmp_path / "out", caplog)
    keys = {key for path in (tmp_path / "out").glob("*.safetensors") for key in load_file(path)}
    assert all(key.startswith(f"{tower}_model.") for key in keys)  # as on the Hub, and as vLLM and SGLang read them
    with torch.inference_mode():
        if tower == "vision":
            images = torch.randn(2, 3, 224, 224)
            outputs, expected = model(pixel_values=images), reference.encode_image(images)
        else:
            texts = torch.randint(1, VOCAB_SIZE, (2, 64))
            outputs, expected = model(input_ids=texts), reference.encode_text(texts)
    assert relative_difference(outputs.pooler_output, expected) <= BOUND


def write_words(folder: Path):
    """Files of a tokenizer of few words, whose `</s>` ends and pads texts."""
    words = ["<unk>", "</s>", "two", "cats", "and", "a", "dog", "Two"]
    write_word_tokenizer(folder, words, "$A </s>", unk_token="<unk>", eos_token="</s>", pad_token="</s>")


@pytest.mark.floor
@pytest.mark.parametrize("clean", ["canonicalize", "lower", "whitespace"])
def test_native_siglip_tokenizer_cleans_texts_as_open_clip(tmp_path, siglip_cfg, clean):
    siglip_cfg["text_cfg"] |= {"hf_tokenizer_name": "org/words", "tokenizer_kwargs": {"clean": clean}}
    (tmp_path / "source").mkdir()
    write_words(tmp_path / "source")
    convert(tmp_path, siglip_cfg, with_processor=True, verify="none", preprocess_cfg={"resize_mode": "squash"})
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(processor) is transformers.SiglipProcessor
    assert type(processor.image_processor) is transformers.SiglipImageProcessor
    texts = ["Two cats, and a dog!", "  two\n_cats_ ", "a dog"]
    ids = processor(text=texts, padding="max_length", return_tensors="pt")["input_ids"]
    assert torch.equal(ids, open_clip.get_tokenizer(f"local-dir:{tmp_path / 'source'}")(texts))


def test_native_metaclip_2_has_a_processor(tmp_path, image):
    model_cfg = tiny_clip_cfg(text_cfg={"pool_type": "eos", "eos_id": 2, "hf_tokenizer_name": "org/words"})
    (tmp_path / "source").mkdir()
    write_words(tmp_path / "source")
    _, report = convert(tmp_path, model_cfg, with_processor=True)
    assert report.architecture == "MetaClip2Model"
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(processor) is transformers.CLIPProcessor
    inputs = processor(images=image, text=["two cats and"], padding="max_length", return_tensors="pt")
    assert inputs["input_ids"].tolist() == [[2, 3, 4, *[1] * 8]]
    assert inputs["pixel_values"].shape == (1, 3, 24, 24)


def test_siglip_of_another_tower_is_refused_by_name():
    with pytest.raises(ConversionError, match="stands in the way of CLIPModel"):
        find_target(build_config(tiny_siglip_cfg()))
