"""The transform and the tokenizers of open_clip."""

from collections.abc import Callable

import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torchvision.transforms.functional import to_pil_image

from contestants.processing_common import Images, Texts, by_task, open_clip_pixels
from contestants.processing_inputs import siglip_folder


class OpenClipImages(Images):
    def load(self) -> Callable[[list | torch.Tensor], torch.Tensor]:
        if self.settings["form"] in ("tensor", "stacked"):
            return lambda images: self._on_device(open_clip_pixels([to_pil_image(image) for image in images]))
        return lambda images: self._on_device(open_clip_pixels(images))

    def _on_device(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.to(self.settings["device"])


class OpenClipTexts(Texts):
    def load(self) -> Callable[[str | list[str]], torch.Tensor]:
        if self.settings["tokenizer"] == "clip":
            return SimpleTokenizer()
        return HFTokenizer(str(siglip_folder(self.folder)), self.context_length, clean="canonicalize")


CONTESTANTS = {"open_clip": by_task(OpenClipImages, OpenClipTexts)}
