"""Finding weights and configurations: folders, files, Hub repositories, names, and what is refused."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from tiny_configs import tiny_clip_cfg

from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.processors.tokenizers import tokenizer_folder
from open_clip_transformers.convert_scripts.sources.architectures import get_architecture
from open_clip_transformers.convert_scripts.sources.source import SourceOptions, check_activation, open_source
from open_clip_transformers.convert_scripts.sources.weights import WEIGHTS_FILES, Weights


CONFIG = {"model_cfg": tiny_clip_cfg(), "preprocess_cfg": {"resize_mode": "squash"}, "version": "3.3.0"}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder as open_clip publishes it, with an empty weights file."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "open_clip_config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model" / "open_clip_model.safetensors").touch()
    return tmp_path / "model"


@pytest.mark.parametrize("prefix", ["", "local-dir:"], ids=["path", "local-dir"])
def test_open_source_reads_a_folder(folder, prefix):
    source = open_source(SourceOptions(f"{prefix}{folder}"))
    assert source.weights == folder / "open_clip_model.safetensors"
    assert source.model_cfg == CONFIG["model_cfg"]
    assert source.preprocess_cfg == {"resize_mode": "squash"}
    assert source.tokenizer_folder == folder
    assert source.model_name is None


def test_open_source_uses_the_configuration_beside_a_weights_file(folder):
    source = open_source(SourceOptions(folder / "open_clip_model.safetensors"))
    assert (source.model_cfg, source.tokenizer_folder) == (CONFIG["model_cfg"], folder)


def test_open_source_takes_a_file_of_a_folder_with_another_configuration(folder):
    source = open_source(SourceOptions(folder / "open_clip_model.safetensors", model_name="ViT-B-16"))
    assert source.model_cfg == get_architecture("ViT-B-16")


@pytest.mark.parametrize("form", ["dict", "path", "bare-dict", "bare-path"])
def test_open_source_takes_a_configuration(tmp_path, form):
    config = CONFIG["model_cfg"] if form.startswith("bare") else CONFIG
    if form.endswith("path"):
        (tmp_path / "config.json").write_text(json.dumps(config))
        config = tmp_path / "config.json"
    (tmp_path / "weights.pt").touch()
    source = open_source(SourceOptions(tmp_path / "weights.pt", config=config))
    assert source.model_cfg == CONFIG["model_cfg"]
    assert source.preprocess_cfg == ({} if form.startswith("bare") else CONFIG["preprocess_cfg"])


def test_open_source_takes_a_name_with_image_settings(tmp_path):
    (tmp_path / "weights.pt").touch()
    source = open_source(SourceOptions(tmp_path / "weights.pt", "ViT-B-32", {"preprocess_cfg": {"mean": [0.5] * 3}}))
    assert source.model_cfg == get_architecture("ViT-B-32")
    assert source.preprocess_cfg == {"mean": [0.5] * 3}
    assert source.model_name == "ViT-B-32"


def test_open_source_takes_a_folder_of_weights_alone_with_a_name(tmp_path):
    (tmp_path / "open_clip_pytorch_model.bin").touch()
    source = open_source(SourceOptions(tmp_path, model_name="ViT-B-32"))
    assert source.weights.name == "open_clip_pytorch_model.bin"


@pytest.mark.parametrize("first", range(len(WEIGHTS_FILES) - 1), ids=WEIGHTS_FILES[:-1])
def test_open_source_prefers_weights_files_as_open_clip_does(folder, first):
    from open_clip.factory import _find_checkpoint_in_dir

    (folder / "open_clip_model.safetensors").unlink()
    for name in ["a.safetensors", *WEIGHTS_FILES[first:]]:
        (folder / name).touch()
    assert (
        open_source(SourceOptions(folder)).weights
        == Path(_find_checkpoint_in_dir(folder))
        == folder / WEIGHTS_FILES[first]
    )


def test_open_source_takes_the_only_weights_file_of_any_name(folder):
    (folder / "open_clip_model.safetensors").rename(folder / "mine.pt")
    assert open_source(SourceOptions(folder)).weights.name == "mine.pt"


def fake_hub(monkeypatch, folder: Path | None, asked: list):
    """Makes `folder` what the Hub holds for every repository; `None` for no network."""

    def hf_hub_download(repo_id, filename, revision=None, local_files_only=False):
        asked.append((repo_id, filename, revision, local_files_only))
        if folder is None:
            raise LocalEntryNotFoundError("no network")
        if not (folder / filename).is_file():
            raise EntryNotFoundError("404")
        return str(folder / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)


@pytest.mark.parametrize("source", ["org/name-1.0", "hf-hub:org/name-1.0"], ids=["id", "hf-hub"])
def test_open_source_downloads_a_hub_repository(monkeypatch, folder, source):
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.bin")
    asked = []
    fake_hub(monkeypatch, folder, asked)
    opened = open_source(SourceOptions(source))
    assert opened.weights == folder / "open_clip_pytorch_model.bin"
    assert opened.model_cfg == CONFIG["model_cfg"]
    assert opened.name == source
    assert asked[0] == ("org/name-1.0", "open_clip_config.json", None, False)
    assert [filename for _, filename, _, _ in asked[1:]] == list(WEIGHTS_FILES[:3])


def test_open_source_downloads_a_repository_of_several_weights_files(monkeypatch, folder):
    (folder / "open_clip_model.safetensors").unlink()
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name in shards:
        (folder / name).touch()
    index = {"weight_map": {"a": shards[1], "b": shards[0], "c": shards[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    asked = []
    fake_hub(monkeypatch, folder, asked)
    assert open_source(SourceOptions("org/name@v1")).weights == folder / "model.safetensors.index.json"
    assert asked[-2:] == [("org/name", name, "v1", False) for name in shards]


@pytest.mark.parametrize(
    ("source", "revision", "name"),
    [
        ("org/name", "v1", "org/name@v1"),
        ("hf-hub:org/name@refs/pr/1", None, "hf-hub:org/name@refs/pr/1"),
        ("org/name@v1", "v1", "org/name@v1"),
    ],
    ids=["argument", "suffix", "both"],
)
def test_open_source_downloads_a_revision(monkeypatch, folder, source, revision, name):
    asked = []
    fake_hub(monkeypatch, folder, asked)
    assert open_source(SourceOptions(source, revision=revision)).name == name
    assert {(repo_id, asked_for) for repo_id, _, asked_for, _ in asked} == {("org/name", name.partition("@")[2])}


def test_open_source_refuses_two_revisions(monkeypatch, folder):
    fake_hub(monkeypatch, folder, [])
    with pytest.raises(ConversionError, match="revision is given twice: org/name@v1 and 'v2'"):
        open_source(SourceOptions("org/name@v1", revision="v2"))


def test_open_source_refuses_a_revision_of_a_folder(folder):
    with pytest.raises(ConversionError, match=r"has no revisions: leave out revision='v1'"):
        open_source(SourceOptions(folder, revision="v1"))


def test_open_source_says_how_to_get_a_revision_without_a_network(monkeypatch):
    fake_hub(monkeypatch, None, [])
    with pytest.raises(ConversionError, match=r"`hf download org/name --revision v1 --local-dir FOLDER`"):
        open_source(SourceOptions("org/name@v1"))


def test_open_source_takes_a_name_for_a_repository_of_weights_alone(monkeypatch, folder):
    (folder / "open_clip_config.json").unlink()
    fake_hub(monkeypatch, folder, [])
    assert open_source(SourceOptions("org/name", model_name="ViT-B-32")).model_cfg == get_architecture("ViT-B-32")


def test_open_source_refuses_two_configurations_for_a_repository(monkeypatch, folder):
    fake_hub(monkeypatch, folder, [])
    with pytest.raises(ConversionError, match=r"org/name has its own open_clip_config\.json"):
        open_source(SourceOptions("org/name", model_name="ViT-B-32"))


def test_open_source_says_how_to_go_on_without_a_network(monkeypatch):
    fake_hub(monkeypatch, None, [])
    with pytest.raises(ConversionError, match=r"cannot be reached.*hf download org/name --local-dir FOLDER"):
        open_source(SourceOptions("org/name"))


def test_open_source_waits_for_the_network_only_once(monkeypatch):
    asked = []
    fake_hub(monkeypatch, None, asked)
    with pytest.raises(ConversionError, match=r"open_clip_model.safetensors of org/name.*cannot be reached"):
        open_source(SourceOptions("org/name", model_name="ViT-B-32"))
    assert [local_files_only for *_, local_files_only in asked] == [False] + [True] * (len(asked) - 1)


def test_open_source_refuses_a_repository_without_open_clip_files(monkeypatch, tmp_path):
    fake_hub(monkeypatch, tmp_path, [])
    with pytest.raises(ConversionError, match=r"open_clip_config.json of org/name cannot be downloaded: 404"):
        open_source(SourceOptions("org/name"))


def test_open_source_offline_needs_no_patching():
    # tests run with HF_HUB_OFFLINE=1
    with pytest.raises(ConversionError, match="not in the local cache and the Hugging Face Hub cannot be reached"):
        open_source(SourceOptions("hf-hub:org/name"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing/weights.pt", "no such file or folder"),
        ("missing", "no such file or folder, and it is not a Hub id"),
        ("a/b/c", "no such file or folder"),
        ("ViT-S-16", "It is an architecture: give its weights file as the source and 'ViT-S-16' as model_name"),
        (
            "ViT-L-14-336",
            "It is an architecture: give one of its tags as pretrained, such as 'openai', or its weights",
        ),
    ],
    ids=["file", "folder", "path", "architecture", "architecture-with-tags"],
)
def test_open_source_refuses_what_is_not_there(source, message):
    with pytest.raises(ConversionError, match=message):
        open_source(SourceOptions(source))


def test_open_source_refuses_a_folder_without_weights(folder):
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(ConversionError, match=r"holds no weights: expected open_clip_model\.safetensors"):
        open_source(SourceOptions(folder))


def test_open_source_refuses_to_choose_among_several_weights_files(folder):
    (folder / "open_clip_model.safetensors").rename(folder / "a.pt")
    shutil.copy(folder / "a.pt", folder / "b.pt")
    with pytest.raises(ConversionError, match=r"several weights files.*\n  a\.pt\n  b\.pt\nGive one of them"):
        open_source(SourceOptions(folder))


@pytest.mark.parametrize("given", [{"model_name": "ViT-B-32"}, {"config": CONFIG}], ids=["name", "config"])
def test_open_source_refuses_two_configurations_for_a_folder(folder, given):
    with pytest.raises(ConversionError, match=r"has its own open_clip_config\.json: leave out model_name and config"):
        open_source(SourceOptions(folder, **given))


def test_open_source_refuses_a_name_and_an_architecture(tmp_path):
    (tmp_path / "weights.pt").touch()
    with pytest.raises(ConversionError, match="given twice"):
        open_source(SourceOptions(tmp_path / "weights.pt", "ViT-B-32", CONFIG))


def test_open_source_refuses_weights_of_unknown_architecture(tmp_path):
    torch.save({"logit_scale": torch.zeros(())}, tmp_path / "weights.pt")
    with pytest.raises(ConversionError, match=r"architecture of .*weights.pt is not known.*model_name.*config"):
        open_source(SourceOptions(tmp_path / "weights.pt"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list; expected a JSON object"),
        ("{}", "not an open_clip configuration.*found nothing"),
        ('{"model_type": "clip"}', "expected embed_dim, vision_cfg and text_cfg.*found model_type"),
        ('{"model_cfg": 3}', "not an open_clip configuration"),
    ],
    ids=["broken", "list", "empty", "transformers", "number"],
)
def test_open_source_refuses_other_configurations(folder, text, message):
    (folder / "open_clip_config.json").write_text(text)
    with pytest.raises(ConversionError, match=message):
        open_source(SourceOptions(folder))


def checked(tmp_path, filename: str, model_name: str | None, run_name=None, keys=(), config=None):
    (tmp_path / filename).touch()
    source = open_source(SourceOptions(tmp_path / filename, model_name, config))
    check_activation(source, Weights({key: torch.zeros(()) for key in keys}, run_name))


OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")


@pytest.mark.parametrize(
    ("filename", "run_name", "keys"),
    [
        ("ViT-B-32-openai.pt", None, ()),
        ("DFN2B-CLIP-ViT-B-16.bin", None, ()),
        ("b32_metaclip_400m.pt", None, ()),
        ("vit_b_32-quickgelu-laion400m_e32.pt", None, ()),
        ("epoch_3.pt", "2024_01_01-model_ViT-B-32-quickgelu-lr_0.001", ()),
        ("weights.pt", None, OPENAI_KEYS),
    ],
    ids=["openai", "dfn", "metaclip", "laion400m", "run-name", "openai-keys"],
)
def test_check_activation_refuses_quickgelu_weights_for_a_gelu_name(tmp_path, filename, run_name, keys):
    message = "looks like weights trained with QuickGELU.*model_name='ViT-B-32-quickgelu'.*\"quick_gelu\": false"
    with pytest.raises(ConversionError, match=message):
        checked(tmp_path, filename, "ViT-B-32", run_name, keys)


@pytest.mark.parametrize(
    ("filename", "model_name"),
    [
        ("ViT-B-32-openai.pt", "ViT-B-32-quickgelu"),
        ("vit_b_32-laion2b_e16.pth", "ViT-B-32"),
        ("dfn2b_s39b.pt", "ViT-L-14"),
        ("h14_v1.2_altogether_metaclip.pt", "ViT-H-14"),
        ("metaclip2_worldwide.pt", "ViT-bigG-14-worldwide-378"),
        ("dfndr2b.pt", "MobileCLIP2-B"),
    ],
    ids=["quickgelu-name", "laion2b", "dfn-with-gelu", "metaclip-with-gelu", "worldwide-with-gelu", "dfndr"],
)
def test_check_activation_takes_what_is_not_in_doubt(tmp_path, filename, model_name):
    checked(tmp_path, filename, model_name)


def test_check_activation_takes_a_configuration_at_its_word(tmp_path):
    checked(tmp_path, "openai.pt", None, config=get_architecture("ViT-B-32"), keys=OPENAI_KEYS)


def test_open_source_takes_a_name_with_what_differs(tmp_path):
    (tmp_path / "weights.pt").touch()
    changes = {"init_logit_bias": -10, "vision_cfg": {"image_size": 336}}
    for config in (changes, {"model_cfg": changes, "preprocess_cfg": {"resize_mode": "squash"}}):
        source = open_source(SourceOptions(tmp_path / "weights.pt", "ViT-L-14", config))
        expected = get_architecture("ViT-L-14")
        expected["vision_cfg"]["image_size"] = 336
        assert source.model_cfg == {**expected, "init_logit_bias": -10}
        assert source.preprocess_cfg == config.get("preprocess_cfg", {})


@pytest.mark.parametrize(
    "config", [{"model_cfg": {}, "quick_gelu": True}, {"model_cfg": [], "preprocess_cfg": {}}], ids=["beside", "list"]
)
def test_open_source_refuses_changes_that_would_be_ignored(tmp_path, config):
    (tmp_path / "weights.pt").touch()
    with pytest.raises(ConversionError, match="Beside a name, config holds what differs"):
        open_source(SourceOptions(tmp_path / "weights.pt", "ViT-L-14", config))


def test_check_activation_takes_a_stated_activation_at_its_word(tmp_path):
    (tmp_path / "dfn.pt").touch()
    check_activation(open_source(SourceOptions(tmp_path / "dfn.pt", "ViT-B-32", {"quick_gelu": False})), Weights({}))
    with pytest.raises(ConversionError, match=r"model_name='ViT-B-32-quickgelu'; for GELU give config with"):
        check_activation(open_source(SourceOptions(tmp_path / "dfn.pt", "ViT-B-32")), Weights({}))


def test_open_source_says_that_a_name_is_a_file(folder):
    with pytest.raises(ConversionError, match=r"'my.json' is a file .*: give it with config='my.json'"):
        open_source(SourceOptions(folder / "open_clip_model.safetensors", "my.json"))


@pytest.mark.parametrize("form", ["absolute", "relative"])
@pytest.mark.parametrize("given", [True, False], ids=["given", "own"])
def test_open_source_finds_a_tokenizer_folder_that_the_configuration_names(folder, tmp_path, form, given):
    base = tmp_path / "configs" if given else folder
    named = base / "words" if form == "relative" else tmp_path / "elsewhere"
    base.mkdir(exist_ok=True)
    named.mkdir()
    (named / "vocab.json").write_text("{}")
    name = "words" if form == "relative" else str(named)
    config = {"model_cfg": {**tiny_clip_cfg(), "text_cfg": {"hf_tokenizer_name": name, "hf_model_name": name}}}
    (base / ("my.json" if given else "open_clip_config.json")).write_text(json.dumps(config))
    if given:
        source = open_source(SourceOptions(folder / "open_clip_model.safetensors", config=base / "my.json"))
    else:
        source = open_source(SourceOptions(folder))
    assert tokenizer_folder(source, name) == named
    assert source.model_cfg["text_cfg"]["hf_model_name"] == str(named)


def test_open_source_prefers_the_tokenizer_beside_the_weights_as_open_clip_does(folder):
    (folder / "words").mkdir()
    for path in (folder, folder / "words"):
        (path / "vocab.json").write_text("{}")
    config = {"model_cfg": {**tiny_clip_cfg(), "text_cfg": {"hf_tokenizer_name": "words"}}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert tokenizer_folder(open_source(SourceOptions(folder)), "words") == folder


def test_a_tokenizer_folder_without_a_vocabulary_is_not_looked_for_on_the_hub(folder, tmp_path):
    (tmp_path / "words").mkdir()
    config = {"model_cfg": {**tiny_clip_cfg(), "text_cfg": {"hf_tokenizer_name": str(tmp_path / "words")}}}
    source = open_source(SourceOptions(folder / "open_clip_model.safetensors", config=config))
    with pytest.raises(ConversionError, match=rf"names a tokenizer in {tmp_path / 'words'}, where there are none"):
        tokenizer_folder(source, str(tmp_path / "words"))


def test_open_source_of_the_hub_follows_no_local_folder(monkeypatch, folder, tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "vocab.json").write_text("{}")
    for name in (str(tmp_path / "private"), "../private"):
        config = {"model_cfg": {**tiny_clip_cfg(), "text_cfg": {"hf_tokenizer_name": name}}}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        fake_hub(monkeypatch, folder, [])
        source = open_source(SourceOptions("org/name"))
        with pytest.raises(ConversionError, match="no id of a repository on the Hub"):
            tokenizer_folder(source, name)
