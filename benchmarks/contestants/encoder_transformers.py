"""Towers of transformers' own CLIPModel and SiglipModel, with the same weights."""

from collections.abc import Callable

import torch

from contestants.encoder_common import Encoder
from contestants.transformers_models import load
from contestants.weights import weights_folder


class Transformers(Encoder):
    """`get_image_features` and `get_text_features`."""

    def load(self) -> Callable[[torch.Tensor], torch.Tensor]:
        path = weights_folder("transformers", self.settings, self.folder)
        model = load(path, self.settings["dtype"], self.settings["device"])
        features = model.get_image_features if self.settings["tower"] == "image" else model.get_text_features
        return lambda inputs: features(inputs).pooler_output


CONTESTANTS = {"transformers": Transformers}
