"""Captions by open_clip, in the environment of the last transformers that its `generate` runs on."""

from pathlib import Path

import torch

from contestants.caption_common import EOS, captions
from contestants.model_inputs import pixel_values
from contestants.open_clip_models import load
from contestants.weights import weights_folder


STRATEGIES = {
    "beams": {},
    "greedy": {"generation_type": "top_k", "top_k": 1},
    "top_p": {"generation_type": "top_p"},
}


class OpenClip:
    """`generate` with its defaults, but without an end of text before the last token."""

    def __init__(self, settings: dict, folder: Path):
        self.settings = settings
        self.model = load(weights_folder("open_clip", settings, folder), settings["dtype"], settings["device"])
        self.image = pixel_values(settings)
        # The padding id 0 would end a caption where it is generated.
        self.arguments = {
            **STRATEGIES[settings["strategy"]],
            "seq_len": settings["length"],
            "min_seq_len": settings["length"] - 1,
            "pad_token_id": EOS,
        }

    def run(self) -> torch.Tensor:
        return self.model.generate(self.image, **self.arguments)

    def outputs(self) -> list | None:
        return captions(self.result, self.settings)


CONTESTANTS = {"open_clip": OpenClip}
