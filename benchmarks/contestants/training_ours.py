"""Training by this package, with whole batches and with parts of them."""

import open_clip_transformers  # noqa: F401  registers the models
from contestants.training_common import TrainerSteps
from open_clip_transformers.training.trainer import ContrastiveTrainer, ContrastiveTrainingArguments


class Ours(TrainerSteps):
    """`ContrastiveTrainer`."""

    trainer_class = ContrastiveTrainer
    arguments_class = ContrastiveTrainingArguments


class OursMiniBatches(Ours):
    """With the activations of an eighth of the batch at once."""

    def arguments(self, settings: dict) -> dict:
        return {"mini_batch_size": max(1, settings["batch"] // 8)}


CONTESTANTS = {"ours": Ours, "ours_mini_batches": OursMiniBatches}
