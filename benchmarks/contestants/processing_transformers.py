"""The image processors and tokenizers that transformers has for CLIP and SigLIP."""

from collections.abc import Callable

import torch
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPImageProcessorPil, CLIPTokenizer

from contestants.processing_common import Images, Texts, by_task
from contestants.processing_inputs import clip_vocabulary, siglip_folder
from open_clip_transformers.processing.clip_bpe import BOS_TOKEN, EOS_TOKEN


class TransformersImages(Images):
    def load(self) -> Callable[[list | torch.Tensor], torch.Tensor]:
        processor, device = CLIPImageProcessor(), self.settings["device"]
        return lambda images: processor(images, return_tensors="pt", device=device).pixel_values


class TransformersPilImages(Images):
    def load(self) -> Callable[[list | torch.Tensor], torch.Tensor]:
        processor = CLIPImageProcessorPil()
        return lambda images: processor(images, return_tensors="pt").pixel_values


class TransformersTexts(Texts):
    def load(self) -> Callable[[str | list[str]], torch.Tensor]:
        if self.settings["tokenizer"] == "siglip":
            tokenizer = AutoTokenizer.from_pretrained(siglip_folder(self.folder))
        else:
            vocabulary, merges = clip_vocabulary()
            # Padded as open_clip's; the files of transformers' own checkpoints say another token.
            tokenizer = CLIPTokenizer(
                vocabulary, merges, bos_token=BOS_TOKEN, eos_token=EOS_TOKEN, unk_token=EOS_TOKEN, pad_token="!"
            )
        settings = {"padding": "max_length", "truncation": True, "max_length": self.context_length}
        return lambda texts: tokenizer(texts, **settings, return_tensors="pt").input_ids


CONTESTANTS = {
    "transformers": by_task(TransformersImages, TransformersTexts),
    "transformers_pil": by_task(TransformersPilImages),
}
