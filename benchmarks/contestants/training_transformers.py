"""Training of transformers' own CLIPModel in its Trainer."""

from contestants.training_common import TrainerSteps


class Transformers(TrainerSteps):
    """`Trainer` with `return_loss=True`."""

    form = "transformers"

    def collate(self, rows: list[dict]) -> dict:
        return {**super().collate(rows), "return_loss": True}


CONTESTANTS = {"transformers": Transformers}
