"""The image processors and the tokenizer of this package."""

from collections.abc import Callable

import torch

from contestants.processing_common import Images, Texts, by_task
from contestants.processing_inputs import siglip_folder
from open_clip_transformers import OpenClipImageProcessor, OpenClipImageProcessorPil, OpenClipTokenizer


class OursImages(Images):
    """On Pillow, or on torchvision where the cell says so."""

    def load(self) -> Callable[[list | torch.Tensor], torch.Tensor]:
        if not self.settings["on_torchvision"]:
            processor = OpenClipImageProcessorPil()
            return lambda images: processor(images, return_tensors="pt").pixel_values
        processor, device = OpenClipImageProcessor(), self.settings["device"]
        return lambda images: processor(images, return_tensors="pt", device=device).pixel_values


class OursTexts(Texts):
    def load(self) -> Callable[[str | list[str]], torch.Tensor]:
        tokenizer = OpenClipTokenizer()
        if self.settings["tokenizer"] == "siglip":
            tokenizer = OpenClipTokenizer.from_hf_tokenizer(
                siglip_folder(self.folder), context_length=self.context_length, clean="canonicalize"
            )
        return lambda texts: tokenizer(texts, return_tensors="pt").input_ids


CONTESTANTS = {"ours": by_task(OursImages, OursTexts)}
