"""Hugging Face text towers, alone, in CLIP and in CoCa, against open_clip's (`HFTextEncoder` in `hf_model.py`)."""

import copy

import pytest
import torch
from model_pairs import (
    BOUND,
    assert_same_gradients,
    converted,
    model_pair,
    random_images,
    relative_difference,
)
from tiny_configs import VOCAB_SIZE, open_clip_model, tiny_hf_coca_cfg, tiny_hf_text_cfg


CONTEXT_LENGTH = 11
# open_clip has no T5, which differs from mT5 in its name and its choices of sizes.
MODEL_TYPES = ["roberta", "xlm-roberta", "bert", "mt5", "m2m_100"]
every_encoder = pytest.mark.parametrize("model_type", MODEL_TYPES)


def texts(pad: int, lengths=(3, 6, CONTEXT_LENGTH, CONTEXT_LENGTH)) -> torch.Tensor:
    """Texts that end at different places, and the padding id inside one of them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, VOCAB_SIZE, (len(lengths), CONTEXT_LENGTH), generator=generator)
    for row, length in enumerate(lengths):
        ids[row, length:] = pad
    ids[-1, 4] = pad
    return ids


def assert_same_outputs(model_cfg: dict):
    reference, model = model_pair(model_cfg)
    reference.text.output_tokens = True
    ids = texts(model.config.text_config.pad_token_id)
    with torch.no_grad():
        pooled, tokens = reference.text(ids)
        outputs = model.text_model(ids)
    assert relative_difference(outputs.pooler_output, pooled) < BOUND
    assert relative_difference(outputs.last_hidden_state, tokens) < BOUND


@every_encoder
@pytest.mark.parametrize("pooler", ["mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"])
@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_hf_text_model_equals_open_clip(model_type, pooler, projection):
    text_cfg = {"hf_pooler_type": pooler, "hf_proj_type": projection}
    assert_same_outputs(tiny_hf_text_cfg(model_type, text_cfg=text_cfg))


@every_encoder
def test_hf_text_model_equals_open_clip_without_a_projection(model_type):
    assert_same_outputs(tiny_hf_text_cfg(model_type, embed_dim=36, text_cfg={"hf_proj_type": None}))


@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name != "bert"])
def test_hf_text_model_equals_open_clip_with_the_default_pooler(model_type):
    assert_same_outputs(tiny_hf_text_cfg(model_type, text_cfg={"hf_pooler_type": None}))


def test_hf_text_model_equals_open_clip_with_the_default_pooler_of_bert():
    # open_clip: `uses_transformer_pooler` in `hf_model.py` is false then, although the default is the `cls_pooler`.
    reference, model = model_pair(tiny_hf_text_cfg("bert", text_cfg={"hf_pooler_type": None}))
    assert type(reference.text.pooler).__name__ == "ClsPooler" and reference.text.transformer.pooler is None
    reference.text.output_tokens = True
    with torch.no_grad():
        pooled, tokens = reference.text(texts(0))
        outputs = model.text_model(texts(0))
    assert relative_difference(outputs.pooler_output, pooled) < BOUND
    # Ours keeps the first token.
    assert relative_difference(outputs.last_hidden_state[:, 1:], tokens) < BOUND


def test_hf_text_model_has_the_max_pooler_that_open_clip_means(monkeypatch):
    # open_clip: `MaxPooler` in `hf_model.py` hands `masked_fill` the attention mask, integers that are 1 at tokens.
    from open_clip.hf_model import MaxPooler

    model_cfg = tiny_hf_text_cfg("roberta", text_cfg={"hf_pooler_type": "max_pooler"})
    reference, model = model_pair(model_cfg)
    with pytest.raises(RuntimeError, match="boolean masks"):
        reference.text(texts(1))
    forward = MaxPooler.forward
    monkeypatch.setattr(MaxPooler, "forward", lambda pooler, outputs, mask: forward(pooler, outputs, mask == 0))
    with torch.no_grad():
        assert relative_difference(model.text_model(texts(1)).pooler_output, reference.text(texts(1))) < BOUND


def test_t5_is_taken_like_mt5(monkeypatch):
    from open_clip import hf_configs

    monkeypatch.setitem(hf_configs.arch_dict, "t5", hf_configs.arch_dict["mt5"])
    assert_same_outputs(tiny_hf_text_cfg("t5"))


@every_encoder
def test_clip_with_an_hf_text_model_has_the_gradients_of_open_clip(model_type):
    model_cfg = tiny_hf_text_cfg(model_type, text_cfg={"hf_proj_type": "mlp"})
    reference, model = model_pair(model_cfg)
    images, ids = random_images(model_cfg, 4), texts(model.config.text_config.pad_token_id)
    logits_per_image, _ = reference.train().get_logits(images, ids)
    outputs = model.train()(ids, images)
    assert relative_difference(outputs.logits_per_image, logits_per_image) < BOUND
    for logits in (logits_per_image, outputs.logits_per_image):
        (logits.softmax(-1) ** 2).sum().backward()
    assert_same_gradients(model, reference)


@every_encoder
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_hf_text_model_is_no_further_from_fp32_than_open_clip(model_type, dtype):
    model_cfg = tiny_hf_text_cfg(model_type)
    reference = open_clip_model(model_cfg)
    reference.text.to(dtype)
    rounded = copy.deepcopy(reference)
    rounded.text.float()
    model = converted(model_cfg, rounded)
    ids = texts(model.config.text_config.pad_token_id)
    with torch.no_grad():
        expected = rounded.text(ids)
        theirs = (reference.text(ids).float() - expected).abs().max()
        ours = (model.text_model.to(dtype)(ids).pooler_output.float() - expected).abs().max()
    assert 0 < ours <= 2 * theirs


every_caption_encoder = pytest.mark.parametrize("model_type", ["roberta", "bert", "mt5", "m2m_100"])


def coca_pair(model_type: str, **text_cfg):
    # What `coca_roberta-ViT-B-32` says, and a mean for all encoders.
    text_cfg = {"hf_proj_type": "linear", "hf_pooler_type": "mean_pooler", **text_cfg}
    model_cfg = tiny_hf_coca_cfg(model_type, text_cfg=text_cfg)
    return model_cfg, *model_pair(model_cfg)


@every_caption_encoder
def test_coca_with_an_hf_text_model_equals_open_clip(model_type):
    model_cfg, reference, model = coca_pair(model_type)
    images, ids = random_images(model_cfg, 4), texts(model.config.text_config.pad_token_id)
    with torch.no_grad():
        # The decoder has one position fewer: the last token is no more than a label.
        expected, outputs = reference(images, ids), model(ids, images)
    assert relative_difference(outputs.logits[:, :-1], expected["logits"]) < BOUND
    assert relative_difference(outputs.text_embeds, expected["text_features"]) < BOUND
    assert relative_difference(outputs.image_embeds, expected["image_features"]) < BOUND


@pytest.mark.parametrize("length", [1, 4], ids=["one_token", "four_tokens"])
def test_coca_with_an_hf_text_model_equals_open_clip_on_prefixes(length):
    model_cfg, reference, model = coca_pair("roberta", hf_pooler_type="cls_last_hidden_state_pooler")
    images, ids = random_images(model_cfg, 4), texts(1)[:, :length]
    with torch.no_grad():
        expected, outputs = reference(images, ids, output_labels=False), model(ids, images)
    assert relative_difference(outputs.logits, expected["logits"]) < BOUND
    assert relative_difference(outputs.text_embeds, expected["text_features"]) < BOUND


@every_caption_encoder
def test_coca_with_an_hf_text_model_has_the_losses_and_gradients_of_open_clip(model_type):
    from open_clip.loss import CoCaLoss

    model_cfg, reference, model = coca_pair(model_type)
    pad = model.config.text_config.pad_token_id
    images, ids = random_images(model_cfg, 4), texts(pad)
    losses = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=pad)(
        **reference.train()(images, ids), output_dict=True
    )
    loss = model.train()(ids, images, labels=ids.masked_fill(ids == pad, -100), return_loss=True).loss
    assert relative_difference(loss, sum(losses.values())) < BOUND
    sum(losses.values()).backward()
    loss.backward()
    assert_same_gradients(model, reference)


def test_coca_of_open_clip_cannot_learn_from_texts_without_their_first_token():
    # Why our configuration refuses it: as many predictions as labels are missing (`CoCa.forward` in `coca_model.py`).
    model_cfg = tiny_hf_coca_cfg("roberta", text_cfg={"hf_pooler_type": "cls_pooler"})
    outputs = open_clip_model(model_cfg)(random_images(model_cfg, 4), texts(1))
    assert outputs["logits"].shape[1] == outputs["labels"].shape[1] - 1
