"""Base of the contestants of training: one batch, repeated, and a Trainer on it."""

import contextlib
import ctypes
import gc
import tempfile
import time
from pathlib import Path

import torch
from harness import machine
from transformers import AutoModelForZeroShotImageClassification, Trainer, TrainerCallback, TrainingArguments

from contestants.model_inputs import input_ids, pixel_values
from contestants.weights import weights_folder


def batch(settings: dict) -> dict[str, torch.Tensor]:
    """`pixel_values` and `input_ids` in fp32 on the CPU, as a data loader gives them."""
    settings = {**settings, "dtype": "float32", "device": "cpu"}
    return {"pixel_values": pixel_values(settings), "input_ids": input_ids(settings)}


class MeasuredSteps:
    """Mixin of the training contestants: reports the memory of a step, in MB."""

    def figures(self) -> dict[str, str]:
        """The memory of a step: activations, gradients and what comes and goes, but no weights or optimizer states."""
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed is not held
        device = self.settings["device"]
        machine.reset_peak_memory(device)
        held, _ = machine.memory(device)
        self.run()
        return {"memory of a step": f"{(machine.memory(device)[1] - held) / 1e6:.0f} MB"}


class Clock(TrainerCallback):
    """Takes the time of a training from its first step on: what comes before is done once, however many follow."""

    seconds = 0.0

    def on_train_begin(self, *arguments, **keywords):
        self.start = time.perf_counter()

    def on_train_end(self, args, *arguments, **keywords):
        machine.synchronize(str(args.device))
        self.seconds = time.perf_counter() - self.start


class TrainerSteps(MeasuredSteps):
    """Some steps of a Trainer, from the same weights each time."""

    form = "ours"
    trainer_class: type[Trainer] = Trainer
    arguments_class: type[TrainingArguments] = TrainingArguments

    def __init__(self, settings: dict, folder: Path):
        self.settings = settings
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
            callbacks=[clock := Clock()],
        )
        self.clock = clock

    def arguments(self, settings: dict) -> dict:
        """More training arguments."""
        return {}

    def collate(self, rows: list[dict]) -> dict:
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def run(self) -> float:
        return self.trainer.train().training_loss

    def timed_run(self) -> float:
        """Seconds of the steps."""
        self.result = self.run()
        return self.clock.seconds

    def outputs(self) -> list[float]:
        """The mean loss."""
        return [float(self.result)]
