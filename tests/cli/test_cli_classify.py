"""`open-clip-transformers classify` against the model called directly."""

import json

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModelForZeroShotImageClassification


LABELS = ["cat", "dog", "a traffic light"]


def logits_of(reference, folder, images, template="a photo of a {}."):
    model, processor = reference(AutoModelForZeroShotImageClassification, folder)
    inputs = processor.image_processor([Image.open(image) for image in images], return_tensors="pt")
    texts = processor.tokenizer([template.replace("{}", label) for label in LABELS], return_tensors="pt")
    with torch.no_grad():
        return model(**inputs, **texts).logits_per_image


def records(result):
    """{image: {label: score}}"""
    found = map(json.loads, result.stdout.splitlines())
    return {record["image"]: {entry["label"]: entry["score"] for entry in record["labels"]} for record in found}


@pytest.mark.parametrize("kind", ["clip", "coca", "siglip"])
def test_classify_gives_the_models_probabilities(run, converted, images, reference, kind):
    folder = converted(kind)
    logits = logits_of(reference, folder, images)
    expected = logits.sigmoid() if kind == "siglip" else logits.softmax(-1)
    result = run("classify", folder, *images, "--labels", ",".join(LABELS), "--top", 3, "--json", "--batch-size", 2)
    found = records(result)
    assert list(found) == [str(image) for image in images]
    scores = torch.tensor([[row[label] for label in LABELS] for row in found.values()])
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-4)
    assert all(list(row.values()) == sorted(row.values(), reverse=True) for row in found.values())


def test_classify_prints_the_best_label_of_each_image(run, clip, images, reference):
    best = logits_of(reference, clip, images).softmax(-1).max(-1)
    result = run("classify", clip, images[0].parent, "--labels", ",".join(LABELS))
    assert result.stdout.splitlines() == [
        f"{image}\t{LABELS[index]}\t{score:.4g}"
        for image, index, score in zip(images, best.indices.tolist(), best.values.tolist())
    ]


def test_classify_prints_as_many_labels_as_asked_for(run, clip, images):
    for top, lines in ((2, 2), (3, 3), (9, 3)):
        assert (
            len(run("classify", clip, images[0], "--labels", ",".join(LABELS), "--top", top).stdout.splitlines())
            == lines
        )


def test_classify_takes_labels_from_options_and_files(run, clip, images, tmp_path):
    (tmp_path / "labels.txt").write_text("dog\n\na traffic light\ncat\n")
    options = [
        "--labels",
        "cat, dog",
        "--labels",
        " cat,",
        "--labels-file",
        tmp_path / "labels.txt",
        "--top",
        9,
        "--json",
    ]
    assert records(run("classify", clip, images[0], *options)) == records(
        run("classify", clip, images[0], "--labels", ",".join(LABELS), "--top", 9, "--json")
    )


def test_classify_averages_the_embeddings_of_templates(run, clip, images, reference):
    templates = ["a {}", "{} in {}"]
    options = [option for template in templates for option in ("--template", template)]
    found = records(run("classify", clip, images[1], "--labels", ",".join(LABELS), "--top", 3, "--json", *options))
    model, processor = reference(AutoModelForZeroShotImageClassification, clip)
    with torch.no_grad():
        embeds = [
            F.normalize(
                model.get_text_features(
                    **processor.tokenizer([t.replace("{}", label) for label in LABELS], return_tensors="pt")
                ).pooler_output,
                dim=-1,
            )
            for t in templates
        ]
        inputs = processor.image_processor(Image.open(images[1]), return_tensors="pt")
        image_embeds = F.normalize(model.get_image_features(**inputs).pooler_output, dim=-1)
        expected = (model.logit_scale.exp() * image_embeds @ F.normalize(sum(embeds), dim=-1).T).softmax(-1)[0]
    scores = torch.tensor([found[str(images[1])][label] for label in LABELS])
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-4)


def test_classify_reports_unreadable_images_and_does_the_rest(run, clip, images, broken):
    result = run("classify", clip, broken[0], images[0], "--labels", "cat,dog", exit_code=1)
    assert result.stdout == run("classify", clip, images[0], "--labels", "cat,dog").stdout
    assert result.stderr.startswith(f"{broken[0]}: ")


def test_classify_says_when_labels_are_cut(run, clip, images):
    result = run("classify", clip, images[0], "--labels", f"cat,{'very ' * 20} long label")
    assert result.stderr == "1 of 2 texts were cut to the model's 11 tokens.\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "There are no labels to choose from"),
        (["--labels", " , "], "There are no labels to choose from"),
        (["--labels-file", "missing.txt"], "missing.txt cannot be read as text"),
        (["--labels", "a", "--template", "a photo"], "--template 'a photo' has no {}"),
        (["--labels", "a", "--top", 0], "top"),
    ],
    ids=["no_labels", "empty_labels", "no_file", "template", "top"],
)
def test_classify_refuses_what_cannot_work(run, clip, images, options, message):
    result = run("classify", clip, images[0], *options, exit_code=2)
    assert message in result.stderr
