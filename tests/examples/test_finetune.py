"""The example of fine-tuning: the digits model learns captions in other words, and open_clip measures the same."""

import importlib
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip_train import train


pytest.importorskip("datasets")
pytest.importorskip("sacrebleu")
pytest.importorskip("sklearn")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def finetune(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("finetune")


def test_held_out_captions_and_recall_rise(finetune, tmp_path):
    results = finetune.main(["-o", str(tmp_path / "out")])
    before, after = results["before"], results["after"]
    assert before["exact"] == 0
    assert after["exact"] > 0.3
    assert after["text_to_image_recall@1"] > before["text_to_image_recall@1"] + 0.1

    source = f"local-dir:{tmp_path / 'out' / 'open_clip'}"
    model, transform = open_clip.create_model_from_pretrained(source)
    dataset = finetune.digits_dataset("held_out", 128)
    with torch.inference_mode():
        images = model.encode_image(torch.stack([transform(image) for image in dataset["image"]]), normalize=True)
        texts = model.encode_text(open_clip.get_tokenizer(source)(list(dataset["text"])), normalize=True)
    theirs = train.get_clip_metrics(images, texts, 1.0)
    for way in ("image_to_text", "text_to_image"):
        assert after[f"{way}_recall@1"] == pytest.approx(theirs[f"{way}_R@1"])


@pytest.mark.slow
def test_two_processes_learn_as_one(tmp_path):
    command = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--multi_gpu", EXAMPLES / "finetune.py"]
    arguments = ["-o", tmp_path / "out", "--epochs", "2"]
    run = subprocess.run([sys.executable, *command, *arguments], capture_output=True, text=True, cwd=EXAMPLES.parent)
    assert run.returncode == 0, run.stderr
    assert "trained by 2 processes" in run.stdout and "after" in run.stdout
    assert (tmp_path / "out" / "open_clip" / "open_clip_config.json").is_file()
