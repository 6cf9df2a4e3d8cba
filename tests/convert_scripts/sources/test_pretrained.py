"""Pretrained tags: the data that ships, looking them up, and opening the weights of one."""

import json
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file
from tiny_configs import open_clip_model, tiny_clip_cfg

from open_clip_transformers.configuration.configuration_open_clip import OpenClipConfig
from open_clip_transformers.convert_scripts.common import DATA_FOLDER, ConversionError
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.data.update import collect_pretrained, format_table
from open_clip_transformers.convert_scripts.processors.image import PREPROCESS_DEFAULTS, RESAMPLE, RESIZE_MODES
from open_clip_transformers.convert_scripts.sources import source as source_module
from open_clip_transformers.convert_scripts.sources.architectures import (
    PRETRAINED,
    get_architecture,
    get_pretrained,
    list_pretrained,
)
from open_clip_transformers.convert_scripts.sources.hub import save_tokenizer_command
from open_clip_transformers.convert_scripts.sources.source import Source, SourceOptions, check_activation, open_source
from open_clip_transformers.convert_scripts.sources.weights import Weights


def test_pretrained_tags_equal_the_installed_open_clip():
    assert (DATA_FOLDER / f"{PRETRAINED}.json").read_text() == format_table(collect_pretrained(), depth=2) + "\n"
    of_open_clip_4 = [(f"ViT-{size}-16-SigLIP2-naflex", "webli") for size in ("B", "SO400M")]
    assert [(entry.model, entry.tag) for entry in list_pretrained()] == open_clip.list_pretrained() + of_open_clip_4


def test_pretrained_tags_are_complete():
    for entry in list_pretrained():
        assert entry.hub_id.count("/") == 1
        assert entry.preprocess_cfg.keys() == {"mean", "std", "interpolation", "resize_mode"}
        assert entry.preprocess_cfg.keys() <= PREPROCESS_DEFAULTS.keys()
        assert entry.preprocess_cfg["interpolation"] in RESAMPLE
        assert entry.preprocess_cfg["resize_mode"] in RESIZE_MODES
        assert len(entry.preprocess_cfg["mean"]) == len(entry.preprocess_cfg["std"]) == 3


@pytest.mark.parametrize(
    ("model", "tag", "quick_gelu"),
    [
        ("ViT-B-32", "openai", True),
        ("ViT-B-32-quickgelu", "openai", True),
        ("ViT-B-32", "laion2b_s34b_b79k", False),
        ("roberta-ViT-B-32", "laion2b_s12b_b32k", True),
        ("ViT-L-14", "dfn2b_s39b", False),
    ],
    ids=["tag", "tag-and-architecture", "neither", "architecture", "gelu-dfn"],
)
def test_get_pretrained_knows_the_activation(model, tag, quick_gelu):
    assert get_pretrained(model, tag).quick_gelu is quick_gelu


def test_get_pretrained_reads_names_as_open_clip_does():
    assert get_pretrained("ViT-B/32", "LAION2B-s34b-b79k") is get_pretrained("ViT-B-32", "laion2b_s34b_b79k")


def test_get_pretrained_separates_repository_and_file():
    entry = get_pretrained("ViTamin-L-336", "datacomp1b")
    assert (entry.hub_id, entry.filename) == ("jienengchen/ViTamin-L-336px", "pytorch_model.bin")
    assert get_pretrained("ViT-B-32", "laion2b_s34b_b79k").filename is None


@pytest.mark.parametrize(
    ("model", "tag", "message"),
    [
        ("ViT-B-32", "laion2b_s34b_b79", r"(?s)Did you mean laion2b_s34b_b79k\? .*\n  openai\n  laion400m_e31"),
        ("ViT-B-32-quickgelu", "laion2b_e16", r"(?s)These models have it: ViT-B-32\. Tags of ViT-B-32-quickgelu:"),
        ("ViT-S-16", "openai", "ViT-S-16 has no pretrained tags"),
        ("ViT-B-33", "openai", "'ViT-B-33' is not among the 173 architectures that are known.*Did you mean"),
    ],
    ids=["misspelt", "of-another-model", "model-without-tags", "unknown-model"],
)
def test_get_pretrained_helps_with_unknown_names(model, tag, message):
    with pytest.raises(ConversionError, match=message):
        get_pretrained(model, tag)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub whose repositories are the folders `tmp_path/hub/org/name`, and what was asked of it."""

    class Hub:
        folder = tmp_path / "hub"
        asked: list[tuple] = []
        reachable = True

        def add(self, path: str) -> Path:
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).touch()
            return self.folder / path

    hub = Hub()

    def hf_hub_download(repo_id, filename, revision=None, local_files_only=False):
        hub.asked.append((repo_id, filename, revision))
        if not hub.reachable:
            raise LocalEntryNotFoundError("no network")
        if not (hub.folder / repo_id / filename).is_file():
            raise EntryNotFoundError("404")
        return str(hub.folder / repo_id / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return hub


def test_open_source_downloads_the_weights_of_a_tag(hub):
    weights = hub.add("laion/CLIP-ViT-L-14-laion2B-s32B-b82K/open_clip_pytorch_model.bin")
    hub.add("laion/CLIP-ViT-L-14-laion2B-s32B-b82K/open_clip_config.json")  # what the tag says counts
    source = open_source(SourceOptions("ViT-L/14", pretrained="laion2b_s32b_b82k"))
    assert source.weights == weights
    assert source.model_cfg == get_architecture("ViT-L-14")
    assert source.preprocess_cfg["mean"] == [0.5, 0.5, 0.5]
    assert source.tokenizer_folder is None
    assert source.name == "ViT-L-14 laion2b_s32b_b82k (laion/CLIP-ViT-L-14-laion2B-s32B-b82K)"
    assert source.notes == ()
    names = ["open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"]
    assert [filename for _, filename, _ in hub.asked] == names


@pytest.mark.parametrize("name", ["pytorch_model.safetensors", "pytorch_model.bin"], ids=["safetensors", "bin"])
def test_open_source_downloads_the_file_that_a_tag_names(hub, name):
    hub.add("jienengchen/ViTamin-S/open_clip_model.safetensors")
    hub.add("jienengchen/ViTamin-S/pytorch_model.bin")
    weights = hub.add(f"jienengchen/ViTamin-S/{name}")
    assert open_source(SourceOptions("ViTamin-S", pretrained="datacomp1b")).weights == weights


def test_open_source_downloads_a_revision_of_a_tag(hub):
    hub.add("timm/vit_base_patch32_clip_224.openai/open_clip_model.safetensors")
    source = open_source(SourceOptions("ViT-B-32", pretrained="openai", revision="abc"))
    assert source.name == "ViT-B-32 openai (timm/vit_base_patch32_clip_224.openai@abc)"
    assert [revision for *_, revision in hub.asked] == ["abc"]


def test_open_source_uses_the_activation_of_a_tag(hub):
    hub.add("timm/vit_base_patch32_clip_224.openai/open_clip_model.safetensors")
    source = open_source(SourceOptions("ViT-B-32", pretrained="openai"))
    assert source.model_cfg == get_architecture("ViT-B-32-quickgelu")
    assert source.notes == ("QuickGELU, with which openai was trained, in place of the GELU of ViT-B-32",)
    assert open_source(SourceOptions("ViT-B-32-quickgelu", pretrained="openai")).notes == ()


def looks_like_quick_gelu(entry, name: str) -> bool:
    """Whether the weights of a tag, under a name of theirs, are refused for their architecture by name alone."""
    source = Source(name, Path(f"{name}.bin"), get_architecture(entry.model), {}, model_name=entry.model)
    try:
        check_activation(source, Weights({}))
    except ConversionError:
        return True
    return False


def test_check_activation_guesses_the_activation_of_the_tags():
    unmarked = {"laion400m_e31", "laion400m_e32", "yfcc15m", "cc12m"}  # names that do not say it
    for entry in list_pretrained():
        expected = entry.quick_gelu and not get_architecture(entry.model).get("quick_gelu")
        expected = expected and entry.tag not in unmarked
        for name in (entry.tag, entry.hub_id.split("/")[1]):
            assert looks_like_quick_gelu(entry, name) == expected, (entry.model, name)


def test_open_source_applies_the_activation_of_every_tag(hub):
    for entry in list_pretrained():
        hub.add(f"{entry.hub_id}/{entry.filename or 'open_clip_model.safetensors'}")
        source = open_source(SourceOptions(entry.model, pretrained=entry.tag))
        assert source.model_cfg.get("quick_gelu", False) == entry.quick_gelu
        check_activation(source, Weights({}))


@pytest.mark.parametrize("as_file", [False, True], ids=["folder", "file"])
def test_open_source_takes_weights_that_are_here_for_those_of_a_tag(tmp_path, as_file):
    (tmp_path / "open_clip_config.json").write_text("{}")  # what the tag says counts
    (tmp_path / "open_clip_model.safetensors").touch()
    given = tmp_path / "open_clip_model.safetensors" if as_file else tmp_path
    source = open_source(SourceOptions(given, model_name="ViT-B-16", pretrained="dfn2b"))
    assert (source.name, source.weights) == (str(given), tmp_path / "open_clip_model.safetensors")
    assert source.model_cfg == get_architecture("ViT-B-16-quickgelu")
    assert source.preprocess_cfg == get_pretrained("ViT-B-16", "dfn2b").preprocess_cfg
    assert source.tokenizer_folder == tmp_path


def test_open_source_says_what_to_do_without_a_network(hub):
    hub.reachable = False
    with pytest.raises(ConversionError) as error:
        open_source(SourceOptions("roberta-ViT-B-32", pretrained="laion2b_s12b_b32k", revision="abc"))
    commands = [line.strip() for line in str(error.value).splitlines() if line.startswith("  ")]
    assert commands == [
        "hf download laion/CLIP-ViT-B-32-roberta-base-laion2B-s12B-b32k --revision abc --local-dir FOLDER",
        save_tokenizer_command("roberta-base"),
        "open-clip-transformers convert FOLDER OUTPUT --model roberta-ViT-B-32 --pretrained laion2b_s12b_b32k",
    ]


def test_open_source_reports_a_repository_without_weights(hub):
    with pytest.raises(ConversionError, match=r"open_clip_model\.safetensors of apple/DFN2B.* be downloaded: 404"):
        open_source(SourceOptions("ViT-B-16", pretrained="dfn2b"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "ViT-B-32", "pretrained": "openai", "config": {}}, "leave out config"),
        (
            {"source": "org/name", "pretrained": "openai"},
            "source is the name of an architecture, got org/name.*model_name",
        ),
        ({"source": ".", "pretrained": "openai"}, "source is the name of an architecture, got"),
        ({"source": "ViT-B-32", "pretrained": "nope"}, "has no pretrained tag 'nope'"),
        ({"source": ".", "model_name": "ViT-B-32", "pretrained": "openai", "revision": "1"}, "has no revisions"),
    ],
    ids=["config", "hub-id", "folder", "tag", "revision"],
)
def test_open_source_refuses_contradictions_with_a_tag(arguments, message):
    with pytest.raises(ConversionError, match=message):
        open_source(SourceOptions(**arguments))


def test_convert_applies_a_tag(hub, tmp_path, monkeypatch):
    cfg = tiny_clip_cfg(text_cfg={"vocab_size": 49408})
    monkeypatch.setattr(source_module, "get_architecture", lambda name: {"ViT-H-14": cfg}[name])
    model = open_clip_model({**cfg, "quick_gelu": True})
    torch.save(model.state_dict(), hub.add("apple/DFN5B-CLIP-ViT-H-14/open_clip_pytorch_model.bin"))
    report = convert_open_clip_checkpoint("ViT-H-14", tmp_path / "out", pretrained="dfn5b", verify="full")
    assert report.source == "ViT-H-14 dfn5b (apple/DFN5B-CLIP-ViT-H-14)"
    assert "note         QuickGELU" in str(report)
    config = OpenClipConfig.from_pretrained(tmp_path / "out")
    assert config.vision_config.hidden_act == config.text_config.hidden_act == "quick_gelu"
    image_settings = json.loads((tmp_path / "out" / "processor_config.json").read_text())["image_processor"]
    assert image_settings["resize_mode"] == "squash"
    assert load_file(tmp_path / "out" / "model.safetensors").keys()
