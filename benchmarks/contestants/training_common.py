"""Base of the contestants of training: one batch, repeated, and a Trainer on it."""

import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForZeroShotImageClassification, Trainer, TrainingArguments

from contestants.model_inputs import input_ids, pixel_values
from contestants.weights import weights_folder


def batch(settings: dict) -> dict[str, torch.Tensor]:
    """`pixel_values` and `input_ids` in fp32 on the CPU, as a data loader gives them."""
    settings = {**settings, "dtype": "float32", "device": "cpu"}
    return {"pixel_values": pixel_values(settings), "input_ids": input_ids(settings)}


class TrainerSteps:
    """Some steps of a Trainer, from the same weights each time."""

    form = "ours"
    trainer_class: type[Trainer] = Trainer
    arguments_class: type[TrainingArguments] = TrainingArguments

    def __init__(self, settings: dict, folder: Path):
        path = weights_folder(self.form, settings, folder)
        columns = batch(settings)
        rows = [{name: column[row] for name, column in columns.items()} for row in range(settings["batch"])]
        self.trainer = self.trainer_class(
            AutoModelForZeroShotImageClassification.from_pretrained(path),
            self.arguments_class(
                output_dir=tempfile.mkdtemp(dir=folder),
                per_device_train_batch_size=settings["batch"],
                max_steps=settings["steps"],
                learning_rate=0.0,
                bf16=settings["dtype"] == "bfloat16",
                use_cpu=settings["device"] == "cpu",
                logging_steps=settings["steps"],
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                dataloader_pin_memory=False,
                **self.arguments(settings),
            ),
            train_dataset=rows,  # a batch is an epoch, of all pairs in any order
            data_collator=self.collate,
        )

    def arguments(self, settings: dict) -> dict:
        """More training arguments."""
        return {}

    def collate(self, rows: list[dict]) -> dict:
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def run(self) -> float:
        return self.trainer.train().training_loss

    def outputs(self) -> list[float]:
        """The mean loss."""
        return [float(self.result)]
