"""Image settings of checkpoints that do not state them, or state a part of them."""

import json

import pytest
import torch
from tiny_configs import open_clip_model, tiny_clip_cfg
from transformers import AutoImageProcessor

from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.processors.image import complete_preprocess_cfg, unread_settings
from open_clip_transformers.convert_scripts.sources.architectures import (
    get_architecture,
    list_architectures,
    list_pretrained,
)
from open_clip_transformers.convert_scripts.sources.source import Source, SourceOptions, open_source


OPENAI = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
MOBILECLIP = {"mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bilinear", "resize_mode": "shortest"}
BESIDE = {"mean": [0.1] * 3, "std": [0.2] * 3, "interpolation": "bilinear", "resize_mode": "squash"}


def source_of(name: str | None, model_cfg: dict | None = None, preprocess_cfg: dict | None = None, **fields) -> Source:
    model_cfg = get_architecture(name) if model_cfg is None else model_cfg
    return Source("source", "weights", model_cfg, preprocess_cfg or {}, model_name=name, **fields)


def settings(*args, known: dict | None = None, **kwargs) -> tuple[dict, str | None]:
    cfg, note = complete_preprocess_cfg(source_of(*args, **kwargs), known or {})
    return {**OPENAI, **cfg}, note


@pytest.mark.parametrize("name", [n for n in list_architectures(newer=False) if list_pretrained(n)])
def test_settings_of_a_name_are_those_that_all_its_weights_share(name):
    tags = [tag.preprocess_cfg for tag in list_pretrained(name)]
    cfg, note = settings(name)
    differ = {key for key in OPENAI if any(tag[key] != tags[0][key] for tag in tags)}
    assert cfg == {key: OPENAI[key] if key in differ else tags[0][key] for key in OPENAI}
    assert (note is None) == (not differ and cfg == OPENAI)
    for key in OPENAI:
        assert note is None or (f"{key} {cfg[key]}" in note) == (key in differ or cfg[key] != OPENAI[key])


def test_settings_of_a_name_are_noted_with_what_changes_them():
    cfg, note = settings("MobileCLIP-S1")
    assert cfg == MOBILECLIP
    assert "mean [0.0, 0.0, 0.0], std [1.0, 1.0, 1.0], interpolation bilinear (as in all published weights" in note
    assert "preprocess_cfg" in note
    assert "config" in note
    assert (
        "resize_mode shortest (open_clip's default, as published weights of ViT-H-14 differ)"
        in settings("ViT-H-14")[1]
    )
    assert "published weights of ViT-S-16 are not known" in settings("ViT-S-16")[1]


def test_settings_of_a_described_architecture_are_its_weights():
    assert settings(None, get_architecture("MobileCLIP-S1"))[0] == MOBILECLIP
    assert settings(None, get_architecture("MobileCLIP-S2"))[0] == MOBILECLIP  # two names for one description
    assert settings("ViT-B-16-SigLIP-quickgelu")[0]["resize_mode"] == "squash"
    nothing = {"mean": None, "std": None}
    assert settings(None, get_architecture("MobileCLIP-S1"), nothing)[0] == MOBILECLIP
    cfg, note = settings(None, tiny_clip_cfg())
    assert cfg == OPENAI
    assert "this architecture are not known" in note


def test_stated_settings_come_first():
    stated = {"mean": [0.5] * 3, "std": None}
    cfg, note = settings("MobileCLIP-S1", preprocess_cfg=stated)
    assert cfg == {**MOBILECLIP, "mean": [0.5] * 3}
    assert "mean" not in note
    assert settings("MobileCLIP-S1", preprocess_cfg=BESIDE) == (BESIDE, None)
    # A file that states some of them means open_clip's defaults for the others.
    description = get_architecture("MobileCLIP-S1")
    assert settings(None, description, {"mean": [0.5] * 3}) == ({**OPENAI, "mean": [0.5] * 3}, None)
    assert settings(None, tiny_clip_cfg(), has_own_config=True) == (OPENAI, None)
    # What the weights file itself says: OpenAI's archives, foreign layouts, entries of a training checkpoint.
    assert settings("ViT-L-14", known=OPENAI) == (OPENAI, None)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "run" / "epoch_1.pt"
    path.parent.mkdir()
    path.touch()
    return path


def write_beside(weights, **content):
    (weights.parent / "open_clip_config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "options", [{"model_name": "ViT-B-32"}, {"config": get_architecture("ViT-B-32")}], ids=["name", "config"]
)
def test_settings_beside_the_weights_go_with_what_is_given(weights, options):
    write_beside(weights, model_cfg=get_architecture("ViT-B-32"), preprocess_cfg=BESIDE)
    source = open_source(SourceOptions(weights, **options))
    assert source.preprocess_cfg == BESIDE
    assert source.notes == ("image settings of open_clip_config.json beside the weights",)


def test_settings_beside_the_weights_give_way_to_given_ones(weights):
    write_beside(weights, preprocess_cfg=BESIDE)
    source = open_source(SourceOptions(weights, "ViT-B-32", {"preprocess_cfg": {"mean": [0.5] * 3}}))
    assert source.preprocess_cfg == {**BESIDE, "mean": [0.5] * 3}


def test_settings_beside_the_weights_of_another_image_tower_are_left(weights):
    write_beside(weights, model_cfg=tiny_clip_cfg(), preprocess_cfg=BESIDE)
    source = open_source(SourceOptions(weights, "ViT-B-32"))
    assert source.preprocess_cfg == {}
    assert "left out: it has another image tower" in source.notes[0]


def test_conversion_writes_the_settings_that_a_checkpoint_states(tmp_path):
    model_cfg = tiny_clip_cfg(text_cfg={"vocab_size": 49408})
    checkpoint = {
        "state_dict": open_clip_model(model_cfg).state_dict(),
        "image_mean": (0.1, 0.2, 0.3),
        "args": {"image_std": [0.4, 0.5, 0.6], "image_interpolation": "bilinear"},
    }
    torch.save(checkpoint, tmp_path / "epoch_1.pt")
    report = convert_open_clip_checkpoint(
        tmp_path / "epoch_1.pt", tmp_path / "out", config=model_cfg, verify="structure"
    )
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert (tuple(processor.image_mean), tuple(processor.image_std)) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert processor.resample == 2
    assert "image settings of the checkpoint: mean (0.1, 0.2, 0.3)" in report.notes[0]
    assert report.notes[1].startswith("image settings that were not stated: resize_mode shortest")


def test_settings_that_open_clip_does_not_know_are_noted():
    assert unread_settings({"size": 7, "mean": [0] * 3, "mode": "RGB"}) is None
    assert "preprocess_cfg: 'means', 'crop_pct' left out" in unread_settings({"means": [0] * 3, "crop_pct": 1})
