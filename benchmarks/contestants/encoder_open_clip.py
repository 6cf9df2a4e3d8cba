"""Towers of open_clip."""

from collections.abc import Callable

import torch

from contestants.encoder_common import Encoder
from contestants.open_clip_models import load
from contestants.weights import weights_folder


class OpenClip(Encoder):
    """`encode_image` and `encode_text`."""

    def load(self) -> Callable[[torch.Tensor], torch.Tensor]:
        path = weights_folder("open_clip", self.settings, self.folder)
        model = load(path, self.settings["dtype"], self.settings["device"])
        return model.encode_image if self.settings["tower"] == "image" else model.encode_text


CONTESTANTS = {"open_clip": OpenClip}
