"""Evaluation on small data sets against open_clip's own loops on the same model and images."""

import copy
from types import SimpleNamespace

import datasets
import numpy
import open_clip
import pytest
import tiny_configs
import torch
from open_clip_train import train, zero_shot
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoModelForZeroShotImageClassification, AutoProcessor

from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.training import evaluation


CLASSES = ["great_white_shark", "hen", "kite", "ostrich", "stingray", "tench"]
TEMPLATES = ["a photo of a {}.", "the {} in a video game.", "a {}"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluation")


def random_image(generator, size=(40, 31)) -> Image.Image:
    colours = generator.integers(0, 256, (3, 2, 3), dtype=numpy.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BILINEAR)


@pytest.fixture(scope="module")
def class_folders(root):
    generator = numpy.random.default_rng(3)
    for name in CLASSES:
        (root / "images" / name).mkdir(parents=True)
        for index in range(4):
            random_image(generator).save(root / "images" / name / f"{index}.png")
    return root / "images"


@pytest.fixture(scope="module", params=["clip", "siglip"])
def pair(request, root):
    """(our model, its processor, open_clip's model, its transform, its tokenizer)."""
    cfg = getattr(tiny_configs, f"tiny_{request.param}_cfg")(text_cfg={"vocab_size": 49408})
    source, folder = root / f"{request.param}_source", root / request.param
    tiny_configs.save_open_clip_folder(source, cfg)
    convert_open_clip_checkpoint(source, folder, verify="none")
    reference, transform = open_clip.create_model_from_pretrained(f"local-dir:{source}")
    model = AutoModelForZeroShotImageClassification.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    return model, processor, reference.eval(), transform, open_clip.get_tokenizer(f"local-dir:{source}")


def accuracy(output, target, topk):
    ranking = output.argsort(dim=1, descending=True)
    return [(ranking[:, :k] == target[:, None]).sum().item() for k in topk]


def test_zero_shot_is_open_clips(pair, class_folders, monkeypatch):
    model, processor, reference, transform, tokenizer = pair
    dataset = evaluation.load_dataset(str(class_folders))
    ours = evaluation.evaluate_zero_shot(model, processor, dataset, templates=TEMPLATES, batch_size=5, use_cache=False)

    names = [name.replace("_", " ") for name in CLASSES]
    classifier = open_clip.build_zero_shot_classifier(reference, tokenizer, names, TEMPLATES)
    found = evaluation.build_zero_shot_classifier(model, processor.tokenizer, names, TEMPLATES)
    torch.testing.assert_close(found, classifier.T, atol=1e-6, rtol=0)
    pixels = torch.stack([transform(Image.open(path)) for path in sorted(class_folders.rglob("*.png"))])
    labels = torch.arange(len(CLASSES)).repeat_interleave(4)
    # open_clip's own makes floats of arrays with one element, which numpy no longer does.
    monkeypatch.setattr(zero_shot, "accuracy", accuracy)
    top1, top5 = zero_shot.run(
        reference, classifier, [(pixels, labels)], SimpleNamespace(device="cpu", precision="fp32", batch_size=24)
    )
    assert (ours["top1"], ours["top5"]) == (top1, top5)
    assert (ours["images"], ours["classes"]) == (24, 6)
    assert 0 < ours["top5"] < 1


def test_a_model_that_is_training_is_measured_without_dropout(pair, class_folders):
    model, processor, *_ = pair
    dataset = evaluation.load_dataset(str(class_folders))
    few = {"templates": TEMPLATES, "use_cache": False}
    expected = evaluation.evaluate_zero_shot(model, processor, dataset, **few)
    vectors = evaluation.build_zero_shot_classifier(model, processor.tokenizer, CLASSES, TEMPLATES)
    config = copy.deepcopy(model.config)
    config.vision_config.attention_dropout = config.text_config.attention_dropout = 0.9
    twin = type(model)(config).train()
    twin.load_state_dict(model.state_dict())
    twin.vision_model.embeddings.eval()
    before = [module.training for module in twin.modules()]
    assert evaluation.evaluate_zero_shot(twin, processor, dataset, **few) == expected
    assert torch.equal(evaluation.build_zero_shot_classifier(twin, processor.tokenizer, CLASSES, TEMPLATES), vectors)
    assert [module.training for module in twin.modules()] == before


def test_class_vectors_are_cached(pair, class_folders, monkeypatch, tmp_path):
    model, processor, *_ = pair
    monkeypatch.setattr(evaluation, "cached_assets_path", lambda *args, **kwargs: tmp_path)
    first = evaluation.build_zero_shot_classifier(model, processor.tokenizer, CLASSES, TEMPLATES, use_cache=True)
    monkeypatch.setattr(evaluation, "embed_texts", None)
    again = evaluation.build_zero_shot_classifier(model, processor.tokenizer, CLASSES, TEMPLATES, use_cache=True)
    assert torch.equal(first, again)
    # Other templates, names or weights are other vectors.
    weight = next(model.text_model.parameters())
    for change in (lambda: None, lambda: weight.data.add_(1)):
        change()
        for names, templates in ((CLASSES[::-1], TEMPLATES), (CLASSES, TEMPLATES[:2])):
            with pytest.raises(TypeError):
                evaluation.build_zero_shot_classifier(model, processor.tokenizer, names, templates, use_cache=True)
    with pytest.raises(TypeError):
        evaluation.build_zero_shot_classifier(model, processor.tokenizer, CLASSES, TEMPLATES, use_cache=True)
    weight.data.sub_(1)


def test_imagenet_is_open_clips():
    assert evaluation.IMAGENET["class_names"] == list(open_clip.IMAGENET_CLASSNAMES)
    ours = evaluation.IMAGENET["templates"]
    for name, theirs in (
        ("openai", open_clip.OPENAI_IMAGENET_TEMPLATES),
        ("simple", open_clip.SIMPLE_IMAGENET_TEMPLATES),
    ):
        assert [template.replace("{}", "hen") for template in ours[name]] == [template("hen") for template in theirs]


def test_recall_of_pairs_is_open_clips():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 37, 8, generator=generator).unbind()
    texts = torch.nn.functional.normalize(texts + 0.7 * images, dim=-1)
    images = torch.nn.functional.normalize(images, dim=-1)
    ours, theirs = evaluation.retrieval_recall(images, texts), train.get_clip_metrics(images, texts, 1.0)
    for way in ("image_to_text", "text_to_image"):
        for rank in (1, 5, 10):
            assert ours[f"{way}_recall@{rank}"] == pytest.approx(theirs[f"{way}_R@{rank}"])


def test_recall_with_several_texts_an_image():
    # The texts of image 1 are near image 0 and image 1; the only one of image 0 is nearest to image 1.
    images = torch.eye(2)
    texts = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]])
    recall = evaluation.retrieval_recall(images, texts, torch.tensor([0, 1, 1]))
    assert recall == {
        "image_to_text_recall@1": 0.5,
        "text_to_image_recall@1": 1 / 3,
    }


def test_retrieval_and_captions_of_a_data_set(root):
    generator = numpy.random.default_rng(5)
    cfg = tiny_configs.tiny_coca_cfg(text_cfg={"vocab_size": 49408}, multimodal_cfg={"vocab_size": 49408})
    tiny_configs.save_open_clip_folder(root / "coca_source", cfg)
    convert_open_clip_checkpoint(root / "coca_source", root / "coca", verify="none")
    processor = AutoProcessor.from_pretrained(root / "coca")
    images = [random_image(generator) for _ in range(5)]
    texts = [["a hen", "two hens"], ["a kite"], ["an ostrich"], ["a tench"], ["a stingray", "three", "rays"]]
    dataset = datasets.Dataset.from_dict({"image": images, "text": texts}).cast_column("image", datasets.Image())

    model = AutoModelForZeroShotImageClassification.from_pretrained(root / "coca").eval()
    results = evaluation.evaluate_retrieval(model, processor, dataset, batch_size=2)
    assert (results["images"], results["texts"]) == (5, 8)
    assert results["text_to_image_recall@5"] == 1

    model = AutoModelForImageTextToText.from_pretrained(root / "coca").eval()
    results = evaluation.evaluate_captions(model, processor, dataset, batch_size=2, max_length=6)
    assert len(results["captions"]) == results["images"] == 5
    expected = model.generate(**processor.image_processor(images, return_tensors="pt"), max_length=6)
    assert results["captions"] == [text.strip() for text in processor.batch_decode(expected, skip_special_tokens=True)]


def test_caption_metrics_are_sacrebleus():
    captions, references = ["A red kite in the sky", "two hens"], [["a red kite in the sky"], ["hens", "two big hens"]]
    metrics = evaluation.caption_metrics(captions, references)
    assert metrics["exact"] == 0.5
    assert 0 < metrics["bleu"] < 100 and 0 < metrics["chrf"] < 100
    assert evaluation.caption_metrics(captions[:1], references[:1])["bleu"] == pytest.approx(100)


def test_bad_input_is_refused(pair, class_folders, tmp_path):
    model, processor, *_ = pair
    dataset = evaluation.load_dataset(str(class_folders))
    labels = dataset.remove_columns("image")
    few = {"class_names": ["hen", "kite"], "use_cache": False, "templates": TEMPLATES}
    for wrong, arguments, message in (
        (labels, {}, "of type Image: pass image_column"),
        (dataset, {"label_column": "breed"}, "label_column='breed' is none of the columns: image, label"),
        (dataset.cast_column("label", datasets.Value("string")), {}, "of type ClassLabel: pass label_column"),
        (
            dataset.cast_column("label", datasets.Value("string")),
            {"label_column": "label"},
            "The column 'label' holds '0': labels are integers",
        ),
        (dataset, few, "Labels of the column 'label' go from 0 to 5, but there are 2 class names"),
        (dataset, {"templates": ["a photo"]}, "no {} for the class"),
        (dataset.select([]), {"templates": TEMPLATES, "use_cache": False}, "no rows"),
        (dataset.cast_column("label", datasets.Value("int64")), {"label_column": "label"}, "without names"),
        (
            dataset.cast_column("label", datasets.ClassLabel(names=[f"n0000000{index}" for index in range(6)])),
            {},
            "ids of WordNet",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            evaluation.evaluate_zero_shot(model, processor, wrong, **arguments)
    with pytest.raises(ValueError, match="text_column='text' is none of the columns"):
        evaluation.evaluate_retrieval(model, processor, dataset)
    with pytest.raises(ValueError, match="does not caption: load a CoCa or MaMMUT"):
        evaluation.evaluate_captions(model, processor, dataset, text_column="label")
    for wrong in (dataset.to_iterable_dataset(), datasets.DatasetDict(train=dataset), [{"image": 1, "text": "a"}]):
        with pytest.raises(TypeError, match=f"datasets.Dataset, got {type(wrong).__name__}: choose a split"):
            evaluation.evaluate_retrieval(model, processor, wrong)

    for name in ("hen", "kite"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_text("no image")
    with pytest.raises(OSError, match="Row 0 of the column 'image' holds no readable image"):
        evaluation.evaluate_zero_shot(
            model, processor, evaluation.load_dataset(str(tmp_path)), templates=TEMPLATES, use_cache=False
        )
    with pytest.raises(ValueError, match="Expected at least one text for each of 3 images"):
        evaluation.retrieval_recall(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 1]))
