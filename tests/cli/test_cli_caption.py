"""`open-clip-transformers caption` against `generate` called directly."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image
from subprocess_output import own_output
from transformers import AutoModelForImageTextToText

from open_clip_transformers.datasets import images as images_module


def captions_of(reference, folder, images, **kwargs):
    model, processor = reference(AutoModelForImageTextToText, folder)
    pixel_values = processor.image_processor([Image.open(image) for image in images], return_tensors="pt").pixel_values
    tokens = model.generate(pixel_values=pixel_values, **kwargs)
    return [" ".join(caption.split()) for caption in processor.batch_decode(tokens, skip_special_tokens=True)]


def columns(result):
    return [line.split("\t") for line in result.stdout.splitlines()]


@pytest.mark.floor
@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ([], {}),
        (["--num-beams", 4], {"num_beams": 4}),
        (
            ["--num-beams", 6, "--num-beam-groups", 3, "--diversity-penalty", 0.5],
            {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.5},
        ),
        (["--max-new-tokens", 3], {"max_new_tokens": 3}),
        (["--top-k", 1], {}),
    ],
    ids=["greedy", "beams", "groups", "short", "one_choice"],
)
def test_caption_prints_what_generate_gives(run, coca, images, reference, options, settings):
    result = run("caption", coca, *images, *options)
    expected = captions_of(reference, coca, images, **settings)
    assert columns(result) == [[str(image), caption] for image, caption in zip(images, expected)]
    assert result.stderr == ""


def test_caption_of_batches_is_the_same(run, coca, images):
    assert run("caption", coca, *images, "--batch-size", 2).stdout == run("caption", coca, images[0].parent).stdout


@pytest.mark.parametrize("workers", [0, 2])
def test_caption_is_the_same_whoever_reads_the_images(run, coca, images, broken, monkeypatch, workers):
    names = [images[0], broken[0], *images[1:]]
    expected = run("caption", coca, *names, exit_code=1)
    monkeypatch.setattr(images_module, "FILES_WORTH_A_PROCESS", 1)
    result = run("caption", coca, *names, "--workers", workers, "--batch-size", 2, exit_code=1)
    assert (result.stdout, result.stderr) == (expected.stdout, expected.stderr)


@pytest.mark.slow
def test_caption_ends_quietly_on_ctrl_c(coca, images):
    command = [sys.executable, "-m", "open_clip_transformers", "caption", str(coca), *map(str, images), "--json"]
    command += [str(images[0])] * 500 + ["--workers", "2", "--batch-size", "1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert json.loads(process.stdout.readline())["image"] == str(images[0])
    os.killpg(process.pid, signal.SIGINT)
    assert own_output(process.communicate(timeout=60)[1]) == ""
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_caption_in_json(run, coca, images):
    lines = run("caption", coca, *images, "--json").stdout.splitlines()
    rows = columns(run("caption", coca, *images))
    assert [(r["image"], " ".join(r["caption"].split())) for r in map(json.loads, lines)] == [tuple(r) for r in rows]


def test_caption_continues_a_prompt(run, coca, images, reference):
    result = run("caption", coca, *images[:2], "--prompt", "a photo of")
    _, processor = reference(AutoModelForImageTextToText, coca)
    start = [processor.tokenizer.bos_token_id, *processor.tokenizer("a photo of", padding=False).input_ids[1:-1]]
    prompts = torch.tensor([start, start])
    assert columns(result) == [
        [str(image), caption]
        for image, caption in zip(
            images, captions_of(reference, coca, images[:2], input_ids=prompts, max_new_tokens=6)
        )
    ]
    assert all(caption.startswith("a photo of") for _, caption in columns(result))


def test_caption_samples_the_same_with_the_same_seed(run, coca, images):
    def sampled(seed):
        return run("caption", coca, *images, "--top-p", 0.99, "--temperature", 5, "--seed", seed).stdout

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)


def test_caption_reads_urls(run, coca, images, server):
    url = f"{server}/images/a.png"
    assert columns(run("caption", coca, url))[0] == [url, columns(run("caption", coca, images[0]))[0][1]]


def test_caption_reports_unreadable_images_and_does_the_rest(run, coca, images, broken, server):
    missing, url = images[0].with_name("missing.png"), f"{server}/missing.png"
    result = run("caption", coca, images[0], broken[0], url, images[1], broken[1], missing, images[2], exit_code=1)
    assert [name for name, _ in columns(result)] == [str(image) for image in images[:3]]
    assert result.stdout == run("caption", coca, *images[:3]).stdout
    *reports, summary = result.stderr.splitlines()
    assert len(reports) == 4
    for name in (*broken, missing, url):
        assert sum(report.startswith(f"{name}: ") for report in reports) == 1
    assert summary == "4 inputs were left out, see above."


def test_caption_when_no_image_can_be_read(run, coca, broken):
    result = run("caption", coca, *broken, exit_code=1)
    assert result.stdout == ""
    assert "2 inputs were left out" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-beams", 5, "--num-beam-groups", 3], "multiple of --num-beam-groups, got 5 and 3"),
        (["--num-beam-groups", 2], "multiple of --num-beam-groups, got 1 and 2"),
        (["--num-beams", 4, "--num-beam-groups", 2, "--top-p", 0.5], "leave out --num-beam-groups or --top-p"),
        (["--diversity-penalty", 0.5], "give --num-beam-groups too"),
        (["--temperature", 0], "--temperature must be above 0"),
        (["--max-new-tokens", 10], "the model has 10 positions.*Give at most 9"),
        (["--prompt", "one two three", "--max-new-tokens", 7], "take 4.*Give at most 6"),
        (["--prompt", "a b c d e f g h i j k"], "--prompt cannot be continued.*12 tokens"),
        (["--dtype", "float8"], "float8"),
        (["--device", "cuda:99"], "--device cuda:99 cannot be used here"),
        (["--device", "gpu"], "--device gpu cannot be used here"),
        (["--batch-size", 0], "batch-size"),
        (["--workers", -1], "workers"),
        (["--top-p", 1.5], "top-p"),
    ],
    ids=lambda value: value.split(".")[0].replace(" ", "_") if isinstance(value, str) else "",
)
def test_caption_refuses_what_cannot_work(run, coca, images, options, message):
    result = run("caption", coca, images[0], *options, exit_code=2)
    assert result.stdout == ""
    assert re.search(message, result.stderr), result.stderr


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_caption_names_the_kind_of_a_model_that_cannot_caption(run, converted, images, kind):
    result = run("caption", converted(kind), images[0], exit_code=2)
    assert {"clip": "is a CLIP (open_clip)", "siglip": "is a SigLIP (open_clip_siglip)"}[kind] in result.stderr
    assert "`caption` needs a CoCa" in result.stderr
    assert "`classify` and `embed` work" in result.stderr
