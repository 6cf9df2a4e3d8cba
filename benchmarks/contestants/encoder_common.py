"""One tower of a model, called as its users do; contestants differ in how they load it."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from contestants.model_inputs import input_ids, pixel_values
from contestants.weights import weights_folder


# By device; on GPUs with CUDA graphs.
COMPILE_MODES = {"cpu": "default", "cuda": "reduce-overhead"}


class Encoder:
    """Images or texts to features, in inference mode."""

    def __init__(self, settings: dict, folder: Path):
        self.settings, self.folder = settings, folder
        self.inputs = pixel_values(settings) if settings["tower"] == "image" else input_ids(settings)
        self.encode = self.load()
        if settings["compiled"]:
            # Code compiled for another cell would make shapes dynamic.
            torch.compiler.reset()
            self.encode = torch.compile(self.encode, mode=COMPILE_MODES[settings["device"]])
            self.run()

    def load(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the function from inputs to features (rows, projection_dim), not normalised."""
        raise NotImplementedError

    def run(self) -> torch.Tensor:
        with torch.inference_mode():
            return self.encode(self.inputs)

    def outputs(self) -> list[float]:
        """The features of the first row."""
        return self.result[0].tolist()

    def figures(self) -> dict:
        """In lower precision, the error of the first row against open_clip's in fp32."""
        if self.settings["dtype"] == "float32":
            return {}
        reference = load_file(weights_folder("features", self.settings, self.folder) / "features.safetensors")
        expected = reference[self.settings["tower"]][0]
        error = (self.result[0].float().cpu() - expected).abs().max() / expected.abs().max()
        return {"error against fp32": error.item()}
