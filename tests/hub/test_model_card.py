"""Model cards: valid metadata, nothing invented, and examples that run."""

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from tiny_configs import save_open_clip_folder, tiny_coca_cfg
from tiny_families import FAMILIES, save_tiny_family
from tiny_folders import COCA_CLIP_VOCABULARY
from typer.testing import CliRunner

from open_clip_transformers.cli import app
from open_clip_transformers.convert_scripts import common
from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.hub import card
from open_clip_transformers.convert_scripts.hub.card import build_model_card, write_model_card


TASKS = dict.fromkeys(("coca", "mammut", "coca_modern"), "image-to-text")


def snippets(card: ModelCard) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A CoCa as open_clip publishes it, with a model card of its own."""
    folder = tmp_path_factory.mktemp("source") / "coca"
    save_open_clip_folder(folder, tiny_coca_cfg(**COCA_CLIP_VOCABULARY))
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A CoCa\n")
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_examples_of_the_card_run(family, tmp_path, monkeypatch):
    save_tiny_family(family, tmp_path / "model")
    card = build_model_card(tmp_path / "model", "some-org/model")
    assert "some-org/model" in card.text
    monkeypatch.chdir(tmp_path)
    Image.radial_gradient("L").resize((61, 43)).convert("RGB").save("image.jpg")
    examples = snippets(card)
    assert len(examples) >= 2
    for example in examples:
        exec(example.replace("some-org/model", str(tmp_path / "model")), {})


@pytest.mark.parametrize("family", FAMILIES)
def test_metadata_name_the_task_and_the_library(family, tmp_path):
    save_tiny_family(family, tmp_path / "model")
    data = build_model_card(tmp_path / "model").data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == TASKS.get(family, "zero-shot-image-classification")
    assert {"open_clip", "safetensors"} <= set(data.tags)
    # Nothing was said of them, so nothing is invented.
    assert data.license is None and data.base_model is None


def test_card_of_a_tower_shows_how_to_load_it(tmp_path):
    model = save_tiny_family("clip", tmp_path / "whole")
    model.vision_model.save_pretrained(tmp_path / "tower")
    card = build_model_card(tmp_path / "tower", "some-org/tower")
    assert card.data.pipeline_tag == "image-feature-extraction"
    (example,) = snippets(card)
    exec(example.replace("some-org/tower", str(tmp_path / "tower")), {})


def test_card_of_a_conversion_tells_its_source(source, tmp_path):
    report = convert_open_clip_checkpoint(source, tmp_path / "out")
    path = write_model_card(tmp_path / "out")
    card = ModelCard.load(path)
    assert yaml.safe_load(path.read_text().split("---")[1])["license"] == "cc-by-4.0"
    assert report.sha256 in card.text and "Converted from `coca`" in card.text
    for name in report.verification.differences:
        assert f"| {name} |" in card.text


def test_card_has_the_table_of_a_verification_report(source, tmp_path):
    convert_open_clip_checkpoint(source, tmp_path / "out", verify="none")
    (tmp_path / "out" / "verification.md").write_text(
        "# Verification\n\n**Passed: 3 comparisons.**\n\n| | |\n|---|---|\n| a | b |\n\n"
        "| | Compared | Failed |\n|---|---|---|\n| features, float32 | 2 | 0 |\n"
    )
    card = build_model_card(tmp_path / "out")
    assert (
        "**Passed: 3 comparisons.**\n\n| | Compared | Failed |\n|---|---|---|\n| features, float32 | 2 | 0 |"
        in card.text
    )


def test_base_model_is_the_hub_repository_that_was_converted(tmp_path):
    save_tiny_family("clip", tmp_path)
    provenance = {
        "source": "hf-hub:some-org/some-clip",
        "weights_file": "a",
        "sha256": "0",
        "license": None,
        "notes": [],
        "date": "2026-01-01T00:00:00+00:00",
        "verification": {"mode": "none", "detail": "", "differences": {}},
        "versions": {"open_clip_transformers": "0", "torch": "0", "transformers": "0"},
    }
    (tmp_path / "conversion.json").write_text(json.dumps(provenance))
    assert build_model_card(tmp_path).data.base_model == "some-org/some-clip"


def test_write_model_card_keeps_a_card_that_is_there(tmp_path):
    save_tiny_family("clip", tmp_path)
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ConversionError, match="exists: move it away"):
        write_model_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    write_model_card(tmp_path, force=True)
    assert ModelCard.load(tmp_path / "README.md").data.library_name == "transformers"


def test_write_model_card_refuses_what_is_not_ours(tmp_path):
    with pytest.raises(ConversionError, match=r"has no config\.json"):
        write_model_card(tmp_path)


@pytest.mark.parametrize("address", [None, "git+https://example.org/open_clip_transformers"], ids=["unset", "set"])
def test_card_says_what_to_install(address, tmp_path, monkeypatch):
    save_tiny_family("coca", tmp_path / "model")
    monkeypatch.setattr(card, "project_address", lambda: address)
    text = build_model_card(tmp_path / "model").text
    assert "Needs transformers 5.5 or newer" in text
    assert ("pip install" in text) == (address is not None)
    assert address is None or f"With `pip install {address}` and `import open_clip_transformers`" in text


@pytest.mark.parametrize("url", [None, "https://example.org/open_clip_transformers"], ids=["unset", "set"])
def test_address_is_the_url_of_the_installed_package(url, monkeypatch):
    monkeypatch.setattr(common, "metadata", lambda name: {"Home-page": url})
    assert common.project_address() == (None if url is None else f"git+{url}")


def test_card_command_says_what_the_folder_does_not(tmp_path):
    save_tiny_family("coca", tmp_path / "model")
    options = ["--model-id", "me/coca", "--license", "cc-by-nc-4.0", "--base-model", "org/base"]
    options += ["--dataset", "mine", "--dataset", "org/pairs", "--language", "en", "--language", "de"]
    result = CliRunner().invoke(app, ["card", str(tmp_path / "model"), *options])
    assert result.exit_code == 0 and result.stdout.strip() == str(tmp_path / "model" / "README.md")
    card = ModelCard.load(tmp_path / "model" / "README.md")
    expected = {
        "license": "cc-by-nc-4.0",
        "base_model": "org/base",
        "datasets": ["mine", "org/pairs"],
        "language": ["en", "de"],
    }
    assert expected.items() <= card.data.to_dict().items()
    assert 'model="me/coca"' in card.text
    assert "Trained on mine, org/pairs." in card.text
    assert "Made of [org/base](https://huggingface.co/org/base)" in card.text
    assert "Its licence is cc-by-nc-4.0." in card.text
    repeated = CliRunner().invoke(app, ["card", str(tmp_path / "model"), "--force"])
    assert repeated.exit_code == 0 and "me/coca" not in (tmp_path / "model" / "README.md").read_text()


def test_card_of_a_run_of_your_own_sends_nobody_to_another_card(source, tmp_path):
    """Neither weights of a training run nor what Trainer saved have an original with a card."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "open_clip_config.json").write_bytes((source / "open_clip_config.json").read_bytes())
    (tmp_path / "run" / "open_clip_model.safetensors").symlink_to(source / "open_clip_model.safetensors")
    convert_open_clip_checkpoint(tmp_path / "run", tmp_path / "converted", verify="none")
    save_tiny_family("coca", tmp_path / "saved")
    for folder in ("converted", "saved"):
        text = build_model_card(tmp_path / folder).text
        assert "these weights come from no published model" in text and "No licence was given" in text
        assert "original" not in text
    assert "Saved by transformers" in build_model_card(tmp_path / "saved").text


def test_card_says_what_transformers_says_without_the_code(tmp_path):
    save_tiny_family("clip", tmp_path / "model")
    text = " ".join(build_model_card(tmp_path / "model").text.split())
    assert "does not know `open_clip` by itself" in text and "does not recognize this architecture" in text
    assert "`trust_remote_code=True`" in text and "`import open_clip_transformers`" in text


DAMAGED = {
    "config.json": [b"null", b"[]", b"{}", b"3", b"[" * 100_000, b'{"model_type": "x\\u001b[2J"}', b"\xff"],
    "conversion.json": [b"null", b'{"source": 3}', b'{"source": "a/b", "options": "x"}', b'{"source": "a/b"}'],
    "processor_config.json": [b"null", b"[]", b'{"image_processor": 3}', b"[" * 100_000],
    "verification.md": [b"", b"nothing", b"\xff"],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_folder_is_refused_by_the_file(name, tmp_path):
    save_tiny_family("coca", tmp_path)
    good = (tmp_path / name).read_bytes() if (tmp_path / name).is_file() else None
    for content in DAMAGED[name]:
        (tmp_path / name).write_bytes(content)
        for arguments in (["card", tmp_path, "--force"], ["push", tmp_path, "some-org/model", "--dry-run"]):
            result = CliRunner().invoke(app, [str(argument) for argument in arguments])
            is_read = arguments[0] == "card" or name in ("config.json",)
            assert (result.exit_code != 0) or not is_read, (name, content)
            assert "should not happen" not in result.stderr, (name, content, result.stderr)
    if good is not None:
        (tmp_path / name).write_bytes(good)
    else:
        (tmp_path / name).unlink()
    assert write_model_card(tmp_path, force=True).is_file()


@pytest.mark.parametrize("option", ["--model-id", "--base-model"])
def test_id_that_the_hub_would_refuse_is_refused(option, tmp_path):
    save_tiny_family("clip", tmp_path)
    result = CliRunner().invoke(app, ["card", str(tmp_path), option, "no id/x"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: 'no id/x' is no repository id")
    assert not (tmp_path / "README.md").exists()
