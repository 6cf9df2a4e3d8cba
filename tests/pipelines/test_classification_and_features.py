"""transformers' zero-shot, feature and classification pipelines on saved folders, against the models themselves."""

import pytest
import torch
from tiny_folders import randomize
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    ImageFeatureExtractionPipeline,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    pipeline,
)

from open_clip_transformers import OpenClipForImageClassification


pytestmark = pytest.mark.floor

LABELS = ["a cat", "two dogs on a sofa", "nothing"]


def close(results, expected) -> bool:
    """The same labels in the same order, and the same scores up to rounding."""
    pairs = [
        (got, want)
        for row, expected_row in zip(results, expected, strict=True)
        for got, want in zip(row, expected_row, strict=True)
    ]
    assert [got["label"] for got, _ in pairs] == [want["label"] for _, want in pairs]
    scores = [torch.tensor([pair[side]["score"] for pair in pairs]) for side in (0, 1)]
    return torch.allclose(*scores, rtol=1e-4, atol=1e-6)


def ranked(probabilities: torch.Tensor, labels: list[str]) -> list[dict]:
    results = [{"score": score, "label": label} for score, label in zip(probabilities.tolist(), labels)]
    return sorted(results, key=lambda result: -result["score"])


@pytest.fixture(scope="module", params=["clip", "siglip", "coca"])
def zero_shot(request, images):
    """A zero-shot pipeline, and what the model says about the images."""
    folder = request.getfixturevalue(f"{request.param}_folder")
    model = AutoModelForZeroShotImageClassification.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    texts = [f"This is a photo of {label}." for label in LABELS]
    kwargs = {"add_eos": True} if request.param == "coca" else {}
    with torch.no_grad():
        logits = model(**processor(images=images, text=texts, return_tensors="pt", **kwargs)).logits_per_image
    probabilities = logits.sigmoid() if request.param == "siglip" else logits.softmax(-1)
    expected = [ranked(row, LABELS) for row in probabilities]
    return pipeline("zero-shot-image-classification", model=str(folder)), expected


def test_zero_shot_scores_are_the_models(zero_shot, images):
    pipe, expected = zero_shot
    assert len({row[0]["score"] for row in expected}) == len(images)
    assert close([pipe(image, candidate_labels=LABELS) for image in images], expected)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_zero_shot_takes_lists_and_generators(zero_shot, images, batch_size):
    pipe, expected = zero_shot
    assert close(pipe(images, candidate_labels=LABELS, batch_size=batch_size), expected)
    stream = (image for image in images)
    assert close(list(pipe(stream, candidate_labels=LABELS, batch_size=batch_size)), expected)


def test_zero_shot_takes_files_and_urls(zero_shot, image_files, image_urls):
    pipe, expected = zero_shot
    sources = [str(image_files[0]), image_urls[1], str(image_files[2]), image_urls[3]]
    assert close(pipe(sources, candidate_labels=LABELS), expected)
    assert close([pipe(image_urls[0], candidate_labels=LABELS)], expected[:1])


def test_zero_shot_takes_own_templates_and_one_label(zero_shot, images):
    pipe, _ = zero_shot
    texts = [f"This is a photo of {label}." for label in LABELS]
    own = pipe(images[0], candidate_labels=texts, hypothesis_template="{}")
    assert [result["label"] for result in own] == [
        f"This is a photo of {result['label']}." for result in pipe(images[0], candidate_labels=LABELS)
    ]
    assert len(pipe(images[0], candidate_labels=["a cat"])) == 1


@pytest.fixture(scope="module")
def tower_folder(clip_folder, tmp_path_factory):
    """The vision tower alone, with an image processor."""
    folder = tmp_path_factory.mktemp("tower")
    AutoModel.from_pretrained(clip_folder).vision_model.save_pretrained(folder)
    AutoImageProcessor.from_pretrained(clip_folder).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("pool", [False, True], ids=["tokens", "pooled"])
def test_image_feature_extraction_gives_the_towers_outputs(tower_folder, images, image_urls, pool, batch_size):
    model, image_processor = AutoModel.from_pretrained(tower_folder), AutoImageProcessor.from_pretrained(tower_folder)
    with torch.no_grad():
        outputs = model(**image_processor(images, return_tensors="pt"))
    expected = outputs.pooler_output if pool else outputs.last_hidden_state
    pipe = pipeline("image-feature-extraction", model=str(tower_folder))
    for inputs in (images, image_urls, (image for image in images)):
        results = pipe(inputs, pool=pool, batch_size=batch_size)
        torch.testing.assert_close(torch.tensor(list(results))[:, 0], expected, rtol=1e-4, atol=1e-5)
    single = torch.tensor(pipe(image_urls[1], pool=pool))
    torch.testing.assert_close(single, expected[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip", "coca"])
def test_image_feature_extraction_on_two_towers_is_that_of_the_image_tower(request, images, image_files, kind):
    folder = request.getfixturevalue(f"{kind}_folder")
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    with torch.no_grad():
        expected = model.get_image_features(processor(images=images, return_tensors="pt").pixel_values)
    pipe = pipeline("image-feature-extraction", model=str(folder))
    for pool, rows in ((True, expected.pooler_output), (False, expected.last_hidden_state)):
        results = torch.tensor(pipe([str(path) for path in image_files], pool=pool, batch_size=3))
        torch.testing.assert_close(results[:, 0], rows, rtol=1e-4, atol=1e-5)


def test_image_feature_extraction_leaves_other_models_to_transformers(images):
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
    )
    image_processor = ViTImageProcessor(size={"height": 16, "width": 16})
    pipe = pipeline("image-feature-extraction", model=ViTModel(config), image_processor=image_processor)
    assert type(pipe) is ImageFeatureExtractionPipeline
    assert torch.tensor(pipe(images[0])).shape == (1, 5, 8)


@pytest.fixture(scope="module", params=["clip", "siglip", "coca"])
def classifier_folder(request, tmp_path_factory):
    """A classifier made from a folder of each kind."""
    source, folder = request.getfixturevalue(f"{request.param}_folder"), tmp_path_factory.mktemp("classifier")
    labels = dict(enumerate(LABELS))
    model = AutoModelForImageClassification.from_pretrained(
        source, id2label=labels, label2id={label: index for index, label in labels.items()}
    )
    assert isinstance(model, OpenClipForImageClassification)
    randomize(model.classifier)
    model.save_pretrained(folder)
    AutoImageProcessor.from_pretrained(source).save_pretrained(folder)
    return folder


def test_image_classification_scores_are_the_models(classifier_folder, images, image_files, image_urls):
    model = AutoModelForImageClassification.from_pretrained(classifier_folder)
    image_processor = AutoImageProcessor.from_pretrained(classifier_folder)
    with torch.no_grad():
        logits = model(**image_processor(images, return_tensors="pt")).logits
    expected = [ranked(row, LABELS) for row in logits.softmax(-1)]
    pipe = pipeline("image-classification", model=str(classifier_folder))
    assert type(pipe.model) is type(model)
    assert close([pipe(image) for image in images], expected)
    for inputs in (images, [str(path) for path in image_files], image_urls, (image for image in images)):
        assert close(list(pipe(inputs, batch_size=3)), expected)
    assert close([pipe(images[0], top_k=2)], [expected[0][:2]])
