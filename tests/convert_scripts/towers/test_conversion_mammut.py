"""Conversion of MaMMUT with its processor, and its verification with and without an open_clip that knows it."""

import json
import sys
from types import ModuleType

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image
from safetensors.torch import load_file
from tiny_configs import tiny_mammut_4_cfg, tiny_mammut_cfg
from tiny_mammut import StandIn, save_mammut_folder
from transformers import AutoModelForImageTextToText, AutoModelForZeroShotImageClassification, AutoProcessor

from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.convert_to_open_clip import convert_to_open_clip
from open_clip_transformers.convert_scripts.mapping.config import build_config, build_model_cfg
from open_clip_transformers.convert_scripts.sources.architectures import get_architecture
from open_clip_transformers.convert_scripts.verify.folder import verify_folder


VOCABULARY = {"vocab_size": 49408, "context_length": 23}
# What open_clip 3.3.0 has the parts for: a mean of the patches, and all MLPs.
WITH_PARTS = tiny_mammut_cfg(vision_cfg={"pool_type": "avg"}, text_cfg={**VOCABULARY, "has_mlp": True})


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_mammut_folder(tmp_path_factory.mktemp("mammut") / "source", WITH_PARTS, {"resize_mode": "squash"})


@pytest.fixture
def reference(monkeypatch):
    """An open_clip with a MaMMUT."""
    module = ModuleType("open_clip.mammut_model")
    module.MaMMUT = StandIn
    monkeypatch.setitem(sys.modules, "open_clip.mammut_model", module)


def test_conversion_says_what_was_not_compared(source, tmp_path):
    report = convert_open_clip_checkpoint(source, tmp_path / "ours")
    assert report.verification.mode == "structure"
    assert "every tensor equals the checkpoint's; no outputs were compared" in report.verification.detail
    assert "open_clip 3.3.0 has no MaMMUT" in report.verification.detail
    with pytest.raises(ConversionError, match=r"no outputs were compared, as open_clip 3\.3\.0 has no MaMMUT"):
        convert_open_clip_checkpoint(source, tmp_path / "full", verify="full")
    assert not (tmp_path / "full").exists()


def test_verification_compares_what_it_can(source, tmp_path):
    convert_open_clip_checkpoint(source, tmp_path / "ours", verify="none")
    report = verify_folder(tmp_path / "ours", source, dtypes=["float32"])
    assert report.passed
    assert {check.group for check in report.checks if check.passed} == {"weights", "pixels", "tokens"}
    left_out = {check.group: check.detail for check in report.checks if check.passed is None}
    assert left_out.keys() == {"intermediates", "features", "logits", "captions", "losses", "gradients"}
    assert all("open_clip 3.3.0 has no MaMMUT" in detail for detail in left_out.values())
    assert "Not compared: intermediates float32, features float32" in report.verdict()


def test_verification_against_an_open_clip_with_mammut(source, reference, tmp_path):
    report = convert_open_clip_checkpoint(source, tmp_path / "ours")
    assert report.verification.mode == "full"
    report = verify_folder(tmp_path / "ours", source, dtypes=["float32"])
    assert report.passed, report
    compared = {(check.group, check.dtype) for check in report.checks if check.passed}
    groups = ("intermediates", "features", "logits", "losses", "gradients")
    assert compared >= {(group, "float32") for group in (*groups, "captions")}
    names = {check.name for check in report.checks if check.group == "intermediates"}
    assert {"text layer 3 MLP", "decoder cross-attention layer 1 attention"} <= names


def test_verification_names_a_wrong_layer(source, reference, tmp_path):
    convert_open_clip_checkpoint(source, tmp_path / "ours", verify="none")
    path = tmp_path / "ours" / "config.json"
    config = json.loads(path.read_text())
    config["multimodal_config"]["cross_attention_layers"] = [0, 3]
    path.write_text(json.dumps(config))
    report = verify_folder(tmp_path / "ours", source, dtypes=["float32"])
    assert not report.passed and report.first_difference.name == "decoder cross-attention layer 1 norm 1"


def test_similarities_of_the_processors_texts_are_those_of_padded_ones(source, tmp_path):
    """The released weights pool padding, too: a text has to be as long as open_clip makes it."""
    convert_open_clip_checkpoint(source, tmp_path / "ours", verify="none")
    model = AutoModelForZeroShotImageClassification.from_pretrained(tmp_path / "ours")
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    inputs = processor(text=["a cat", "a photo of a dog"], return_tensors="pt")
    assert inputs["input_ids"].shape == (2, 23)
    # As transformers' zero-shot pipeline calls it.
    assert processor.tokenizer(["a cat"], padding=True, return_tensors="pt")["input_ids"].shape == (1, 23)
    with torch.no_grad():
        short = model.get_text_features(inputs["input_ids"][:1, :5]).pooler_output
        whole = model.get_text_features(**inputs).pooler_output
    assert not torch.allclose(short[0], whole[0], atol=1e-3)


def test_conversion_back_with_the_processor_gives_the_same_files(source, tmp_path):
    convert_open_clip_checkpoint(source, tmp_path / "ours", verify="none")
    report = convert_to_open_clip(tmp_path / "ours", tmp_path / "back")
    assert report.architecture == "MaMMUT"
    before, after = (load_file(folder / "open_clip_model.safetensors") for folder in (source, tmp_path / "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    given, written = (
        json.loads((folder / "open_clip_config.json").read_text()) for folder in (source, tmp_path / "back")
    )
    assert build_config(written["model_cfg"]).to_dict() == build_config(given["model_cfg"]).to_dict()
    assert written["preprocess_cfg"]["resize_mode"] == "squash"


FORMS = {"fork": tiny_mammut_cfg(text_cfg=VOCABULARY), "open-clip-4": tiny_mammut_4_cfg(multimodal_cfg=VOCABULARY)}


@pytest.mark.parametrize("model_cfg", FORMS.values(), ids=FORMS)
def test_hub_repository_is_converted_in_either_form(model_cfg, tmp_path, monkeypatch):
    folder = save_mammut_folder(tmp_path / "hub", model_cfg, {"mean": [0.5, 0.5, 0.5], "interpolation": "bicubic"})

    def download(repo_id, filename, revision=None, **kwargs):
        assert (repo_id, revision) == ("laion/openMaMMUT-tiny", "v1")
        if not (folder / filename).is_file():
            raise EntryNotFoundError("404")
        return str(folder / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    report = convert_open_clip_checkpoint("hf-hub:laion/openMaMMUT-tiny@v1", tmp_path / "ours")
    assert report.source == "hf-hub:laion/openMaMMUT-tiny@v1"
    assert report.architecture == "MaMMUTForConditionalGeneration"
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours")
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    inputs = processor(images=Image.new("RGB", (30, 20)), return_tensors="pt")
    assert list(processor.image_processor.image_mean) == [0.5, 0.5, 0.5]
    assert model.generate(**inputs, max_length=5, min_length=5).shape == (1, 5)


TOKENIZERS = {
    "unknown-kind": ({"tokenizer_type": "bpe"}, 'tokenizer_type must be "tiktoken" or left out'),
    "small-vocabulary": ({"vocab_size": 97}, "vocab_size is 97, but open_clip's own tokenizer"),
    "not-at-hand": ({"hf_tokenizer_name": "org/none"}, r"(?s)The tokenizer org/none is needed .* does not hold it"),
    "command": ({"hf_tokenizer_name": "x; rm"}, "which is no id of a repository"),
    "arguments": ({"tokenizer_kwargs": {"bpe_path": "x"}}, "tokenizer_kwargs may hold clean"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("fields", "message"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_tokenizers_that_cannot_be_are_refused_in_either_form(fields, message, form, tmp_path):
    make, part = {"fork": (tiny_mammut_cfg, "text_cfg"), "open-clip-4": (tiny_mammut_4_cfg, "multimodal_cfg")}[form]
    folder = save_mammut_folder(tmp_path / "source", make(**{part: {**VOCABULARY, **fields}}))
    with pytest.raises(ConversionError, match=message):
        convert_open_clip_checkpoint(folder, tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


SIZES = [f"{size}-{patch}" for size in "SMBLH" for patch in (14, 16, 32)]


@pytest.mark.parametrize("name", [*(f"mammut_ViT-{size}" for size in SIZES), "mammut2_ViT-B-32"])
def test_every_architecture_there_and_back(name):
    model_cfg = get_architecture(name)
    config = build_config(model_cfg)
    assert config.model_type == "open_clip_mammut"
    assert config.multimodal_config.cross_attention_layers == list(range(0, config.num_hidden_layers, 2))
    without_mlps = config.multimodal_config.cross_attention_layers if "has_mlp" in str(model_cfg) else []
    assert config.text_config.attention_only_layers == without_mlps
    back = build_model_cfg(config)
    assert build_config(back).to_dict() == config.to_dict()
    assert ("text_cfg" in back) == ("text_cfg" in model_cfg)


@pytest.mark.parametrize(
    ("model_cfg", "message"),
    [
        (tiny_mammut_cfg(custom_text=False), 'does_full_decoding but model_cfg has not "custom_text"'),
        (tiny_mammut_cfg(text_cfg={"layers": 5}), "cross_attn_ratio 2 does not fit 5 layers"),
        (tiny_mammut_cfg(text_cfg={"cross_attn_ratio": 0}), "cross_attn_ratio must lie in"),
        (tiny_mammut_cfg(text_cfg={"cross_attn_ratio": None}), "text_cfg: cross_attn_ratio must be a whole number"),
        (tiny_mammut_cfg(text_cfg={"layers": [4]}), "text_cfg: layers must be a whole number"),
        (tiny_mammut_4_cfg(multimodal_cfg={"cross_attn_ratio": None}), "multimodal_cfg: cross_attn_ratio must be a"),
        (tiny_mammut_cfg(text_cfg={"width": 30}), "projection_dim .36. must equal hidden_size .30."),
        (tiny_mammut_4_cfg(multimodal_cfg={"cross_attn_ratio": 5}), "cross_attn_ratio 5 must be at most"),
        (tiny_mammut_4_cfg(multimodal_cfg={"pool_type": "argmax"}), "pool_type must be one of 'avg', 'avg_all'"),
    ],
    ids=["custom-text", "ratio", "no-ratio", "null", "layers", "null-4", "width", "large-ratio", "pool"],
)
def test_what_cannot_be_built_is_refused(model_cfg, message):
    with pytest.raises(ConversionError, match=message):
        build_config(model_cfg)
