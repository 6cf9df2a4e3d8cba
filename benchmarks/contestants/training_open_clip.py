"""Training of open_clip's model with its loss."""

from pathlib import Path

import open_clip
import torch

from contestants.open_clip_models import load
from contestants.training_common import MeasuredSteps, batch
from contestants.weights import weights_folder


class OpenClip(MeasuredSteps):
    """Model, `ClipLoss`, AdamW."""

    optimizer: torch.optim.Optimizer | None = None

    def __init__(self, settings: dict, folder: Path):
        self.settings = settings
        self.model = load(weights_folder("open_clip", settings, folder), "float32", settings["device"]).train()
        self.loss = open_clip.ClipLoss()
        columns = batch(settings)
        self.inputs = columns["pixel_values"], columns["input_ids"]

    def run(self) -> torch.Tensor:
        device, dtype = self.settings["device"], getattr(torch, self.settings["dtype"])
        self.optimizer = self.optimizer or torch.optim.AdamW(self.model.parameters(), lr=0.0)
        for _ in range(self.settings["steps"]):
            images, texts = (tensor.to(device) for tensor in self.inputs)
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                loss = self.loss(*self.model(images, texts)[:3])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)  # as Trainer does by default
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.detach()

    def outputs(self) -> list[float]:
        """The loss of the last step."""
        return [self.result.item()]


CONTESTANTS = {"open_clip": OpenClip}
