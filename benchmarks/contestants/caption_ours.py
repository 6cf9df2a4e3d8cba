"""Captions by this package: as it is loaded, optimised, and compiled around a static cache."""

from pathlib import Path

import torch

import open_clip_transformers  # noqa: F401  registers the models
from contestants.caption_common import EOS, captions
from contestants.model_bounds import caption_bound, meta_model
from contestants.model_inputs import pixel_values
from contestants.optimized import optimize
from contestants.transformers_models import load
from contestants.weights import weights_folder


# What open_clip's `generate` does by these names.
STRATEGIES = {
    "beams": {"num_beams": 6, "num_beam_groups": 3},
    "greedy": {"forced_eos_token_id": EOS},
    "top_p": {"forced_eos_token_id": EOS, "do_sample": True, "top_p": 0.1, "top_k": 0},
}


class Ours:
    """`generate` without an end of text before the last token."""

    def __init__(self, settings: dict, folder: Path):
        self.settings = settings
        self.path = weights_folder("ours", settings, folder)
        self.model = load(self.path, settings["dtype"], settings["device"])
        self.pixel_values = pixel_values(settings)
        self.arguments = {
            **STRATEGIES[settings["strategy"]],
            "max_length": settings["length"],
            "min_length": settings["length"] - 1,
        }

    def run(self) -> torch.Tensor:
        return self.model.generate(pixel_values=self.pixel_values, **self.arguments)

    def outputs(self) -> list | None:
        return captions(self.result, self.settings)

    def bound(self) -> list[dict]:
        return caption_bound(meta_model(self.path), self.settings)


class OursOptimized(Ours):
    """Optimised for inference."""

    def __init__(self, settings: dict, folder: Path):
        super().__init__(settings, folder)
        optimize(self.model)


class OursCompiled(Ours):
    """With a cache of fixed length, and the decoding step compiled; on a CPU with packed and merged weights."""

    def __init__(self, settings: dict, folder: Path):
        super().__init__(settings, folder)
        torch.compiler.reset()
        self.model.compile(mode="reduce-overhead" if settings["device"] == "cuda" else None)
        self.arguments["cache_implementation"] = "static"
        on_cpu = settings["device"] == "cpu"
        with torch._inductor.config.patch({"freezing": on_cpu, "cpp.enable_concat_linear": on_cpu}):
            self.run()


CONTESTANTS = {"ours": Ours, "ours_optimized": OursOptimized, "ours_compiled": OursCompiled}
