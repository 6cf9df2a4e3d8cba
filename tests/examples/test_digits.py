"""The digits checkpoint: what is in its folder, that open_clip and this package load it, and how well it captions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline

from examples.digits.digits_data import (
    CANVAS,
    DIGIT_WORDS,
    compose_picture,
    held_out_pictures,
    load_scans,
    write_caption,
)
from open_clip_transformers import convert_open_clip_checkpoint


DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits"
CHECKPOINT = DIGITS / "open_clip_checkpoint"


@pytest.fixture(scope="module")
def coca_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "coca-digits"
    convert_open_clip_checkpoint(CHECKPOINT, folder, verify="structure")
    return str(folder)


@pytest.fixture(scope="module")
def pictures():
    return held_out_pictures(200)


def test_scans_of_the_splits_are_all_scans_once():
    train, held_out = load_scans("train"), load_scans("held_out")
    assert (len(train.labels), len(held_out.labels)) == (1437, 360)
    both = np.concatenate([train.pixels, held_out.pixels]).reshape(1797, -1)
    assert len(np.unique(both, axis=0)) == 1797
    assert set(held_out.labels) == set(range(10))


def test_scans_of_an_unknown_split_are_refused():
    with pytest.raises(ValueError, match="'validation'"):
        load_scans("validation")


@pytest.mark.parametrize(
    ("digits", "is_column", "caption"),
    [
        pytest.param((4,), False, "a single red four", id="one"),
        pytest.param((4, 2, 9), False, "red digits four two nine in a row", id="row"),
        pytest.param((4, 2), True, "red digits four above two", id="column"),
    ],
)
def test_caption_tells_digits_colour_and_layout(digits, is_column, caption):
    assert write_caption(digits, "red", is_column) == caption


def test_picture_follows_from_the_seed():
    scans = load_scans("held_out")
    first, again, other = (compose_picture(np.random.default_rng(seed), scans) for seed in (1, 1, 2))
    assert first.image.size == (CANVAS, CANVAS) and first.image.mode == "RGB"
    assert first.caption == again.caption and first.image.tobytes() == again.image.tobytes()
    assert first.image.tobytes() != other.image.tobytes()


def test_checkpoint_folder_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in CHECKPOINT.iterdir()}
    assert {"open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json"} <= set(files)
    assert sum(files.values()) <= 4 * 1024**2


def test_checkpoint_is_an_open_clip_model(pictures):
    open_clip = pytest.importorskip("open_clip")
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{CHECKPOINT}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{CHECKPOINT}")
    assert isinstance(model, open_clip.CoCa)

    model.eval()
    ids = tokenizer([picture.caption for picture in pictures[:50]])
    assert (ids[:, 0] == 1).all() and (ids == 2).sum(dim=1).eq(1).all() and model.pad_id == 0
    with torch.no_grad():
        logits = model(torch.stack([transform(picture.image) for picture in pictures[:50]]), ids)["logits"]
    labels = ids[:, 1:]
    right = ((logits.argmax(-1) == labels) | (labels == model.pad_id)).all(dim=1)
    assert right.float().mean() >= 0.9


def test_captions_of_held_out_pictures_are_right(coca_folder, pictures):
    captioner = pipeline("image-to-text", model=coca_folder)
    results = captioner([picture.image for picture in pictures], batch_size=50)
    right = [result[0]["generated_text"] == picture.caption for result, picture in zip(results, pictures)]
    assert np.mean(right) >= 0.95


def test_zero_shot_classification_finds_the_digit(coca_folder, pictures):
    classifier = pipeline("zero-shot-image-classification", model=coca_folder)
    singles = [picture for picture in pictures if len(picture.digits) == 1][:30]
    right = []
    for picture in singles:
        colour = picture.caption.split()[2]
        results = classifier(
            picture.image, candidate_labels=list(DIGIT_WORDS), hypothesis_template=f"a single {colour} {{}}"
        )
        right.append(results[0]["label"] == DIGIT_WORDS[picture.digits[0]])
    assert np.mean(right) >= 0.9
