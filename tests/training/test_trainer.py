"""ContrastiveTrainer: gradients of the whole batch, whatever the ranks, the accumulation and the parts."""

import numpy as np
import pytest
import torch
import training_on_ranks as workers
from model_pairs import converted_tensors, model_pair
from open_clip.loss import ClipLoss, CoCaLoss, DistillClipLoss, SigLipLoss
from ranks import on_ranks
from tiny_configs import tiny_clip_cfg, tiny_coca_cfg, tiny_siglip_cfg


pytestmark = pytest.mark.floor
SIZE = 16
SIZES = {3: 12}  # what ranks can share evenly, also by four batches
BOUND = 1e-5
CFGS = {"clip": tiny_clip_cfg(), "siglip": tiny_siglip_cfg(), "coca": tiny_coca_cfg()}
ACCUMULATIONS = [{"gradient_accumulation_steps": steps} for steps in (1, 2, 4)]
PARTS = [{"mini_batch_size": size} for size in (1, 3, SIZE, 4 * SIZE)]
ALL = [*ACCUMULATIONS, *PARTS, {"mini_batch_size": 3, "gradient_accumulation_steps": 2}]
SOME = [{}, {"mini_batch_size": 3, "gradient_accumulation_steps": 2}]
# On more ranks everything again takes a minute or two.
CASES = [
    *(
        pytest.param(kind, ranks, SOME, id=f"{kind}-{ranks}")
        for kind, ranks in (("clip", 1), ("siglip", 2), ("coca", 2))
    ),
    *(
        pytest.param(kind, ranks, ALL, id=f"{kind}-{ranks}-all", marks=pytest.mark.slow)
        for kind in CFGS
        for ranks in (1, 2, 3, 4)
    ),
]


def pair_of(kind: str):
    reference, model = model_pair(CFGS[kind])
    with torch.no_grad():
        if kind == "siglip":
            for bias in (reference.logit_bias, model.logit_bias):
                bias.fill_(-2.0)
    return reference, model


def save(model, folder) -> str:
    model.save_pretrained(folder)
    return str(folder)


def loss_of_open_clip(kind: str, reference, batch: dict, num_tokens: int, teacher=None) -> torch.Tensor:
    """open_clip's loss of a batch; the mean over captions is that over `num_tokens` in all."""
    outputs = reference(batch["pixel_values"], batch["input_ids"])
    if kind == "coca":
        contrastive, captions = CoCaLoss(2.0, 1.0, pad_id=0)(**outputs)
        return contrastive, captions * (batch["labels"][:, 1:] != -100).sum() / num_tokens
    embeds = (
        outputs[:3]
        if isinstance(outputs, tuple)
        else [outputs[name] for name in ("image_features", "text_features", "logit_scale")]
    )
    if teacher is not None:
        with torch.no_grad():
            taught = teacher(batch["pixel_values"], batch["input_ids"])
        return sum(DistillClipLoss()(*embeds, *taught[:3])), torch.tensor(0.0)
    if kind == "siglip":
        return SigLipLoss()(*embeds, reference.logit_bias), torch.tensor(0.0)
    return ClipLoss()(*embeds), torch.tensor(0.0)


def reference_gradients(kind: str, reference, model, accumulation: int = 1, teacher=None, size: int = SIZE) -> dict:
    """Gradients of open_clip's model on the whole batch, under our names, and its loss."""
    inputs = workers.training_batch(model, size)
    num_tokens = (inputs["labels"][:, 1:] != -100).sum().item() if kind == "coca" else 0
    reference.zero_grad()
    total = 0.0
    for batch in workers.micro_batches(inputs, accumulation, 0, 1):
        contrastive, captions = loss_of_open_clip(kind, reference, batch, num_tokens, teacher)
        loss = contrastive / accumulation + captions
        loss.backward()
        total += loss.item()
    return {**under_our_names(reference, model), "loss": np.array(total)}


def under_our_names(reference, model) -> dict[str, np.ndarray]:
    zeros = {name: torch.zeros_like(value) for name, value in reference.state_dict().items()}
    gradients = {name: value.grad for name, value in reference.named_parameters() if value.grad is not None}
    converted = converted_tensors(model.config, {**zeros, **gradients})
    return {name: converted[name].numpy() for name, _ in model.named_parameters()}


def error(found: dict, expected: dict) -> float:
    """The difference of all gradients, relative to their length."""
    names = [name for name in expected if name != "loss"]
    assert set(names) <= found.keys(), "a parameter has no gradient"
    difference = sum(float(((found[name] - expected[name]) ** 2).sum()) for name in names)
    return (difference / sum(float((expected[name] ** 2).sum()) for name in names)) ** 0.5


@pytest.mark.parametrize(("kind", "ranks", "settings"), CASES)
def test_gradients_are_those_of_open_clip_on_the_whole_batch(kind, ranks, settings, tmp_path):
    reference, model = pair_of(kind)
    folder = save(model, tmp_path / "model")
    size = SIZES.get(ranks, SIZE)
    expected = {count: reference_gradients(kind, reference, model, count, size=size) for count in (1, 2, 4)}
    for answers in zip(settings, *on_ranks(workers.trained_gradients, ranks, tmp_path, folder, size, settings)):
        setting, *found = answers
        right = expected[setting.get("gradient_accumulation_steps", 1)]
        for gradients in found:
            assert error(gradients, right) <= BOUND, setting
            for name in ("logit_scale", "logit_bias"):
                if name in right:
                    assert gradients[name] == pytest.approx(right[name], rel=1e-4, abs=1e-7), (setting, name)
        assert np.mean([gradients["loss"] for gradients in found]) == pytest.approx(right["loss"], rel=1e-4)


@pytest.mark.parametrize("ranks", [1, *(pytest.param(ranks, marks=pytest.mark.slow) for ranks in (2, 3, 4))])
def test_distillation_is_that_of_open_clip(ranks, tmp_path):
    reference, model = pair_of("clip")
    teacher_cfg = tiny_clip_cfg(embed_dim=20, vision_cfg={"layers": 1}, text_cfg={"layers": 1})
    teacher, teacher_model = model_pair(teacher_cfg)
    folders = save(model, tmp_path / "model"), save(teacher_model, tmp_path / "teacher")
    size = SIZES.get(ranks, SIZE)
    right = reference_gradients("clip", reference, model, teacher=teacher, size=size)
    settings = [{}, {"mini_batch_size": 3}]
    for found in zip(*on_ranks(workers.trained_gradients, ranks, tmp_path, folders[0], size, settings, folders[1])):
        for gradients in found:
            assert error(gradients, right) <= BOUND
        assert np.mean([gradients["loss"] for gradients in found]) == pytest.approx(right["loss"], rel=1e-4)


@pytest.mark.parametrize("kind", ["siglip", pytest.param("coca", marks=pytest.mark.slow)])
def test_gradients_under_fsdp2_are_those_of_open_clip(kind, tmp_path):
    reference, model = pair_of(kind)
    folder = save(model, tmp_path / "model")
    settings = [{}, {"mini_batch_size": 3}, {"gradient_accumulation_steps": 2, "mini_batch_size": 3}]
    settings = [{**workers.FSDP2, **setting} for setting in settings]
    for answers in zip(settings, *on_ranks(workers.trained_gradients, 2, tmp_path, folder, SIZE, settings)):
        setting, *found = answers
        right = reference_gradients(kind, reference, model, setting.get("gradient_accumulation_steps", 1))
        for name in ("logit_scale", "logit_bias"):
            if name in right:
                right[name] = right[name].reshape(1)
        for gradients in found:
            assert error(gradients, right) <= BOUND, setting
