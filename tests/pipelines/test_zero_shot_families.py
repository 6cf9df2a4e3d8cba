"""The zero-shot pipeline on converted models of every family, against open_clip's own classification."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from tiny_configs import HF_ENCODERS, save_open_clip_folder, tiny_clip_cfg, tiny_hf_text_cfg, tiny_siglip_cfg
from tiny_tokenizers import save_tiny_tokenizer
from transformers import AutoProcessor, pipeline

from open_clip_transformers import OpenClipModel, OpenClipSiglipModel, convert_open_clip_checkpoint


pytestmark = pytest.mark.floor

# Short, with everything that cleaning changes, of just more than 64 tokens, and longer than any context.
LABELS = ["a cat", "Two DOGS, on a_sofa &amp; <b>more</b>!", "", "été \U0001f600", "dog " * 62, "cat dog " * 90]
TEMPLATE = "This is a photo of {}."

CLIP_TEXT = {"vocab_size": 49408}
OTHER_TEXT = {"vocab_size": 700, "hf_tokenizer_name": "org/name"}
SIGLIP_TEXT = {**OTHER_TEXT, "tokenizer_kwargs": {"clean": "canonicalize"}}


def encoder(model_type: str, folder: Path) -> str:
    """A folder with the configuration of a tiny encoder for the vocabularies and the lengths of this file."""
    folder.mkdir()
    config = {"model_type": model_type, **HF_ENCODERS[model_type], "vocab_size": 700}
    config |= {"pad_token_id": 1, "max_position_embeddings": 96} if model_type != "mt5" else {"pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def hf_text_cfg(model_type: str, **changes):
    def make(folder: Path) -> dict:
        text_cfg = {**OTHER_TEXT, "hf_model_name": encoder(model_type, folder / "encoder"), "context_length": 77}
        return tiny_hf_text_cfg(model_type, text_cfg=text_cfg, **changes)

    return make


# As open_clip's models: tokenizer (CLIP's without a name), and configuration or a function that makes it.
FAMILIES = {
    "CLIP": (None, tiny_clip_cfg(text_cfg={**CLIP_TEXT, "context_length": 77})),
    "MobileCLIP": (None, tiny_clip_cfg(text_cfg={**CLIP_TEXT, "context_length": 77, "no_causal_mask": True})),
    "CLIP with a bias": (
        None,
        tiny_clip_cfg(init_logit_bias=-10.0, text_cfg={**CLIP_TEXT, "context_length": 77, "no_causal_mask": True}),
    ),
    "SigLIP": ("siglip", tiny_siglip_cfg(text_cfg={**SIGLIP_TEXT, "context_length": 64})),
    "SigLIP, short": ("siglip", tiny_siglip_cfg(text_cfg={**SIGLIP_TEXT, "context_length": 16})),
    "SigLIP, long": ("siglip", tiny_siglip_cfg(text_cfg={**SIGLIP_TEXT, "context_length": 80})),
    "SigLIP 2": ("siglip2", tiny_siglip_cfg(text_cfg={**SIGLIP_TEXT, "context_length": 64})),
    "CLIPA": (
        "bert",
        tiny_clip_cfg(
            text_cfg={
                **OTHER_TEXT,
                "context_length": 32,
                "tokenizer_kwargs": {"strip_sep_token": True},
                "pool_type": "last",
                "no_causal_mask": True,
            }
        ),
    ),
    "CLIPS": (
        "clips",
        tiny_clip_cfg(
            text_cfg={
                **OTHER_TEXT,
                "context_length": 80,
                "tokenizer_mode": "clips",
                "pool_type": "last",
                "no_causal_mask": True,
            }
        ),
    ),
    "MetaCLIP 2": (
        "xlm_roberta",
        tiny_clip_cfg(
            custom_text=True, text_cfg={**OTHER_TEXT, "context_length": 77, "pool_type": "eos", "eos_id": 2}
        ),
    ),
    "MetaCLIP 2, mT5": (
        "mt5",
        tiny_clip_cfg(
            custom_text=True, text_cfg={**SIGLIP_TEXT, "context_length": 77, "pool_type": "eos", "eos_id": 1}
        ),
    ),
    "RoBERTa": ("roberta", hf_text_cfg("roberta")),
    "mT5": ("mt5", hf_text_cfg("mt5")),
    "NLLB": ("nllb", hf_text_cfg("m2m_100")),
    "NLLB with a bias": ("nllb", hf_text_cfg("m2m_100", init_logit_bias=-10.0)),
}


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def family(request, tmp_path_factory):
    """open_clip's folder, ours, and whether its scores are those of a sigmoid."""
    tokenizer, model_cfg = request.param
    folder = tmp_path_factory.mktemp("family")
    model_cfg = model_cfg(folder) if callable(model_cfg) else model_cfg
    save_open_clip_folder(folder / "open_clip", model_cfg)
    if tokenizer is not None:
        save_tiny_tokenizer(tokenizer, folder / "open_clip")
    convert_open_clip_checkpoint(folder / "open_clip", folder / "ours", verify="structure")
    return folder / "open_clip", folder / "ours", "init_logit_bias" in model_cfg


def open_clip_scores(folder: Path, images, is_siglip: bool) -> torch.Tensor:
    """(images, labels): what open_clip's model, transform and tokenizer say."""
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}", weights_only=True)
    pixels = torch.stack([preprocess(image) for image in images])
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")([TEMPLATE.format(label) for label in LABELS])
    with torch.no_grad():
        logits, _ = model.eval().get_logits(pixels, ids)
    return logits.sigmoid() if is_siglip else logits.softmax(-1)


def test_zero_shot_scores_equal_open_clip(family, images):
    folder, ours, is_siglip = family
    expected = open_clip_scores(folder, images, is_siglip)
    assert expected.std(0).min() > 1e-4  # images matter
    assert expected.std(1).min() > 1e-4  # so do labels
    pipe = pipeline("zero-shot-image-classification", model=str(ours))
    for batch_size in (1, 3):
        results = pipe(images, candidate_labels=LABELS, hypothesis_template=TEMPLATE, batch_size=batch_size)
        scores = [{result["label"]: result["score"] for result in row} for row in results]
        scores = torch.tensor([[row[label] for label in LABELS] for row in scores])
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)


def test_models_with_a_bias_are_siglips(family):
    _, ours, is_siglip = family
    config = json.loads((ours / "config.json").read_text())
    model_class = OpenClipSiglipModel if is_siglip else OpenClipModel
    assert config["architectures"] == [model_class.__name__]
    assert ("siglip" in config["model_type"]) == is_siglip


def test_processor_gives_the_ids_of_open_clip(family, images):
    folder, ours, _ = family
    processor = AutoProcessor.from_pretrained(ours)
    expected = open_clip.get_tokenizer(f"local-dir:{folder}")(LABELS)
    for texts in (LABELS, [LABELS[:2], LABELS[2:]]):
        inputs = processor(images=images, text=texts, return_tensors="pt")
        assert torch.equal(inputs.input_ids, expected)
        assert inputs.pixel_values.shape[0] == len(images)
    assert processor(text=LABELS).input_ids == expected.tolist()
    assert processor.batch_decode(expected[:1], skip_special_tokens=True)[0].lower() == "a cat"


def test_shorter_padding_leaves_the_features_where_it_is_right(family):
    """`padding=True` is shorter where padding does not show in the features, and full length elsewhere."""
    _, ours, is_siglip = family
    processor = AutoProcessor.from_pretrained(ours)
    model = (OpenClipSiglipModel if is_siglip else OpenClipModel).from_pretrained(ours)
    full = processor(text=LABELS[:2], return_tensors="pt")
    short = processor(text=LABELS[:2], padding=True, return_tensors="pt")
    is_free = not is_siglip and model.text_model.ignores_padding
    assert (short.input_ids.shape[1] < full.input_ids.shape[1]) == is_free
    assert torch.equal(processor(text=LABELS[:2], padding="longest", return_tensors="pt").input_ids, short.input_ids)
    with torch.no_grad():
        features = [model.get_text_features(**inputs).pooler_output for inputs in (full, short)]
    torch.testing.assert_close(*features, rtol=1e-4, atol=1e-5)
