"""Towers of this package: as they are loaded, optimised, and with FlashAttention."""

from collections.abc import Callable

import torch
from harness.cells import NotRun
from transformers.utils import is_flash_attn_2_available

import open_clip_transformers  # noqa: F401  registers the models
from contestants.encoder_common import Encoder
from contestants.model_bounds import meta_model, tower_bound
from contestants.optimized import optimize
from contestants.transformers_models import load
from contestants.weights import weights_folder


class Ours(Encoder):
    """`get_image_features` and `get_text_features`."""

    optimized = False
    attention: str | None = None

    def load(self) -> Callable[[torch.Tensor], torch.Tensor]:
        path = weights_folder("ours", self.settings, self.folder)
        model = load(path, self.settings["dtype"], self.settings["device"], self.attention)
        is_image = self.settings["tower"] == "image"
        if self.optimized:
            optimize(model.vision_model if is_image else model.text_model)
        features = model.get_image_features if is_image else model.get_text_features
        return lambda inputs: features(inputs).pooler_output

    def bound(self) -> dict:
        return tower_bound(meta_model(weights_folder("ours", self.settings, self.folder)), self.settings)


class OursOptimized(Ours):
    """Optimised for inference."""

    optimized = True


class OursFlash(Ours):
    """With FlashAttention 2."""

    attention = "flash_attention_2"

    def load(self) -> Callable[[torch.Tensor], torch.Tensor]:
        if not is_flash_attn_2_available():
            raise NotRun("flash-attn is not installed")
        return super().load()


CONTESTANTS = {"ours": Ours, "ours_optimized": OursOptimized, "ours_flash": OursFlash}
