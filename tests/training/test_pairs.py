"""Collator and augmentation: the pairs of open_clip's training, from the same random numbers."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from tiny_folders import build_processor
from tiny_models import tiny_model

from open_clip_transformers import ContrastiveCollator, training_transform
from open_clip_transformers.processing.image_processing_open_clip import OpenClipImageProcessor


pytestmark = [pytest.mark.floor, pytest.mark.filterwarnings("ignore:Unused augmentation cfg items")]
MODES = ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"]


def image(mode: str = "RGB", size: tuple[int, int] = (61, 47), seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def seeded(function, *arguments):
    random.seed(3)
    torch.manual_seed(3)
    return function(*arguments)


AUGMENTATIONS = {
    "default": {},
    "scale": {"scale": (0.2, 0.7)},
    "jitter": {"color_jitter": (0.32, 0.32, 0.32, 0.08), "color_jitter_prob": 0.8},
    "gray": {"gray_scale_prob": 0.5},
    "both": {"color_jitter": (0.4, 0.3, 0.2, 0.1), "color_jitter_prob": 0.6, "gray_scale_prob": 0.4},
}


@pytest.mark.parametrize("size", [(24, 24), (20, 30)], ids=["square", "oblong"])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_training_transform_equals_open_clip_on_the_same_draws(name, size):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    processor = OpenClipImageProcessor(
        size={"height": size[0], "width": size[1]}, image_mean=list(mean), image_std=list(std)
    )
    reference = image_transform(size, is_train=True, mean=mean, std=std, aug_cfg=AUGMENTATIONS[name])
    ours = training_transform(processor, **AUGMENTATIONS[name])
    images = [image(mode, (50 + 3 * index, 40 + 5 * index), index) for index, mode in enumerate(MODES * 2)]
    expected = seeded(lambda: [reference(picture) for picture in images])
    found = seeded(lambda: [ours(picture) for picture in images])
    for pixels, right in zip(found, expected):
        assert pixels.dtype == torch.float32 and type(pixels) is torch.Tensor
        assert torch.equal(pixels, right)


def test_training_transform_goes_to_workers():
    transform = training_transform(OpenClipImageProcessor(), **AUGMENTATIONS["both"])
    for twin in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert torch.equal(seeded(twin, image()), seeded(transform, image()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"color_jitter": (0.1, 0.1, 0.1, 0.1)}, "color_jitter takes four strengths"),
        ({"color_jitter_prob": 0.5}, "color_jitter takes four strengths"),
        ({"color_jitter": (0.1, 0.1), "color_jitter_prob": 0.5}, "color_jitter takes four strengths"),
        ({"gray_scale_prob": 2}, "gray_scale_prob is a probability, got 2"),
        ({"scale": (0.9, 0.1)}, "scale is the smallest and the largest share"),
    ],
    ids=["no_probability", "no_strengths", "two_strengths", "no_probability_of_2", "scale"],
)
def test_training_transform_refuses_what_means_nothing(arguments, message):
    with pytest.raises(ValueError, match=message):
        training_transform(OpenClipImageProcessor(), **arguments)


EXAMPLES = [{"image": image(seed=0), "text": "a red square"}, {"image": image(seed=1), "text": "two blue circles"}]


@pytest.mark.parametrize("augmented", [False, True], ids=["plain", "augmented"])
@pytest.mark.parametrize("name", ["clip", "coca"])
def test_collator_makes_what_the_processor_makes_and_the_model_learns(name, augmented):
    model = tiny_model(name)
    processor = build_processor(model)
    model.resize_token_embeddings(len(processor.tokenizer))
    transform = training_transform(processor.image_processor) if augmented else None
    batch = seeded(ContrastiveCollator(processor, transform), EXAMPLES)
    texts = [example["text"] for example in EXAMPLES]
    encoded = processor.tokenizer(texts, return_tensors="pt")
    assert torch.equal(batch["input_ids"], encoded["input_ids"])
    if augmented:
        expected = seeded(lambda: torch.stack([transform(example["image"]) for example in EXAMPLES]))
    else:
        images = [example["image"] for example in EXAMPLES]
        expected = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"], expected)
    assert ("labels" in batch) == (name == "coca") and "return_loss" not in batch
    if name == "coca":
        assert torch.equal(batch["labels"], batch["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100))
    assert model(**batch, return_loss=True).loss.isfinite()


def test_collator_asks_for_the_models_own_loss_where_told():
    processor = build_processor(tiny_model("clip"))
    assert ContrastiveCollator(processor, return_loss=True)(EXAMPLES)["return_loss"] is True


def test_collator_of_a_coca_leaves_labels_out_where_told():
    processor = build_processor(tiny_model("coca"))
    batch = ContrastiveCollator(processor, return_labels=False)(EXAMPLES)
    assert "labels" not in batch
    assert torch.equal(batch["input_ids"], ContrastiveCollator(processor)(EXAMPLES)["input_ids"])


def test_collator_names_what_a_data_set_lacks():
    processor = build_processor(tiny_model("clip"))
    with pytest.raises(
        ValueError, match=r"has the columns 'image', 'text', and the collator reads 'jpg'.*image_column"
    ):
        ContrastiveCollator(processor, image_column="jpg")(EXAMPLES)
    with pytest.raises(ValueError, match="the collator reads 'caption': name the right one by text_column"):
        ContrastiveCollator(processor, text_column="caption")(EXAMPLES)
    with pytest.raises(TypeError, match="Each image has one text, a string; column 'text' has"):
        ContrastiveCollator(processor)([{"image": image(), "text": ["one", "two"]}])
    with pytest.raises(ValueError, match="column 'image' has 2 for 1 texts"):
        ContrastiveCollator(processor)([{"image": [image(), image()], "text": "one"}])
    with pytest.raises(ValueError, match="return_labels=True needs the processor of a CoCa, got OpenClipProcessor"):
        ContrastiveCollator(processor, return_labels=True)
