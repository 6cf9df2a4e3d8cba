"""transformers' Trainer: losses and gradients are those of the samples, however these are split up."""

import os
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import trainer_steps
from tiny_models import tiny_inputs, tiny_model
from trainer_steps import TASKS, Step, make_trainer, task_inputs, train_step


whole_step = cache(train_step)


def assert_same(step: Step, expected: Step):
    assert step.loss == pytest.approx(expected.loss, rel=1e-4)
    assert step.eval_loss == pytest.approx(expected.eval_loss, rel=1e-4)
    for name, gradient in step.gradients.items():
        torch.testing.assert_close(gradient, expected.gradients[name], rtol=1e-3, atol=2e-6, msg=name)


@pytest.mark.parametrize("accumulation", [pytest.param(2, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("name", TASKS)
def test_accumulation_changes_no_loss_and_no_gradient(name, accumulation):
    assert_same(train_step(name, accumulation), whole_step(name))


@pytest.mark.parametrize("name", TASKS)
def test_a_step_follows_the_gradient_of_the_models_loss(name):
    task = TASKS[name]
    model = tiny_model(task.model, **task.fields)
    inputs = task_inputs(task, model)
    if task.return_loss:
        inputs = {**{key: value[: trainer_steps.PAIRS] for key, value in inputs.items()}, "return_loss": True}
    loss = model(**inputs).loss
    loss.backward()
    step = whole_step(name)
    # Early Trainers also count the first token of each caption, which none predicts.
    scale = step.loss / loss.item()
    if "labels" in inputs and task.labels == "captions":
        counted = inputs["labels"].ne(-100).sum().item()
        assert min(abs(scale - 1), abs(scale - 1 + len(inputs["labels"]) / counted)) < 1e-4
    else:
        assert scale == pytest.approx(1, rel=1e-4)
    assert step.eval_loss == pytest.approx(step.loss, rel=1e-4)
    for key, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else scale * parameter.grad
        torch.testing.assert_close(step.gradients[key], expected, rtol=1e-3, atol=2e-6, msg=key)


@pytest.mark.parametrize(
    ("processes", "tasks"),
    [
        pytest.param(2, ("classes", "captions", "captions_and_pairs"), id="two"),
        pytest.param(4, tuple(TASKS), id="four", marks=pytest.mark.slow),
    ],
)
def test_processes_change_no_loss_and_no_gradient(processes, tasks, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    variables = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    variables |= {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    running = [
        subprocess.Popen(
            [sys.executable, trainer_steps.__file__, tmp_path, *tasks],
            env={**os.environ, **variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    for process in running:
        errors = process.communicate(timeout=240)[1]
        assert process.returncode == 0, errors
    for name, step in torch.load(tmp_path / "steps.pt").items():
        assert_same(Step(**step), whole_step(name))


@pytest.mark.parametrize("return_loss", [False, True], ids=["captions", "captions_and_pairs"])
def test_labels_of_padding_do_not_scale_the_loss(return_loss):
    model = tiny_model("coca")
    inputs = task_inputs(TASKS["captions"], model)
    inputs["attention_mask"] = inputs["labels"].ne(-100).long()
    with torch.no_grad():
        expected = model(**inputs, return_loss=return_loss).loss.item()
    loss = make_trainer(model, {**inputs, "labels": inputs["input_ids"]}, return_loss).evaluate()["eval_loss"]
    # Early Trainers also count the first of a caption's ten tokens.
    assert any(loss == pytest.approx(expected * scale, rel=1e-4) for scale in (1, 9 / 10))


@pytest.mark.parametrize("name", ["coca", "coca_for_generation"])
def test_label_smoothing_predicts_the_next_token(name):
    model = tiny_model(name)
    inputs = task_inputs(TASKS["captions"], model)
    with torch.no_grad():
        outputs = model(**inputs)
    labels = inputs["labels"][:, 1:]
    log_probs = outputs.logits[:, :-1].log_softmax(-1)[labels != -100]
    for smoothing in (1e-6, 0.1):
        loss = make_trainer(model, inputs, label_smoothing_factor=smoothing).evaluate()["eval_loss"]
        expected = (1 - smoothing) * outputs.loss - smoothing * log_probs.mean()
        assert loss == pytest.approx(expected.item(), rel=1e-4)


def test_evaluation_without_labels_gives_the_contrastive_loss():
    model = tiny_model("coca")
    inputs = tiny_inputs(model)
    with torch.no_grad():
        expected = model(**inputs, return_loss=True).loss.item()
    metrics = make_trainer(model, inputs, return_loss=True, label_names=[]).evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_label_smoothing_says_that_it_leaves_out_the_contrastive_loss(warnings_of_transformers):
    model = tiny_model("coca")
    inputs = task_inputs(TASKS["captions"], model)
    make_trainer(model, inputs, return_loss=True, label_smoothing_factor=0.1).evaluate()
    assert "leaves out the contrastive loss" in warnings_of_transformers.text


@pytest.mark.parametrize("return_loss", [False, True], ids=["captions", "captions_and_pairs"])
def test_evaluation_with_generate_captions_the_images(return_loss):
    model = tiny_model("coca")
    inputs = task_inputs(TASKS["captions"], model)
    trainer = make_trainer(
        model, inputs, return_loss, predict_with_generate=True, generation_max_length=8, label_names=["labels"]
    )
    outputs = trainer.predict(trainer.eval_dataset)
    with torch.no_grad():
        expected = model(**inputs, return_loss=return_loss).loss.item()
    assert outputs.metrics["test_loss"] == pytest.approx(expected, rel=1e-5)
    captions = model.generate(pixel_values=inputs["pixel_values"], max_length=8)
    assert outputs.predictions[:, : captions.shape[1]].tolist() == captions.tolist()
