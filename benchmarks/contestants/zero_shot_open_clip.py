"""Zero-shot classification by open_clip."""

from pathlib import Path

import open_clip
import torch
from open_clip.transform import image_transform

from contestants.open_clip_models import load
from contestants.weights import weights_folder
from contestants.zero_shot_inputs import TEMPLATE, candidate_labels, picture


class OpenClip:
    """Its transform, tokenizer and model."""

    def __init__(self, settings: dict, folder: Path):
        path = weights_folder("open_clip", settings, folder)
        self.device, self.dtype = settings["device"], getattr(torch, settings["dtype"])
        self.model = load(path, settings["dtype"], settings["device"])
        self.transform = image_transform(self.model.visual.image_size, is_train=False)
        self.tokenizer = open_clip.get_tokenizer(f"local-dir:{path}")
        self.image, self.labels = picture(), candidate_labels(settings)

    def run(self) -> torch.Tensor:
        pixels = self.transform(self.image).unsqueeze(0).to(self.device, self.dtype)
        ids = self.tokenizer([TEMPLATE.format(label) for label in self.labels]).to(self.device)
        with torch.inference_mode():
            image_features, text_features, logit_scale = self.model(pixels, ids)
            return (logit_scale * image_features @ text_features.T).softmax(dim=-1)

    def outputs(self) -> list[float]:
        return self.result[0].tolist()


CONTESTANTS = {"open_clip": OpenClip}
