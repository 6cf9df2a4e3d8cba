"""Captions by BLIP, transformers' captioner of about the same size: a ViT-B/16 and a decoder of BERT's base size.

Its weights are random and its own, so its captions are not compared.
"""

from functools import lru_cache
from pathlib import Path

import torch
from transformers import BlipConfig, BlipForConditionalGeneration

from contestants.caption_common import captions
from contestants.model_inputs import architecture, pixel_values


STRATEGIES = {"beams": {"num_beams": 6}, "greedy": {}, "top_p": {"do_sample": True, "top_p": 0.1, "top_k": 0}}
REDUCED = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


@lru_cache(maxsize=1)
def load(image_size: int, reduced: bool, dtype: str, device: str) -> torch.nn.Module:
    changes = REDUCED if reduced else {}
    config = BlipConfig(
        vision_config={"image_size": image_size, **changes},
        text_config={"encoder_hidden_size": 768, **changes},
    )
    return BlipForConditionalGeneration(config).to(device, getattr(torch, dtype)).eval()


class Blip:
    """`generate` without an end of text before the last token."""

    def __init__(self, settings: dict, folder: Path):
        self.settings = settings
        image_size = architecture(settings)["vision_cfg"]["image_size"]
        self.model = load(image_size, settings["reduced"], settings["dtype"], settings["device"])
        self.pixel_values = pixel_values(settings)
        self.arguments = {
            **STRATEGIES[settings["strategy"]],
            "max_length": settings["length"],
            "min_length": settings["length"],
        }

    def run(self) -> torch.Tensor:
        return self.model.generate(pixel_values=self.pixel_values, **self.arguments)

    def outputs(self) -> None:
        captions(self.result, self.settings)


CONTESTANTS = {"blip": Blip}
