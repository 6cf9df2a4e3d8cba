"""The command line with a MaMMUT: all that works with a CoCa does."""

import json

import pytest
import torch
from PIL import Image
from tiny_families import save_tiny_family
from transformers import AutoModelForImageTextToText, AutoProcessor


@pytest.fixture(scope="module")
def mammut(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mammut"
    save_tiny_family("mammut", folder)
    return folder


def test_caption_prints_what_generate_gives(run, mammut, images):
    model, processor = AutoModelForImageTextToText.from_pretrained(mammut), AutoProcessor.from_pretrained(mammut)
    pixel_values = processor(images=[Image.open(image) for image in images], return_tensors="pt").pixel_values
    tokens = model.generate(pixel_values=pixel_values, num_beams=2)
    captions = [" ".join(caption.split()) for caption in processor.batch_decode(tokens, skip_special_tokens=True)]
    result = run("caption", mammut, *images, "--num-beams", 2)
    assert [line.split("\t") for line in result.stdout.splitlines()] == [
        [str(image), caption] for image, caption in zip(images, captions)
    ]


def test_classify_and_embed(run, mammut, images):
    row = json.loads(run("classify", mammut, images[0], "--labels", "a cat, a dog", "--json").stdout)
    assert {label["label"] for label in row["labels"]} <= {"a cat", "a dog"}
    assert len(run("classify", mammut, *images, "--labels", "a cat, a dog").stdout.splitlines()) == len(images)
    output = images[0].parent / "embeddings.safetensors"
    run("embed", mammut, *images, "--output", output)
    assert output.is_file()


def test_attention_draws_a_sheet(run, mammut, images, tmp_path):
    pytest.importorskip("matplotlib")
    run("attention", mammut, images[0], "--output", tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size[0] > 10


def test_card_and_bundle(run, mammut):
    run("card", mammut, "--model-id", "me/mammut")
    card = (mammut / "README.md").read_text()
    assert "pipeline_tag: image-to-text" in card and "- mammut" in card and "A MaMMUT" in card
    assert 'model="me/mammut"' in card and "num_beam_groups=3" in card
    assert "modeling_mammut.py" in run("bundle", mammut).stdout or (mammut / "modeling_mammut.py").is_file()


@pytest.mark.parametrize("task", ["image-to-text", "image-text-to-text"])
def test_pipelines_caption(mammut, task):
    from transformers import pipeline

    image = Image.effect_noise((30, 24), 80)
    (result,) = pipeline(task, model=str(mammut))(image)
    assert isinstance(result["generated_text"], str)


def test_zero_shot_pipeline_gives_open_clips_similarities(mammut):
    from transformers import AutoModelForZeroShotImageClassification, pipeline

    image = Image.effect_noise((24, 24), 80).convert("RGB")
    scores = {
        r["label"]: r["score"]
        for r in pipeline("zero-shot-image-classification", model=str(mammut))(
            image, candidate_labels=["a cat", "a photo of a dog"], hypothesis_template="{}"
        )
    }
    model = AutoModelForZeroShotImageClassification.from_pretrained(mammut)
    processor = AutoProcessor.from_pretrained(mammut)
    inputs = processor(images=image, text=["a cat", "a photo of a dog"], add_eos=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]).logits_per_image.softmax(
            -1
        )
    assert [scores["a cat"], scores["a photo of a dog"]] == pytest.approx(expected[0].tolist(), abs=1e-5)
