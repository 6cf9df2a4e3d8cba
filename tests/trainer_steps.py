"""One step of transformers' Trainer on tiny models, alone or, run as a script, as one of several processes."""

import os
import sys
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from tiny_models import PAD, tiny_inputs, tiny_model
from transformers import (
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)


SAMPLES = 8
# A contrastive loss compares the pairs of a batch: these are in every one.
PAIRS = 2


class Task(NamedTuple):
    """What a model learns: its name, fields of its configuration, and further inputs."""

    model: str
    fields: dict = {}
    labels: torch.Tensor | str | None = None
    return_loss: bool = False


NUMBERS = torch.linspace(-1, 2, SAMPLES)
TASKS = {
    "classes": Task("image_classification", {"num_labels": 3}, torch.arange(SAMPLES) % 3),
    "several_classes": Task(
        "image_classification",
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        torch.eye(3)[torch.arange(SAMPLES) % 3],
    ),
    "regression": Task("image_classification", {"num_labels": 1}, NUMBERS),
    "captions": Task("coca", labels="captions"),
    "captions_hf_text": Task("coca_hf_text", labels="captions"),
    "pairs": Task("clip", return_loss=True),
    "sigmoid_pairs": Task("siglip", return_loss=True),
    "coca_pairs": Task("coca", return_loss=True),
    "captions_and_pairs": Task("coca", labels="captions", return_loss=True),
}


class Step(NamedTuple):
    """The losses that Trainer logs, and the gradients that it follows."""

    loss: float
    eval_loss: float
    gradients: dict[str, torch.Tensor]


def task_inputs(task: Task, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A batch of all samples, with captions of different lengths."""
    inputs = tiny_inputs(model, batch=SAMPLES)
    if isinstance(task.labels, torch.Tensor):
        inputs["labels"] = task.labels
    elif task.labels:
        inputs["labels"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == PAD, -100)
    return inputs


def make_trainer(model: PreTrainedModel, inputs: dict, return_loss: bool = False, **arguments) -> Trainer:
    """A Trainer, for `predict_with_generate` a Seq2SeqTrainer, whose one step goes by the gradient of `inputs`."""
    samples = [dict(zip(inputs, values, strict=True)) for values in zip(*inputs.values(), strict=True)]

    def collate(rows: list[dict]) -> dict:
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return {**batch, "return_loss": True} if return_loss else batch

    defaults = {
        "output_dir": "unused",
        "per_device_train_batch_size": len(samples),
        "per_device_eval_batch_size": len(samples),
        "optim": "sgd",
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "max_steps": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    kinds = (Trainer, TrainingArguments), (Seq2SeqTrainer, Seq2SeqTrainingArguments)
    trainer_class, arguments_class = kinds["predict_with_generate" in arguments]
    arguments = arguments_class(**{**defaults, **arguments})
    return trainer_class(model, arguments, data_collator=collate, train_dataset=samples, eval_dataset=samples)


def train_step(name: str, accumulation: int = 1, processes: int = 1) -> Step:
    """The step of a task whose samples are shared out to batches one after the other and to processes."""
    task = TASKS[name]
    model = tiny_model(task.model, **task.fields)
    inputs = task_inputs(task, model)
    batches = accumulation * processes
    if task.return_loss:
        inputs = {key: value[:PAIRS].repeat(batches, *[1] * (value.ndim - 1)) for key, value in inputs.items()}
    samples = len(next(iter(inputs.values())))
    arguments = {
        "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": samples // batches,
        "per_device_eval_batch_size": PAIRS if task.return_loss else samples // processes,
        **({"label_names": []} if task.labels is None else {}),
    }
    # A model that was evaluated is not trained together with other processes.
    eval_loss = make_trainer(deepcopy(model), inputs, task.return_loss, **arguments).evaluate()["eval_loss"]
    trainer = make_trainer(model, inputs, task.return_loss, **arguments)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    trainer.train()
    # By this number, today 1, accelerate divides the gradients of any model once more than the loss.
    divided = trainer.accelerator.gradient_accumulation_steps
    gradients = {key: divided * (before[key] - parameter.detach()) for key, parameter in model.named_parameters()}
    loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return Step(loss, eval_loss, gradients)


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {name: train_step(name, processes=int(os.environ["WORLD_SIZE"]))._asdict() for name in sys.argv[2:]}
    if os.environ["RANK"] == "0":
        torch.save(results, Path(sys.argv[1]) / "steps.pt")
    torch.distributed.destroy_process_group()
