"""Messages: errors for users and faults told apart, and what names and files may not do to a terminal."""

import json
import os
import re
import shutil

import pytest

from open_clip_transformers.cli import load, messages
from open_clip_transformers.convert_scripts.common import ConversionError


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def raising(error):
    def raises(*args, **kwargs):
        raise error

    return raises


@pytest.mark.parametrize(
    "error",
    [ValueError("not enough values to unpack"), TypeError("an int is needed"), KeyError("a"), RecursionError("deep")],
    ids=lambda error: type(error).__name__,
)
def test_fault_asks_for_a_report(run, clip, images, monkeypatch, error):
    monkeypatch.setattr(load, "pick_device", raising(error))
    result = run("classify", clip, images[0], "--labels", "a", exit_code=1)
    assert result.stderr.startswith(f"Error: {type(error).__name__}: {error}\n")
    assert "please report it" in result.stderr and "--traceback" in result.stderr


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(messages.UsageError("leave it out"), 2), (ConversionError("no such key"), 1), (OSError("disk is full"), 1)],
    ids=["usage", "conversion", "file"],
)
def test_error_for_users_is_shown_bare(run, clip, images, monkeypatch, error, exit_code):
    monkeypatch.setattr(load, "pick_device", raising(error))
    assert run("classify", clip, images[0], "--labels", "a", exit_code=exit_code).stderr == f"Error: {error}\n"


def test_names_cannot_write_lines_or_obey(run, clip, images, tmp_path):
    name = "a\nb\x1b[2J\x9bc\u202ed.png"
    image = images[0].rename(tmp_path / name)
    (tmp_path / "e\x1b\n.png").write_text("no image")
    result = run("classify", clip, image, tmp_path / "e\x1b\n.png", "--labels", "x\x1b[1m", exit_code=1)
    shown = tmp_path / r"a\nb\x1b[2J\x9bc\u202ed.png"
    assert result.stdout == f"{shown}\tx\\x1b[1m\t1\n"
    assert result.stderr.splitlines()[0].startswith(rf"{tmp_path}/e\x1b\n.png: ")
    assert len(result.stderr.splitlines()) == 2
    result = run("classify", clip, image, "--labels", "x", "--json")
    assert json.loads(result.stdout)["image"] == str(image)
    assert "\x9b" not in result.stdout and len(result.stdout.splitlines()) == 1


def test_message_of_a_conversion_holds_no_control_characters(run, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "model.pth").write_bytes(b"")
    config = {"embed_dim": 1, "vision_cfg": {"\x1b[2J\r": 1}, "text_cfg": {}}
    (tmp_path / "source" / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    result = run("convert", tmp_path / "source", tmp_path / "out", exit_code=1)
    assert not set("\x1b\r") & set(result.stderr)


def test_pipe_is_no_image(run, clip, images, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    result = run("classify", clip, images[0], tmp_path / "pipe.png", "--labels", "a", exit_code=1)
    assert result.stderr.startswith(f"{tmp_path / 'pipe.png'}: neither a file nor a folder")


# File of a converted folder -> what it is replaced by, by bytes or by a change of its JSON.
DAMAGED = {
    "weights that are a pointer": ("model.safetensors", POINTER, "is a Git LFS pointer.*git lfs pull"),
    "tokenizer that is a pointer": ("tokenizer.json", POINTER, "is a Git LFS pointer.*git lfs pull"),
    "weights that are cut": ("model.safetensors", lambda content: content[:5000], "cannot be read"),
    "weights without a header": ("model.safetensors", b"\xff" * 99, "cannot be read"),
    "nested config": ("config.json", b"[" * 100_000, "cannot be read"),
    "list as a config": ("config.json", b"[]", "expected a JSON object"),
    "text as a tower": (
        "config.json",
        {"vision_config": "ViT"},
        "config.json or its weights are damaged.*vision_config",
    ),
    "no width": ("config.json", {"projection_dim": 0}, "damaged.*projection_dim"),
    "list as a model type": ("config.json", {"model_type": ["open_clip"]}, "is a .'open_clip'. model"),
    "nested tokenizer": ("tokenizer.json", b"[" * 100_000, "no processor that can be loaded"),
    "other tokenizer": ("tokenizer.json", b'{"model": {}}', "no processor that can be loaded"),
    "length that is a list": ("tokenizer_config.json", {"model_max_length": [7]}, "model_max_length"),
    "text too long": ("tokenizer_config.json", {"model_max_length": 900}, "texts have 900 tokens"),
    "no deviation": ("processor_config.json", {"image_processor": {"image_std": [1, 1, 0]}}, "image_std"),
    "no factor": ("processor_config.json", {"image_processor": {"rescale_factor": {"a": 1}}}, "rescale_factor"),
    "other pixels": (
        "processor_config.json",
        {"image_processor": {"size": {"height": 7, "width": 7}}},
        r"images have \(7, 7\) pixels",
    ),
}


@pytest.mark.parametrize(("name", "change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_folder_is_named_with_its_fault(run, clip, images, tmp_path, name, change, message):

    shutil.copytree(clip, tmp_path / "damaged")
    path = tmp_path / "damaged" / name
    if isinstance(change, dict):
        content = json.loads(path.read_text())
        for key, value in change.items():
            content[key] = {**content[key], **value} if isinstance(value, dict) else value
        path.write_text(json.dumps(content))
    else:
        path.write_bytes(change(path.read_bytes()) if callable(change) else change)
    result = run("classify", tmp_path / "damaged", images[0], "--labels", "a", exit_code=None)
    assert result.exit_code in (1, 2)
    assert str(tmp_path / "damaged") in result.stderr
    assert re.search(message, result.stderr, re.DOTALL)
    assert "please report it" not in result.stderr
