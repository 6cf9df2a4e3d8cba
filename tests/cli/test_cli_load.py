"""Messages about models that cannot be loaded."""

import json
import shutil

import pytest


def test_model_that_is_not_there(run, images, tmp_path):
    result = run("caption", tmp_path / "missing", images[0], exit_code=2)
    assert (
        result.stderr
        == f"Error: {tmp_path / 'missing'}: there is no such folder, and it is not a Hub id (org/name).\n"
    )


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("org/name@v1", "Give org/name and --revision v1."),
        ("https://huggingface.co/org/name", "Give org/name."),
        ("https://huggingface.co/org/name/tree/v1", "Give org/name and --revision v1."),
        ("hf.co/org/name/blob/main/config.json", "Give org/name."),
    ],
)
def test_names_that_mean_a_hub_id(run, images, tmp_path, name, advice):
    assert run("classify", name, images[0], "--labels", "a", exit_code=2).stderr.endswith(f"(org/name). {advice}\n")
    hub_id = advice.removesuffix(".").replace("Give ", "").replace(" and --revision ", "@")
    if "@" not in name:
        result = run("convert", name, tmp_path / "out", exit_code=1)
        assert f"Give {hub_id} instead of its address." in result.stderr


@pytest.mark.parametrize("name", ["empty", "half", "binary", "folder"])
def test_settings_of_generation_that_cannot_be_read(run, coca, images, tmp_path, name):
    shutil.copytree(coca, tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    content = {"empty": b"", "half": path.read_bytes()[:40], "binary": bytes(range(256))}
    path.unlink()
    path.mkdir() if name == "folder" else path.write_bytes(content[name])
    assert f"{path} cannot be read as JSON" in run("caption", tmp_path / "model", images[0], exit_code=1).stderr


def test_hub_id_that_cannot_be_had(run, images):
    result = run("classify", "nobody/nothing", images[0], "--labels", "a", exit_code=2)
    assert result.stderr.startswith("Error: nobody/nothing: there is no configuration that can be read.")


def test_open_clip_checkpoint_that_was_not_converted(run, coca, images):
    source = coca.with_name("coca_source")
    for model in (source, source / "open_clip_model.safetensors"):
        result = run("caption", model, images[0], exit_code=2)
        assert f"`open-clip-transformers convert {model} FOLDER`" in result.stderr


@pytest.mark.parametrize("command", ["caption", "classify", "embed"])
def test_model_of_another_library(run, images, tmp_path, command):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    options = {"caption": [], "classify": ["--labels", "a"], "embed": ["-o", tmp_path / "e.npy"]}[command]
    result = run(command, tmp_path / "bert", images[0], *options, exit_code=2)
    assert "is a 'bert' model, expected one that was converted from open_clip" in result.stderr


def test_model_without_a_processor(run, coca, images, tmp_path):
    shutil.copytree(coca, tmp_path / "bare", ignore=shutil.ignore_patterns("*processor*", "*token*"))
    result = run("caption", tmp_path / "bare", images[0], exit_code=2)
    assert "has no processor that can be loaded; converting it again writes one" in result.stderr


def test_model_without_its_weights(run, coca, images, tmp_path):
    shutil.copytree(coca, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    result = run("caption", tmp_path / "bare", images[0], exit_code=1)
    assert result.stderr.startswith("Error: ")
    assert str(tmp_path / "bare") in result.stderr


def test_part_of_a_model_is_refused(run, clip, images, tmp_path):
    """An image classifier has a dual model's configuration, but only its vision tower."""
    from transformers import AutoModelForImageClassification

    shutil.copytree(clip, tmp_path / "head", ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForImageClassification.from_pretrained(clip).save_pretrained(tmp_path / "head")
    result = run("classify", tmp_path / "head", images[0], "--labels", "a", exit_code=2)
    assert "does not hold a whole CLIP" in result.stderr


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 10**6},
        {"num_beams": "4"},
        {"num_beams": 2, "length_penalty": 10**30},
        {"max_length": "long"},
        {"eos_token_id": "x"},
        {"eos_token_id": [[1]]},
        {"bos_token_id": 1.5},
        {"temperature": 0, "do_sample": True},
        {"top_k": "x", "do_sample": True},
        {"suppress_tokens": "x"},
        {"guidance_scale": 2.0},
    ],
    ids=str,
)
def test_settings_that_no_caption_can_be_made_with(run, coca, images, tmp_path, settings):
    shutil.copytree(coca, tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    result = run("caption", tmp_path / "model", images[0], exit_code=2)
    assert f"{tmp_path / 'model'} cannot caption" in result.stderr
    assert "generation_config.json" in result.stderr


def test_settings_of_generation_that_are_unusual_and_right(run, coca, images, tmp_path):
    shutil.copytree(coca, tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    settings = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "no_repeat_ngram_size": 2}
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    run("caption", tmp_path / "model", images[0])


@pytest.mark.parametrize("option", ["--num-beams=1000000", "--num-beam-groups=5000 --num-beams=10000"])
def test_options_that_no_caption_can_be_made_with(run, coca, images, option):
    result = run("caption", coca, images[0], *option.split(), exit_code=2)
    assert "Error: No captions can be made with these options: " in result.stderr
