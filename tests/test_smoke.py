"""The main job from end to end, in seconds: what `make test-versions` runs on each transformers.

Nothing here may make transformers say that something is deprecated, in a warning or in its log.
"""

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor, DynamicCache, pipeline

from examples.digits.digits_data import held_out_pictures
from open_clip_transformers import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.hub.bundle import bundle_folder


pytestmark = pytest.mark.floor
ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "examples" / "digits" / "open_clip_checkpoint"
NO_PACKAGE = ROOT / "tests" / "hub" / "use_without_package.py"
STRATEGIES = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "open_clip_groups": {"num_beams": 6, "num_beam_groups": 3},
    "diverse_groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "sampling": {"do_sample": True, "top_p": 0.9, "temperature": 2.0},
}


# What the image-text-to-text pipeline of some versions (5.16) says of its own call of `generate`.
OF_TRANSFORMERS_ALONE = "Passing `generation_config` together with generation-related arguments"


@pytest.fixture(autouse=True)
def nothing_deprecated():
    """Fails a test in which transformers, or a line of ours, warns of something that will go."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    log = logging.getLogger("transformers")
    logging.Logger.warning_once.cache_clear()
    log.addHandler(handler)
    with warnings.catch_warnings():
        for module in ("transformers", "open_clip_transformers"):
            for category in (FutureWarning, DeprecationWarning):
                warnings.filterwarnings("error", category=category, module=rf"{module}(\.|$)")
        yield
    log.removeHandler(handler)
    messages = [record.getMessage() for record in records]
    assert [text for text in messages if "deprecated" in text and not text.startswith(OF_TRANSFORMERS_ALONE)] == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke") / "digits"
    convert_open_clip_checkpoint(CHECKPOINT, folder)
    return folder


@pytest.fixture(scope="module")
def pictures():
    return held_out_pictures(12)


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture
def model(folder):
    return AutoModel.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def pixel_values(processor, pictures):
    return processor(images=[picture.image for picture in pictures], return_tensors="pt")["pixel_values"]


def generate(model, pixel_values, **kwargs):
    torch.manual_seed(0)
    return model.generate(pixel_values=pixel_values, **kwargs)


@torch.no_grad()
def test_greedy_captions_are_the_most_likely_tokens(model, pixel_values):
    ids = torch.full((len(pixel_values), 1), model.config.bos_token_id)
    ended = torch.zeros(len(ids), dtype=torch.bool)
    while not ended.all() and ids.shape[1] < model.generation_config.max_length:
        following = model(ids, pixel_values).logits[:, -1].argmax(-1).masked_fill(ended, model.config.pad_token_id)
        ids = torch.cat([ids, following[:, None]], dim=1)
        ended |= following == model.config.eos_token_id
    assert torch.equal(generate(model, pixel_values), ids)


def test_captions_are_right(model, processor, pictures, pixel_values):
    captions = processor.batch_decode(generate(model, pixel_values), skip_special_tokens=True)
    right = sum(caption == picture.caption for caption, picture in zip(captions, pictures, strict=True))
    assert right >= len(pictures) - 1


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_captions_are_the_same_with_and_without_a_cache(strategy, model, pixel_values):
    lengths = []
    model.text_model.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    captions = generate(model, pixel_values, **strategy)
    assert set(lengths) == {1}
    assert torch.equal(captions, generate(model, pixel_values, use_cache=False, **strategy))
    assert torch.equal(captions, generate(model, pixel_values, cache_implementation="static", **strategy))


def test_forward_continues_from_its_cache(model, pixel_values):
    ids = generate(model, pixel_values, max_length=5)  # no caption is that short
    with torch.no_grad():
        whole = model(ids, pixel_values, use_cache=True)
        cache = DynamicCache()
        model(ids[:, :3], pixel_values, past_key_values=cache)
        rest = model(ids[:, 3:], cache=cache, image_hidden_states=whole.image_hidden_states)
    torch.testing.assert_close(rest.logits, whole.logits[:, 3:], rtol=1e-4, atol=1e-4)


def test_cache_under_another_name_raises(model, pixel_values):
    with pytest.raises(ValueError, match="Got a cache as attention_memory"):
        model(torch.ones(12, 1, dtype=torch.long), pixel_values, attention_memory=DynamicCache())


def test_pipelines_caption_and_classify(folder, pictures):
    image, caption, _ = pictures[0]
    (result,) = pipeline("image-to-text", model=str(folder))(image)
    assert result["generated_text"] == caption
    (result,) = pipeline("image-text-to-text", model=str(folder))(image, text=caption.rpartition(" ")[0])
    assert result["generated_text"].startswith(caption.rpartition(" ")[0])
    captions = [picture.caption for picture in pictures]
    scores = pipeline("zero-shot-image-classification", model=str(folder))(
        image, candidate_labels=captions, hypothesis_template="{}"
    )
    assert scores[0]["label"] == caption


@torch.no_grad()
def test_zero_shot_model_finds_each_caption(folder, processor, pictures, pixel_values):
    model = AutoModelForZeroShotImageClassification.from_pretrained(folder, dtype=torch.float32)
    inputs = processor(text=[picture.caption for picture in pictures], return_tensors="pt")
    logits = model(input_ids=inputs["input_ids"], pixel_values=pixel_values).logits_per_image
    assert (logits.argmax(-1) == torch.arange(len(pictures))).float().mean() >= 0.9


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_training_step_lowers_the_loss(checkpointing, model, processor, pictures):
    inputs = processor(
        images=[picture.image for picture in pictures],
        text=[picture.caption.upper() for picture in pictures],
        return_labels=True,
        return_tensors="pt",
    )
    model.train()
    if checkpointing:
        # Named so from 5.24 on.
        name = "activation_checkpointing_enable"
        getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(2):
        loss = model(**inputs, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


def test_bundle_works_without_the_package(folder, tmp_path):
    copy = tmp_path / "bundle"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).symlink_to(path)
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        (copy / name).unlink()
        (copy / name).write_bytes((folder / name).read_bytes())
    bundle_folder(copy)
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    process = subprocess.run(
        [sys.executable, NO_PACKAGE, copy], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert process.returncode == 0, process.stderr
    (result,) = json.loads(process.stdout.splitlines()[-1]).values()
    assert "error" not in result, result.get("error")
    assert result["first"] == result["second"]
