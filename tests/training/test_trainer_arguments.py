"""ContrastiveTrainer in one process: parts with dropout, precision, evaluation, and what it refuses."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import training_on_ranks as workers
from PIL import Image
from tiny_folders import build_processor
from tiny_models import tiny_model
from transformers import Trainer, TrainingArguments

from open_clip_transformers import (
    ContrastiveCollator,
    ContrastiveTrainer,
    ContrastiveTrainingArguments,
    OpenClipModel,
    lock_image_tower,
    lock_text_tower,
)
from open_clip_transformers.training.losses import softmax_contrastive_loss


pytestmark = pytest.mark.floor
SIZE = 7


def trainer_of(model, tmp_path, batches=None, size: int = SIZE, **setting):
    teacher = setting.pop("teacher_model", None)
    batches = [workers.training_batch(model, size)] if batches is None else batches
    args = workers.training_arguments(tmp_path, per_device_train_batch_size=size, **setting)
    return workers.make_trainer(model, args, batches, **({} if teacher is None else {"teacher_model": teacher}))


def gradients_of(trainer) -> dict[str, torch.Tensor]:
    torch.manual_seed(11)
    trainer.args.seed = 11
    trainer.train()
    return {name: torch.from_numpy(gradient) for name, gradient in trainer.gradients.items()}


def relative_error(found: dict, expected: dict) -> float:
    difference = sum(((found[name] - expected[name]) ** 2).sum() for name in expected)
    return (difference / sum((value**2).sum() for value in expected.values())).sqrt().item()


@pytest.mark.parametrize(
    ("size", "compiles"),
    [(1, False), (3, False), (SIZE, False), pytest.param(3, True, marks=pytest.mark.slow)],
    ids=["1", "3", "all", "3_compiled"],
)
def test_parts_have_the_gradients_of_the_whole_batch_with_dropout(size, compiles, tmp_path):
    model = workers.with_dropout(tiny_model("clip"))
    if compiles:
        model.compile()
    batch = workers.training_batch(model, SIZE)
    # The same parts with the same random numbers, whose activations are all held.
    torch.manual_seed(11)
    parts = [{name: value[start : start + size] for name, value in batch.items()} for start in range(0, SIZE, size)]
    outputs = [model(**part) for part in parts]
    embeds = [torch.cat([output[name] for output in outputs]) for name in ("image_embeds", "text_embeds")]
    softmax_contrastive_loss(*embeds, model.logit_scale.exp()).backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    after = torch.rand(1)
    model.zero_grad(set_to_none=True)
    trainer = trainer_of(model, tmp_path, mini_batch_size=size)
    torch.manual_seed(11)
    trainer.compute_loss(model, batch).backward()
    assert torch.equal(torch.rand(1), after)  # the random numbers go on from there
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert relative_error(found, expected) <= 1e-5


def with_lora(model):
    pytest.importorskip("peft")
    return workers.with_lora(model)


def checkpointed(model):
    model.gradient_checkpointing_enable()
    return model


def locked(model):
    lock_image_tower(model)
    lock_text_tower(model)
    return model


def image_locked(model):
    lock_image_tower(model)
    return model


def without_bias(model):
    model.logit_bias = None
    return model


def compiled(model):
    model.compile(backend="aot_eager")
    return model


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param("coca", checkpointed, id="checkpointing"),
        pytest.param("clip", with_lora, id="lora"),
        pytest.param("siglip", locked, id="locked"),
        pytest.param("clip", image_locked, id="image_locked"),
        pytest.param("siglip", without_bias, id="without_bias"),
        pytest.param("clip", compiled, id="compiled"),
        pytest.param("clip_timm_vision", None, id="timm"),
        pytest.param("coca_hf_text", None, id="hf_text"),
        pytest.param("clip_modern_text", None, id="modern_text"),
        pytest.param("mammut", None, id="mammut"),
    ],
)
def test_parts_of_every_model_have_the_gradients_of_the_whole_batch(name, change, tmp_path):
    found = []
    for mini_batch_size in (None, 3):
        torch.manual_seed(5)
        model = tiny_model(name)
        batches = [workers.training_batch(model, SIZE)]
        model = model if change is None else change(model)
        trainer = trainer_of(model, tmp_path, batches, mini_batch_size=mini_batch_size)
        found.append(gradients_of(trainer))
    assert found[0].keys() == found[1].keys()
    assert relative_error(*found) <= 1e-5


@pytest.mark.parametrize("checkpoints", [False, True], ids=["plain", "checkpointing"])
def test_parts_move_the_statistics_of_batch_norms_once(checkpoints, tmp_path):
    model = tiny_model("clip_resnet").train()
    batch = workers.training_batch(model, 4)
    twin = tiny_model("clip_resnet").train()
    for start in (0, 2):
        twin(**{name: value[start : start + 2] for name, value in batch.items()})
    trainer_of(model, tmp_path, [batch], size=4, mini_batch_size=2, gradient_checkpointing=checkpoints).train()
    buffers = dict(twin.named_buffers())
    assert all(torch.allclose(value, buffers[name], atol=1e-6) for name, value in model.named_buffers())


def test_parts_are_clipped_as_the_whole_batch(tmp_path):
    norms, scales = [], []
    for mini_batch_size in (None, 3):
        model = tiny_model("clip")
        trainer = trainer_of(model, tmp_path, max_grad_norm=0.01, learning_rate=1.0, mini_batch_size=mini_batch_size)
        trainer.train()
        norms.append(trainer.state.log_history[0]["grad_norm"])
        scales.append(model.logit_scale.item())
    assert norms[0] == pytest.approx(norms[1], rel=1e-5) and norms[0] > 0.01
    assert scales[0] == pytest.approx(scales[1], rel=1e-6) != tiny_model("clip").logit_scale.item()


@pytest.mark.parametrize("mini_batch_size", [None, 3])
def test_bf16_errs_no_more_than_the_model_alone(mini_batch_size, tmp_path):
    model = tiny_model("clip")
    exact = gradients_of(trainer_of(tiny_model("clip"), tmp_path))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(**workers.training_batch(model, SIZE), return_loss=True)
    outputs.loss.backward()
    alone = relative_error({name: parameter.grad for name, parameter in model.named_parameters()}, exact)
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    try:
        found = gradients_of(trainer_of(tiny_model("clip"), tmp_path, bf16=True, mini_batch_size=mini_batch_size))
    finally:
        AcceleratorState._reset_state(True)
    assert 1e-5 < relative_error(found, exact) <= 2 * alone


@pytest.mark.parametrize("name", ["clip", "coca"])
def test_evaluation_reports_the_loss_of_the_model(name, tmp_path):
    model = tiny_model(name)
    batch = workers.training_batch(model, 4)
    examples = [{key: value[row] for key, value in batch.items()} for row in range(4)]
    trainer = ContrastiveTrainer(
        model,
        workers.training_arguments(tmp_path, per_device_eval_batch_size=4, mini_batch_size=2),
        eval_dataset=examples,
    )
    with torch.no_grad():
        expected = model(**batch, return_loss=True).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_weights_of_the_losses_are_those_asked_for(tmp_path):
    model = tiny_model("coca")
    batch = workers.training_batch(model, 4)
    with torch.no_grad():
        captions = model(**batch).loss.item()
        pairs = model(**{**batch, "labels": None}, return_loss=True).loss.item()
    for weights, expected in (
        ({}, 2 * captions + pairs),
        ({"caption_loss_weight": 0.5, "contrastive_loss_weight": 3.0}, 0.5 * captions + 3 * pairs),
    ):
        trainer = trainer_of(model.eval(), tmp_path, **weights)
        with torch.no_grad():
            assert trainer.compute_loss(model, batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("clamps", "start", "expected"), [(True, 4.8, math.log(100)), (True, -0.3, 0.0), (False, 4.8, 4.8)]
)
def test_logit_scale_is_clamped_as_in_open_clip(clamps, start, expected, tmp_path):
    model = tiny_model("clip")
    model.logit_scale.data.fill_(start)
    trainer_of(model, tmp_path, clamp_logit_scale=clamps).train()
    assert model.logit_scale.item() == pytest.approx(expected)


def test_layer_decay_reaches_the_optimizer(tmp_path):
    model = tiny_model("clip")
    trainer = trainer_of(model, tmp_path, learning_rate=0.01, weight_decay=0.1, layer_decay=0.5)
    trainer.create_optimizer()
    found = {
        p: (group["lr"], group["weight_decay"]) for group in trainer.optimizer.param_groups for p in group["params"]
    }
    assert found[model.text_model.projection.weight] == (0.01, 0.1)
    assert found[model.text_model.embeddings.token_embedding.weight] == (0.01 * 0.5**3, 0.1)
    assert found[model.logit_scale] == (0.01, 0.0)


@pytest.mark.parametrize("mini_batch_size", [None, 3])
def test_a_loss_that_is_no_number_is_shown(mini_batch_size, tmp_path):
    model = tiny_model("clip")
    batch = workers.training_batch(model, SIZE)
    batch["pixel_values"][0] = math.nan
    trainer = trainer_of(model, tmp_path, [batch], mini_batch_size=mini_batch_size)
    trainer.train()
    assert math.isnan(trainer.state.log_history[0]["loss"])


def pairs_to_train_on():
    """A model, its processor, and pairs with the columns image and text."""
    datasets = pytest.importorskip("datasets")
    model = tiny_model("clip")
    processor = build_processor(model)
    model.resize_token_embeddings(len(processor.tokenizer))
    images = [Image.new("RGB", (30, 40), (60 * index, 9, 9)) for index in range(4)]
    return model, processor, datasets.Dataset.from_dict({"image": images, "text": ["one", "two", "three", "four"]})


@pytest.mark.parametrize("named", [False, True], ids=["one", "several"])
def test_columns_of_an_evaluation_are_missed_before_the_first_step(named, tmp_path):
    model, processor, dataset = pairs_to_train_on()
    other = dataset.rename_column("text", "caption")
    trainer = ContrastiveTrainer(
        model,
        workers.training_arguments(tmp_path, eval_strategy="epoch"),
        data_collator=ContrastiveCollator(processor),
        train_dataset=dataset,
        eval_dataset={"same": dataset, "other": other} if named else other,
    )
    fails(ValueError, "has the columns 'image', 'caption', and the collator reads 'text'", trainer.train)
    assert trainer.state.global_step == 0


def test_data_without_a_collator_that_makes_inputs_of_it_is_refused(tmp_path):
    model, processor, dataset = pairs_to_train_on()
    for owner in (None, processor, processor.tokenizer):
        trainer = ContrastiveTrainer(
            model, workers.training_arguments(tmp_path), train_dataset=dataset, processing_class=owner
        )
        fails(ValueError, r"nothing makes pixel_values: pass data_collator=ContrastiveCollator\(", trainer.train)


def test_a_model_of_which_nothing_can_learn_is_refused(tmp_path):
    model = tiny_model("clip").requires_grad_(False)
    fails(ValueError, "No parameter of the model can learn", trainer_of(model, tmp_path).train)


@pytest.mark.parametrize(
    ("version", "change", "message"),
    [
        (1, lambda model: model, "FSDP of version 1 is not supported: pass --fsdp_version 2"),
        (2, locked, "logit_scale"),
    ],
    ids=["version_1", "locked"],
)
def test_what_fsdp_would_not_average_is_refused(version, change, message, tmp_path):
    config = tiny_model("clip").config
    config.nonscalar_logit_scale = True
    trainer = trainer_of(change(OpenClipModel(config)), tmp_path)
    plugin = SimpleNamespace(fsdp_version=version, cpu_ram_efficient_loading=False)
    trainer.accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    fails(ValueError, message, trainer.train)


def test_an_evaluation_of_one_pair_at_a_time_is_refused(tmp_path):
    model = tiny_model("clip")
    args = workers.training_arguments(tmp_path, per_device_eval_batch_size=1)
    trainer = ContrastiveTrainer(model, args, eval_dataset=workers.Pairs(model, 2))
    fails(ValueError, "one pair has nothing to be compared with: raise per_device_eval_batch_size", trainer.evaluate)


def test_plain_trainer_trains_on_pairs_of_the_collator(tmp_path):
    model = tiny_model("clip")
    processor = build_processor(model)
    model.resize_token_embeddings(len(processor.tokenizer))
    batch = np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), dtype=np.uint8)
    examples = [
        {"image": Image.fromarray(pixels), "text": text} for pixels, text in zip(batch, ["one dog", "two cats"])
    ]
    args = TrainingArguments(
        str(tmp_path),
        max_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        save_strategy="no",
    )
    trainer = Trainer(
        model, args, train_dataset=examples, data_collator=ContrastiveCollator(processor, return_loss=True)
    )
    assert trainer.train().training_loss > 0


def fails(error, message, function, *arguments, **keywords):
    with pytest.raises(error, match=message):
        function(*arguments, **keywords)


@pytest.mark.parametrize("name", ["clip", "siglip", "coca"])
def test_a_batch_of_one_pair_is_refused_before_the_first_step(name, tmp_path):
    model = tiny_model(name)
    trainer = trainer_of(model, tmp_path, size=1)
    fails(ValueError, "A batch of one pair has nothing to be compared with", trainer.train)
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("mini_batch_size", [None, 2])
def test_batches_that_are_no_pairs_are_refused_before_the_first_step(mini_batch_size, tmp_path):
    for name, change, message in (
        (
            "clip",
            lambda batch: batch["input_ids"].__getitem__(slice(3)),
            "got 7 images and 3 texts: pass one text an image",
        ),
        (
            "coca",
            lambda batch: batch["labels"].new_zeros(SIZE, 12),
            r"labels have shape \(7, 12\), the texts \(7, 10\)",
        ),
    ):
        model = tiny_model(name)
        batch = workers.training_batch(model, SIZE)
        key = "labels" if name == "coca" else "input_ids"
        batch[key] = change(batch)
        before = model.logit_scale.item()
        trainer = trainer_of(model, tmp_path, [batch], mini_batch_size=mini_batch_size)
        fails(ValueError, message, trainer.train)
        assert model.logit_scale.item() == before and all(p.grad is None for p in model.parameters())


def test_batches_without_what_is_learned_are_refused(tmp_path):
    coca, clip = tiny_model("coca"), tiny_model("clip")
    batch = workers.training_batch(coca, SIZE)
    labels = batch.pop("labels")
    fails(ValueError, "needs labels, from which captions are learned", trainer_of(coca, tmp_path, [batch]).train)
    batch = {**workers.training_batch(clip, SIZE), "labels": labels}
    fails(ValueError, "has labels, and OpenClipModel no decoder", trainer_of(clip, tmp_path, [batch]).train)
    batch = {"input_ids": batch["input_ids"]}
    fails(ValueError, "A batch has input_ids, and needs pixel_values", trainer_of(clip, tmp_path, [batch]).train)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("clip", {"vision_config": {"image_size": 32}}, "takes images of size 32, the model of 24"),
        ("clip", {"text_config": {"max_position_embeddings": 9}}, "max_position_embeddings = 9, the model 11"),
        ("clip", {"text_config": {"vocab_size": 50}}, "vocab_size = 50, the model 97"),
        ("vit", {}, "The teacher_model OpenClipVitModel has no logit_scale"),
    ],
    ids=["image_size", "positions", "vocabulary", "no_dual_model"],
)
def test_a_teacher_of_other_inputs_is_refused(name, fields, message, tmp_path):
    teacher = tiny_model(name)
    for part, values in fields.items():
        for field, value in values.items():
            setattr(getattr(teacher.config, part), field, value)
    fails(ValueError, message, trainer_of, tiny_model("clip"), tmp_path, teacher_model=teacher)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("clip", {"caption_loss_weight": 2.0}, "caption_loss_weight weighs nothing: it needs a decoder"),
        ("clip", {"contrastive_loss_weight": 2.0}, "contrastive_loss_weight weighs nothing"),
        (
            "coca",
            {"distillation_loss_weight": 2.0},
            "distillation_loss_weight weighs nothing: it needs a teacher_model",
        ),
        ("vit", {}, "OpenClipVitModel has no logit_scale"),
        ("clip", {"label_smoothing_factor": 0.1}, "has its own losses"),
        ("clip", {"fp16": True}, "fp16=True has no effect on the CPU: pass bf16=True"),
    ],
    ids=["captions", "pairs", "distillation", "no_dual_model", "label_smoothing", "fp16"],
)
def test_arguments_without_effect_are_refused(name, arguments, message, tmp_path):
    model = tiny_model(name)
    fails(ValueError, message, trainer_of, model, tmp_path, [{}], **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mini_batch_size": 0}, "mini_batch_size is a number of pairs, got 0"),
        ({"mini_batch_size": True}, "mini_batch_size is a number of pairs, got True"),
        ({"mini_batch_size": 2.5}, "mini_batch_size is a number of pairs, got 2.5"),
        ({"layer_decay": 1.2}, "layer_decay is a number above 0 and at most 1, got 1.2"),
        ({"caption_loss_weight": -1.0}, "caption_loss_weight is a number of at least 0, got -1.0"),
        ({"distillation_loss_weight": math.nan}, "distillation_loss_weight is a number of at least 0, got nan"),
    ],
    ids=["mini_batch_size", "yes", "fraction", "layer_decay", "weight", "nan"],
)
def test_arguments_out_of_range_are_refused(arguments, message, tmp_path):
    fails(ValueError, message, ContrastiveTrainingArguments, str(tmp_path), use_cpu=True, **arguments)


def test_arguments_of_plain_trainer_are_refused(tmp_path):
    args = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    fails(
        TypeError,
        "args must be ContrastiveTrainingArguments, got TrainingArguments",
        ContrastiveTrainer,
        tiny_model("clip"),
        args,
    )
