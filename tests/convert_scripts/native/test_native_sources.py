"""transformers' own models as sources: ours compute the same, and their processors prepare the same."""

import json
from pathlib import Path

import pytest
import torch
from model_pairs import BOUND, relative_difference
from safetensors.torch import load_file, save_file
from tiny_configs import open_clip_model
from tiny_models import randomized
from tiny_tokenizers import write_word_tokenizer
from transformers import (
    AutoModel,
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    MetaClip2Config,
    MetaClip2Model,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint


STACK = {"hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 4}
VISION = {**STACK, "image_size": 24, "patch_size": 8}
TEXT = {
    **STACK,
    "hidden_size": 36,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "vocab_size": 97,
    "max_position_embeddings": 11,
    "bos_token_id": 95,
    "eos_token_id": 96,
    "pad_token_id": 0,
}


def clip(**text) -> CLIPModel:
    return CLIPModel(CLIPConfig(vision_config=VISION, text_config={**TEXT, **text}, projection_dim=28))


def metaclip_2() -> MetaClip2Model:
    text = {**TEXT, "eos_token_id": 2, "hidden_act": "gelu"}
    return MetaClip2Model(MetaClip2Config(vision_config=VISION, text_config=text, projection_dim=28))


def siglip(**text) -> SiglipModel:
    text = {**TEXT, "hidden_size": 40, "num_attention_heads": 5, **text}
    return SiglipModel(SiglipConfig(vision_config=VISION, text_config=text))


def siglip_2(**text) -> Siglip2Model:
    text = {**TEXT, "hidden_size": 40, "num_attention_heads": 5, **text}
    vision = {**STACK, "patch_size": 8, "num_patches": 25}
    return Siglip2Model(Siglip2Config(vision_config=vision, text_config=text))


MODELS = {
    "clip": clip,
    "clip-argmax": lambda: clip(eos_token_id=2),
    "clip-eos": lambda: clip(eos_token_id=7),
    "clip-two-activations": lambda: clip(hidden_act="gelu"),
    "metaclip-2": metaclip_2,
    "siglip": siglip,
    "siglip-2": siglip_2,
    "siglip-2-other-width": lambda: siglip_2(hidden_size=36, num_attention_heads=3, projection_size=40),
    "siglip-other-width": lambda: siglip(hidden_size=36, num_attention_heads=3, projection_size=40),
}


def save(folder: Path, model) -> Path:
    """A folder of transformers' own model, no parameter of which has its default value."""
    model = randomized(model.eval())
    for name in ("logit_scale", "logit_bias"):
        if hasattr(model, name):
            getattr(model, name).data.fill_({"logit_scale": 1.7, "logit_bias": -1.3}[name])
    model.save_pretrained(folder)
    return folder


def convert(tmp_path: Path, **kwargs):
    return convert_open_clip_checkpoint(
        tmp_path / "source", tmp_path / "out", **{"with_processor": False, "verify": "full", **kwargs}
    )


@pytest.mark.floor
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_ours_equals_transformers(tmp_path, make):
    source = make()
    save(tmp_path / "source", source)
    report = convert(tmp_path)
    assert report.verification.detail == f"transformers' {type(source).__name__}"
    assert report.verification.differences.keys() == {"image features", "text features", "logits"}
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    source = type(source).from_pretrained(tmp_path / "source").eval()
    images = {"pixel_values": torch.randn(3, 3, 24, 24)}
    if isinstance(source, Siglip2Model):
        shapes = torch.tensor([[3, 5], [4, 4], [1, 9]])
        mask = (torch.arange(16) < shapes.prod(-1, keepdim=True)).int()
        images = {"pixel_values": torch.randn(3, 16, 192), "pixel_attention_mask": mask, "spatial_shapes": shapes}
    texts = torch.randint(3, 95, (3, 11))
    texts[[0, 1, 2], [10, 6, 3]] = model.config.text_config.eos_token_id or 96
    with torch.inference_mode():
        expected = source(input_ids=texts, **images)
        outputs = model(input_ids=texts, **images)
    assert relative_difference(outputs.logits_per_image, expected.logits_per_image) <= BOUND
    assert relative_difference(outputs.text_embeds, expected.text_embeds) <= BOUND


@pytest.mark.floor
@pytest.mark.parametrize("eos_token_id", [96, 2], ids=["eos", "argmax"])
def test_ours_equals_transformers_with_added_tokens(tmp_path, eos_token_id):
    grown = clip(vocab_size=98).eval()
    source = clip(eos_token_id=eos_token_id)
    save(tmp_path / "source", source)
    convert(tmp_path)
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    model.resize_token_embeddings(98)
    rows = "text_model.embeddings.token_embedding.weight"
    table = model.get_input_embeddings().weight.data
    grown.load_state_dict({**source.state_dict(), rows: table})
    texts = torch.randint(3, 95, (3, 11))
    texts[[0, 1, 2], [2, 3, 5]] = 97
    texts[[0, 1, 2], [10, 6, 3]] = 96
    model.save_pretrained(tmp_path / "grown")
    with torch.inference_mode():
        expected = grown.get_text_features(texts).pooler_output
        for each in (model, AutoModel.from_pretrained(tmp_path / "grown")):
            assert relative_difference(each.get_text_features(texts).pooler_output, expected) <= BOUND


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_way_there_and_back_gives_the_same_tensors(tmp_path, make):
    save(tmp_path / "source", make())
    report = convert(tmp_path, target="native")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("source", "out"))
    assert before.keys() == after.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    config, expected = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("out", "source"))
    assert report.architecture == expected["architectures"][0] == config["architectures"][0]
    same = ("hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act", "layer_norm_eps")
    for part in ("vision_config", "text_config"):
        assert {key: config[part][key] for key in same} == {key: expected[part][key] for key in same}


def test_buffers_of_old_checkpoints_are_dropped(tmp_path):
    save(tmp_path / "source", clip())
    weights = tmp_path / "source" / "model.safetensors"
    tensors = load_file(weights)
    buffers = {f"{part}_model.embeddings.position_ids": torch.arange(4)[None] for part in ("vision", "text")}
    save_file({**tensors, **buffers}, weights)
    assert convert(tmp_path).dropped.keys() == buffers.keys()


@pytest.mark.parametrize(
    "option", [{"ema": True}, {"reparameterize": True}, {"revision": "v1"}], ids=lambda o: next(iter(o))
)
def test_options_for_open_clip_are_refused(tmp_path, option):
    save(tmp_path / "source", clip())
    with pytest.raises(ConversionError, match=f"holds transformers' CLIPModel.*leave out {next(iter(option))}"):
        convert(tmp_path, **option)
    assert not (tmp_path / "out").exists()


def test_shards_are_read(tmp_path):
    randomized(clip()).save_pretrained(tmp_path / "source", max_shard_size="60KB")
    assert convert(tmp_path).weights_file.name == "model.safetensors.index.json"


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_tower_of_a_native_model(tmp_path, tower):
    save(tmp_path / "source", clip())
    assert (
        convert(tmp_path, tower=tower).architecture
        == {"vision": "OpenClipVitModel", "text": "OpenClipTextModel"}[tower]
    )


def other_kind(source: Path):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "clip_vision_model"}))


def other_sizes(source: Path):
    config = json.loads((source / "config.json").read_text())
    config["vision_config"]["hidden_size"] = 44
    (source / "config.json").write_text(json.dumps(config))


def missing_tensor(source: Path):
    tensors = load_file(source / "model.safetensors")
    del tensors["vision_model.pre_layrnorm.weight"]
    save_file(tensors, source / "model.safetensors")


SPOILT = {
    other_kind: "open_clip_config.json",
    other_sizes: r"vision_model\.pre_layrnorm\.weight: got \(40,\), expected \(44,\)",
    missing_tensor: r"lacks:\n  vision_model\.pre_layrnorm\.weight \(40,\)",
}


def rename_field(path: Path, part: str | None, name: str):
    content = json.loads(path.read_text())
    fields = content if part is None else content[part]
    fields[f"{name}s"] = fields.pop(name)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("part", ["vision_config", "text_config"])
def test_misspelt_fields_are_refused(tmp_path, part):
    """transformers would take the default for it: of the heads, which no tensor tells, another model."""
    rename_field(save(tmp_path / "source", siglip_2()) / "config.json", part, "num_attention_heads")
    with pytest.raises(ConversionError, match=f"{part}: there is a field num_attention_headss, .* rename it"):
        convert(tmp_path, verify="none")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("spoil", "message"), SPOILT.items(), ids=[spoil.__name__ for spoil in SPOILT])
def test_what_is_no_such_model_is_refused(tmp_path, spoil, message):
    save(tmp_path / "source", clip())
    spoil(tmp_path / "source")
    with pytest.raises(ConversionError, match=message):
        convert(tmp_path)
    assert not (tmp_path / "out").exists()


CLIP_SETTINGS = {
    "image_processor_type": "CLIPImageProcessor",
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.25],
    "resample": 3,
}
SETTINGS = {
    "crop": {**CLIP_SETTINGS, "size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
    "old-spelling": {**CLIP_SETTINGS, "size": 24, "crop_size": 24},
    "squash": {**CLIP_SETTINGS, "size": {"height": 24, "width": 24}, "do_center_crop": False, "resample": 2},
}


def write_clip_tokenizer(folder: Path, length: int = 11):
    from open_clip_transformers.convert_scripts.native.tables import CLIP
    from open_clip_transformers.convert_scripts.native.targets import save_tokenizer
    from open_clip_transformers.processing.tokenization_open_clip import OpenClipTokenizer

    save_tokenizer(OpenClipTokenizer(model_max_length=length), CLIP, folder)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_processor_prepares_what_transformers_does(tmp_path, image, settings):
    source = save(tmp_path / "source", clip(vocab_size=49408, bos_token_id=49406, eos_token_id=49407))
    (source / "preprocessor_config.json").write_text(json.dumps(settings))
    write_clip_tokenizer(source)
    convert(tmp_path, with_processor=True, verify="none")
    ours, theirs = (AutoProcessor.from_pretrained(tmp_path / name, backend="pil") for name in ("out", "source"))
    texts = ["a photo of a cat", "two Dogs"]
    inputs = ours(images=image, text=texts, return_tensors="pt")
    expected = theirs(images=image, text=texts, padding="max_length", max_length=11, return_tensors="pt")
    assert (inputs["pixel_values"] - expected["pixel_values"]).abs().max() < 0.05
    assert torch.equal(inputs["attention_mask"], expected["attention_mask"])
    visible = inputs["attention_mask"].bool()
    assert torch.equal(inputs["input_ids"][visible], expected["input_ids"][visible])


def test_misspelt_image_settings_are_refused(tmp_path):
    source = save(tmp_path / "source", clip(vocab_size=49408, bos_token_id=49406, eos_token_id=49407))
    (source / "preprocessor_config.json").write_text(json.dumps(SETTINGS["crop"]))
    rename_field(source / "preprocessor_config.json", None, "image_mean")
    write_clip_tokenizer(source)
    with pytest.raises(ConversionError, match=r"the image settings: there is a field image_means, .* no image_mean:"):
        convert(tmp_path, with_processor=True, verify="none")


UNKNOWN_SETTINGS = {
    "crop-of-larger": {**CLIP_SETTINGS, "size": {"shortest_edge": 32}, "crop_size": {"height": 24, "width": 24}},
    "other-size": {**CLIP_SETTINGS, "size": {"height": 32, "width": 32}, "do_center_crop": False},
}


@pytest.mark.parametrize("settings", UNKNOWN_SETTINGS.values(), ids=UNKNOWN_SETTINGS.keys())
def test_image_settings_that_ours_lacks_are_refused(tmp_path, settings):
    source = save(tmp_path / "source", clip(vocab_size=49408))
    write_clip_tokenizer(source)
    (source / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConversionError, match="not one of ours for a model of 24 x 24 pixels"):
        convert(tmp_path, with_processor=True)


def test_processor_of_siglip_cleans_texts_as_its_own(tmp_path):
    source = save(tmp_path / "source", siglip(vocab_size=9, bos_token_id=None, eos_token_id=1, pad_token_id=1))
    words = ["<unk>", "</s>", "two", "cats", "and", "a", "dog"]
    write_word_tokenizer(source, words, "$A </s>", unk_token="<unk>", eos_token="</s>", pad_token="</s>")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    # The class of SigLIP's tokenizers reads sentencepiece models alone.
    (source / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "SiglipTokenizer"}))
    (source / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "SiglipImageProcessor", "size": {"height": 24, "width": 24}})
    )
    convert(tmp_path, with_processor=True)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    ids = processor(text=["Two cats, and a dog!"], return_tensors="pt")["input_ids"]
    assert ids.tolist() == [[2, 3, 4, 5, 6, *[1] * 6]]
    assert processor.image_processor.resize_mode == "squash"
    # As SigLIP's image processor has them where its file does not state them.
    for name in ("image_mean", "image_std"):
        assert list(getattr(processor.image_processor, name)) == list(getattr(SiglipImageProcessorPil, name))


def beside_open_clip(folder, settings=None):
    """The configuration of open_clip beside a folder of transformers, as repositories with both have it."""
    vision = {"image_size": 24, "patch_size": 8, "width": 40, "head_width": 10, "layers": 3, "mlp_ratio": 1.8}
    text = {"context_length": 11, "vocab_size": 97, "width": 36, "heads": 3, "layers": 2, "mlp_ratio": 2.0}
    content = {
        "model_cfg": {"embed_dim": 28, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": settings or {},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return content["model_cfg"]


def test_weights_of_transformers_are_taken_for_these_beside_open_clips_configuration(tmp_path):
    clip().save_pretrained(tmp_path / "source")
    beside_open_clip(tmp_path / "source")
    report = convert_open_clip_checkpoint(tmp_path / "source", tmp_path / "out", with_processor=False, verify="full")
    assert report.notes[0] == "the source is transformers' CLIPModel"
    assert report.verification.mode == "full"


def test_weights_of_open_clip_are_taken_for_these_beside_transformers_configuration(tmp_path):
    clip().save_pretrained(tmp_path / "source")
    model_cfg = beside_open_clip(tmp_path / "source")
    tensors = {key: tensor.contiguous() for key, tensor in open_clip_model(model_cfg).state_dict().items()}
    save_file(tensors, tmp_path / "source" / "open_clip_model.safetensors")
    report = convert_open_clip_checkpoint(tmp_path / "source", tmp_path / "out", with_processor=False, verify="full")
    assert report.weights_file.name == "open_clip_model.safetensors"
    assert "open_clip 3.3.0" in report.verification.detail


def test_image_settings_of_open_clip_serve_where_transformers_are_missing(tmp_path):
    clip(vocab_size=49408, bos_token_id=49406, eos_token_id=49407).save_pretrained(tmp_path / "source")
    beside_open_clip(tmp_path / "source", {"mean": [0.1] * 3, "std": [0.2] * 3, "resize_mode": "squash"})
    convert_open_clip_checkpoint(tmp_path / "source", tmp_path / "out", verify="structure")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert tuple(processor.image_processor.image_mean) == (0.1, 0.1, 0.1)
    assert processor.image_processor.resize_mode == "squash"
    assert len(processor.tokenizer) == 49408


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("blip", r"of the type 'blip', by its config\.json, which cannot be converted; of .* CLIPModel \(clip\)"),
        ("open_clip_coca", r"holds a converted model already \(open_clip_coca\)"),
        ("open_clip_vit", r"holds a converted model already \(open_clip_vit\)"),
    ],
    ids=str,
)
def test_other_models_of_transformers_are_named(tmp_path, model_type, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    save_file({"vision_model.a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match=message):
        convert_open_clip_checkpoint(tmp_path, tmp_path / "out")


def test_weights_of_openai_are_taken_beside_any_configuration(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip"}))
    numbers = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    save_file(numbers, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match=r"keys .* of OpenAI's archives, but not their tensors"):
        convert_open_clip_checkpoint(tmp_path, tmp_path / "out")
