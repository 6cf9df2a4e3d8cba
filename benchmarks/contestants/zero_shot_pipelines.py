"""The zero-shot pipeline of transformers, with our models and with its own."""

from functools import lru_cache
from pathlib import Path

from transformers import ZeroShotImageClassificationPipeline, pipeline

import open_clip_transformers  # noqa: F401  registers the models
from contestants.optimized import optimize
from contestants.weights import weights_folder
from contestants.zero_shot_inputs import candidate_labels, picture


@lru_cache(maxsize=1)
def load(path: Path, dtype: str, device: str) -> ZeroShotImageClassificationPipeline:
    """Load the pipeline of a folder; the last one is kept for the cells that follow."""
    return pipeline("zero-shot-image-classification", model=str(path), dtype=dtype, device=device)


class ZeroShot:
    """A call of the pipeline."""

    form: str

    def __init__(self, settings: dict, folder: Path):
        path = weights_folder(self.form, settings, folder)
        self.pipeline = load(path, settings["dtype"], settings["device"])
        self.image, self.labels = picture(), candidate_labels(settings)

    def run(self) -> list[dict]:
        return self.pipeline(self.image, candidate_labels=self.labels)

    def outputs(self) -> list[float]:
        """Scores in the order of the labels."""
        scores = {each["label"]: each["score"] for each in self.result}
        return [scores[label] for label in self.labels]


class Ours(ZeroShot):
    """A converted folder."""

    form = "ours"


class OursOptimized(Ours):
    """Optimised for inference."""

    def __init__(self, settings: dict, folder: Path):
        super().__init__(settings, folder)
        optimize(self.pipeline.model)


class Transformers(ZeroShot):
    """The same weights converted to CLIPModel."""

    form = "transformers"


CONTESTANTS = {"ours": Ours, "ours_optimized": OursOptimized, "transformers": Transformers}
