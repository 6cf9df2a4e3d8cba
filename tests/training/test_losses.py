"""Losses over process groups have the values and gradients of open_clip's on the whole batch."""

import numpy as np
import pytest
import torch
import training_on_ranks as workers
from open_clip.loss import ClipLoss, CoCaLoss, DistillClipLoss, SigLipLoss
from ranks import answers_on_ranks, on_ranks

from open_clip_transformers.training.losses import (
    caption_loss,
    distillation_loss,
    sigmoid_contrastive_loss,
    softmax_contrastive_loss,
)


pytestmark = pytest.mark.floor
KINDS = ["softmax", "sigmoid", "caption", "distillation"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def reference(kind: str) -> dict[str, np.ndarray]:
    """open_clip's loss of the whole batch, and its gradients."""
    model = workers.model_of(kind)
    images, texts = workers.pairs()
    embeds, scale = model.embed(images, texts), model.logit_scale.exp()
    if kind == "softmax":
        loss = ClipLoss()(*embeds, scale)
    elif kind == "sigmoid":
        loss = SigLipLoss()(*embeds, scale, model.logit_bias)
    elif kind == "caption":
        hidden, labels = workers.captions()
        logits = hidden @ model.text
        _, loss = CoCaLoss(1.0, 0.0, pad_id=-100)(*embeds, logits[:, :-1], labels[:, 1:], scale)
    else:
        teacher = workers.Pair(workers.WIDTHS["teacher"], seed=1)
        with torch.no_grad():
            teacher_embeds = teacher.embed(images, texts)
        loss = sum(DistillClipLoss()(*embeds, scale, *teacher_embeds, teacher.logit_scale.exp()))
    loss.backward()
    gradients = {
        name: parameter.grad.numpy() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    return {**gradients, "loss": loss.detach().numpy()}


def error(ours: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(ours - expected) / max(np.linalg.norm(expected), 1e-12))


@every_kind
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_loss_and_gradients_are_those_of_open_clip_on_the_whole_batch(kind, ranks, tmp_path):
    expected = reference(kind)
    for found in on_ranks(workers.loss_gradients, ranks, tmp_path, kind):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert error(found[name], value) <= 1e-5, name


@every_kind
def test_loss_of_one_process_gathers_nothing(kind):
    expected = reference(kind)
    model = workers.model_of(kind)
    images, texts = workers.pairs()
    embeds, scale = model.embed(images, texts), model.logit_scale.exp()
    if kind == "softmax":
        loss = softmax_contrastive_loss(*embeds, scale)
    elif kind == "sigmoid":
        loss = sigmoid_contrastive_loss(*embeds, scale, model.logit_bias)
    elif kind == "caption":
        hidden, labels = workers.captions()
        loss = caption_loss(hidden @ model.text, labels)
    else:
        teacher = workers.Pair(workers.WIDTHS["teacher"], seed=1)
        loss = softmax_contrastive_loss(*embeds, scale) + distillation_loss(
            *embeds, scale, *teacher.embed(images, texts), teacher.logit_scale.exp()
        )
    assert loss.item() == pytest.approx(expected["loss"].item(), rel=1e-5)


def test_sigmoid_loss_needs_no_bias():
    model = workers.model_of("sigmoid")
    embeds, scale = model.embed(*workers.pairs()), model.logit_scale.exp()
    expected = SigLipLoss()(*embeds, scale, None)
    assert sigmoid_contrastive_loss(*embeds, scale).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        ([3, 2], [3, 2], "as many pairs from each rank, got 3, 2: drop the last, smaller batch (drop_last"),
        ([3, 3, 2], [3, 3, 2], "as many pairs from each rank, got 3, 3, 2: drop the last, smaller batch"),
        ([3, 3], [3, 2], "got 3 images and 2 texts on rank 1"),
        ([2, 3], [3, 3], "got 2 images and 3 texts on rank 0"),
    ],
    ids=["uneven_ranks", "uneven_3_ranks", "texts_missing", "images_missing"],
)
def test_numbers_that_differ_raise_on_every_rank(kind, images, texts, message, tmp_path):
    for failure, _ in answers_on_ranks(workers.loss_of_rows, len(images), tmp_path, kind, images, texts):
        assert failure.startswith("ValueError") and message in failure


def test_logits_have_the_rows_of_one_rank(tmp_path):
    rows = workers.PAIRS * 20
    assert on_ranks(workers.num_logits, 4, tmp_path) == [rows // 4 * rows] * 4


@pytest.mark.parametrize("loss", [softmax_contrastive_loss, sigmoid_contrastive_loss])
@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        ((3, 4), (2, 4), "3 images and 2 texts"),
        ((3, 4), (3, 5), "width 4 and the texts of width 5"),
        ((3, 4), (3, 2, 4), r"texts have embeddings \(3, 2, 4\)"),
    ],
    ids=["numbers", "widths", "dimensions"],
)
def test_contrastive_losses_refuse_what_are_no_pairs(loss, images, texts, message):
    with pytest.raises(ValueError, match=message):
        loss(torch.ones(images), torch.ones(texts), torch.tensor(1.0))


@pytest.mark.parametrize("shape", [(2, 6), (3, 5), (2, 4)], ids=["longer", "more", "shorter"])
def test_caption_loss_refuses_labels_of_another_shape(shape):
    with pytest.raises(ValueError, match=rf"labels have shape \({shape[0]}, {shape[1]}\), the texts \(2, 5\)"):
        caption_loss(torch.zeros(2, 5, 9), torch.ones(shape, dtype=torch.long))


def test_caption_loss_without_anything_to_learn_is_zero():
    logits = torch.randn(2, 5, 9, requires_grad=True)
    loss = caption_loss(logits, torch.full((2, 5), -100))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_distillation_loss_refuses_a_teacher_of_other_pairs():
    embeds, teacher, scale = torch.ones(3, 4), torch.ones(2, 7), torch.tensor(1.0)
    with pytest.raises(ValueError, match="3 texts and 2 images of the teacher"):
        distillation_loss(embeds, embeds, scale, teacher, teacher, scale)
    with pytest.raises(ValueError, match="images of the teacher have embeddings of width 7 and the texts of width 8"):
        distillation_loss(embeds, embeds, scale, torch.ones(3, 7), torch.ones(3, 8), scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@every_kind
def test_losses_under_autocast_are_those_of_float32(kind, dtype):
    model = workers.model_of(kind)
    embeds, scale = model.embed(*workers.pairs()), 30 * model.logit_scale.exp()
    embeds = [rows.to(dtype) for rows in embeds]
    hidden, labels = workers.captions()
    logits = (hidden @ model.text).to(dtype)
    function, arguments = {
        "softmax": (softmax_contrastive_loss, (*embeds, scale)),
        "sigmoid": (sigmoid_contrastive_loss, (*embeds, scale, model.logit_bias)),
        "caption": (caption_loss, (logits, labels)),
        "distillation": (distillation_loss, (*embeds, scale, *embeds, scale)),
    }[kind]
    exact = function(*(each.float() if each.is_floating_point() else each for each in arguments))
    with torch.autocast("cpu", dtype=dtype):
        loss = function(*arguments)
    assert loss.dtype == torch.float32 and torch.equal(loss, exact)
