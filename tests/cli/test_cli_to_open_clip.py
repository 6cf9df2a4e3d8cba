"""`open-clip-transformers to-open-clip`: what it hands on, prints and leaves behind."""

import json

import open_clip
import torch
from safetensors.torch import load_file


def test_to_open_clip_writes_a_folder_that_open_clip_loads(run, coca, tmp_path):
    result = run("to-open-clip", coca, tmp_path / "out")
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'out'}")
    assert type(model).__name__ == "CoCa"
    for words in (str(coca), f"local-dir:{tmp_path / 'out'}", "CoCa", "verified     against open_clip"):
        assert words in result.stdout
    assert result.stderr == ""


def test_to_open_clip_hands_on_its_options(run, siglip, tmp_path):
    result = run("to-open-clip", siglip, tmp_path / "out", "--no-processor", "--dtype", "bfloat16")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "open_clip_config.json",
        "open_clip_model.safetensors",
    }
    assert json.loads((tmp_path / "out" / "open_clip_config.json").read_text())["preprocess_cfg"] == {}
    tensors = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert "verified     structure only" in result.stdout


def test_to_open_clip_fails_with_a_message_and_no_output(run, tmp_path):
    result = run("to-open-clip", tmp_path, tmp_path / "out", exit_code=1)
    assert result.stderr.startswith("Error: ") and "it has no config.json" in result.stderr
    assert not (tmp_path / "out").exists()
