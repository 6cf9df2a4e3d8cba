"""`open-clip-transformers convert`: what it hands on, prints and leaves behind."""

import json
import re
import shlex

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_configs import save_open_clip_folder, tiny_clip_cfg, tiny_coca_cfg


@pytest.fixture
def source(tmp_path):
    save_open_clip_folder(tmp_path / "source", tiny_coca_cfg())
    return tmp_path / "source"


def test_convert_writes_a_folder_and_prints_the_report(run, source, tmp_path):
    result = run("convert", source, tmp_path / "out", "--no-processor")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "conversion.json",
        "generation_config.json",
        "model.safetensors",
    }
    for words in (
        str(source),
        str(tmp_path / "out"),
        "CoCaForConditionalGeneration",
        "verified     against open_clip",
    ):
        assert words in result.stdout
    assert result.stderr == ""


def test_convert_hands_on_its_options(run, source, tmp_path):
    weights, config = source / "open_clip_model.safetensors", source / "open_clip_config.json"
    moved = tmp_path / "weights.safetensors"
    weights.rename(moved)
    options = ["--config", config, "--dtype", "bfloat16", "--max-shard-size", "100KB", "--verify", "structure"]
    result = run("convert", moved, tmp_path / "out", "--no-processor", *options)
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert {tensor.dtype for shard in shards for tensor in load_file(shard).values()} == {torch.bfloat16}
    assert "verified     structure only" in result.stdout


def test_convert_refuses_to_reparameterize_what_has_no_branches(run, source, tmp_path):
    result = run("convert", source, tmp_path / "out", "--no-processor", "--reparameterize", exit_code=1)
    assert "image towers of timm" in result.stderr
    assert not (tmp_path / "out").exists()


def test_convert_takes_averaged_weights_on_demand(run, source, tmp_path):
    weights, config = source / "open_clip_model.safetensors", source / "open_clip_config.json"
    tensors = load_file(weights)
    checkpoint = {"state_dict": tensors, "state_dict_ema": {key: tensor + 1 for key, tensor in tensors.items()}}
    torch.save(checkpoint, tmp_path / "epoch_3.pt")
    options = ["--config", config, "--no-processor", "--verify", "structure"]
    result = run("convert", tmp_path / "epoch_3.pt", tmp_path / "plain", *options)
    assert "state_dict_ema holds averaged weights" in result.stdout
    result = run("convert", tmp_path / "epoch_3.pt", tmp_path / "ema", *options, "--ema")
    assert "averaged weights, from state_dict_ema" in result.stdout
    plain, averaged = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "ema"))
    assert torch.equal(averaged["text_model.final_layer_norm.bias"], plain["text_model.final_layer_norm.bias"] + 1)


def unknown_model(source):
    return ["--model", "ViT-B-33"], "ViT-B-33"


def unknown_tag(source):
    return ["--model", "ViT-B-32", "--pretrained", "laion"], "  laion2b_s34b_b79k\n"


def missing_tensor(source):
    weights = load_file(source / "open_clip_model.safetensors")
    del weights["visual.conv1.weight"]
    save_file(weights, source / "open_clip_model.safetensors")
    return [], "visual.conv1.weight"


def damaged_weights(source):
    weights = source / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    return [], "open_clip_model.safetensors"


def damaged_config(source):
    (source / "open_clip_config.json").write_text("{")
    return [], "open_clip_config.json cannot be read as JSON"


def unknown_field(source):
    config = json.loads((source / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["wings"] = 2
    (source / "open_clip_config.json").write_text(json.dumps(config))
    return [], "wings"


def test_convert_takes_weights_that_are_here_for_those_of_a_tag(run, source, tmp_path):
    options = ["--model", "ViT-B-32", "--pretrained", "openai", "--no-processor"]
    assert "does not fit the architecture" in run("convert", source, tmp_path / "out", *options, exit_code=1).stderr


def test_convert_says_how_to_go_on_without_a_network(run, tmp_path):
    result = run("convert", "RN50", tmp_path / "out", "--pretrained", "openai", "--revision", "v1", exit_code=1)
    assert "\n  hf download timm/resnet50_clip.openai --revision v1 --local-dir FOLDER\n" in result.stderr
    assert "\n  open-clip-transformers convert FOLDER OUTPUT --model RN50 --pretrained openai\n" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "spoil",
    [unknown_model, unknown_tag, missing_tensor, damaged_weights, damaged_config, unknown_field],
    ids=lambda spoil: spoil.__name__,
)
def test_convert_fails_with_a_message_and_no_output(run, source, tmp_path, spoil):
    options, message = spoil(source)
    result = run("convert", source, tmp_path / "out", "--no-processor", *options, exit_code=1)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_convert_does_not_overwrite(run, source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    run("convert", source, tmp_path / "out", "--no-processor", exit_code=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious.txt"]


def test_convert_of_a_source_that_is_not_there(run, tmp_path):
    result = run("convert", tmp_path / "missing", tmp_path / "out", exit_code=1)
    assert str(tmp_path / "missing") in result.stderr
    assert not (tmp_path / "out").exists()


def test_convert_bundles_the_code_on_request(run, source, tmp_path):
    run("convert", source, tmp_path / "out", "--no-processor", "--bundle", "--verify", "structure")
    assert {"modeling_coca.py", "pipeline_image_to_text.py", "conversion.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert "CoCaModel" in (tmp_path / "out" / "config.json").read_text()


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


def test_convert_prints_what_to_type_next(run, tmp_path):
    for name, cfg, command in (
        ("coca", tiny_coca_cfg, "caption {} IMAGE"),
        ("clip", tiny_clip_cfg, "classify {} IMAGE --labels 'a cat, a dog'"),
    ):
        save_open_clip_folder(tmp_path / name, cfg(text_cfg={"vocab_size": 49408}))
        output = tmp_path / f"the {name}"
        result = run("convert", tmp_path / name, output, "--verify", "none")
        next_lines = result.stdout.splitlines()[-2:]
        assert next_lines[0] == f"  next         open-clip-transformers {command.format(shlex.quote(str(output)))}"
        assert next_lines[1].strip() == f"open-clip-transformers card {shlex.quote(str(output))} --model-id ORG/NAME"


def test_convert_says_which_folders_vllm_serves(run, tmp_path):
    save_open_clip_folder(tmp_path / "source", tiny_clip_cfg(text_cfg={"vocab_size": 49408}))
    convert = "convert", tmp_path / "source"
    result = run(*convert, tmp_path / "native", "--verify", "none", "--target", "native")
    assert result.stdout.splitlines()[-1] == f"  next         vllm serve {tmp_path / 'native'} --runner pooling"
    result = run(*convert, tmp_path / "ours", "--verify", "none")
    assert "not by vLLM, which does not know OpenClipModel: see --target native" in result.stdout


@pytest.mark.parametrize(
    "options", [["--tower", "vision"], ["--target", "native"], []], ids=["tower", "native", "plain"]
)
def test_convert_prints_how_to_load_a_model_without_a_processor(run, tmp_path, options):
    save_open_clip_folder(tmp_path / "source", tiny_clip_cfg())
    result = run("convert", tmp_path / "source", tmp_path / "out", "--no-processor", "--verify", "none", *options)
    line = result.stdout.splitlines()[-1]
    assert line.startswith("  next         python -c ")
    code = shlex.split(line)[-1]
    assert ("import open_clip_transformers;" in code) == ("native" not in options)
    exec(code, {})


def test_convert_speaks_of_options(run, source, tmp_path):
    weights = source / "open_clip_model.safetensors"
    (source / "open_clip_config.json").rename(tmp_path / "my config.json")
    cases = {
        (weights, "--model", "my config.json"): "give it with --config 'my config.json'.",
        (weights,): "Say which it is with --model, such as ViT-B-32 or coca_ViT-L-14, or with --config.",
        (
            "RN50",
        ): "give one of its tags as --pretrained, such as 'cc12m', or its weights file as the source and 'RN50' "
        "as --model.",
        (weights, "--config", tmp_path / "my config.json"): "convert with --no-processor.",
        (weights, "--model", "ViT-B-32", "--config", tmp_path / "my config.json"): "given twice, by --model ViT-B-32",
        (source, "--revision", "v1", "--model", "RN50"): "leave out --revision v1.",
        (weights, "--model", "RN50", "--ema"): "Leave out --ema.",
        (weights, "--config", "RN50"): "no file, but the name of an architecture: give it with --model RN50 instead",
    }
    for arguments, message in cases.items():
        result = run("convert", arguments[0], tmp_path / "out", *arguments[1:], exit_code=1)
        assert message in result.stderr, result.stderr
        assert not re.search("model_name|with_processor|pretrained=|config=|revision=|ema=", result.stderr)
