"""`open-clip-transformers convert` to transformers' own classes and single towers, and from transformers' folders."""

import json

import pytest
from tiny_configs import save_open_clip_folder, tiny_clip_cfg, tiny_coca_cfg


FORMS = {
    "native": (["--target", "native"], "CLIPModel"),
    "vision": (["--tower", "vision"], "OpenClipVitModel"),
    "native-text": (["--target", "native", "--tower", "text"], "CLIPTextModelWithProjection"),
}


@pytest.mark.parametrize(("options", "architecture"), FORMS.values(), ids=FORMS.keys())
def test_convert_writes_the_form_that_was_asked_for(run, tmp_path, options, architecture):
    save_open_clip_folder(tmp_path / "source", tiny_clip_cfg())
    result = run("convert", tmp_path / "source", tmp_path / "out", "--no-processor", *options)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [architecture]
    assert architecture in result.stdout
    assert "verified     against our OpenClipModel and open_clip" in result.stdout
    assert result.stderr == ""


def test_convert_names_what_stands_in_the_way(run, tmp_path):
    save_open_clip_folder(tmp_path / "source", tiny_coca_cfg())
    result = run("convert", tmp_path / "source", tmp_path / "out", "--no-processor", "--target", "native", exit_code=1)
    assert "vision_config.attentional_pool is True, needed False: it pools the class token" in result.stderr
    assert not (tmp_path / "out").exists()


def test_convert_takes_a_folder_of_transformers(run, tmp_path):
    save_open_clip_folder(tmp_path / "source", tiny_clip_cfg())
    run("convert", tmp_path / "source", tmp_path / "native", "--no-processor", "--target", "native")
    result = run("convert", tmp_path / "native", tmp_path / "out", "--no-processor")
    assert "the source is transformers' CLIPModel" in result.stdout
    assert "verified     against transformers' CLIPModel" in result.stdout
    assert result.stderr == ""
