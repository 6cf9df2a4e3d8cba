"""Greedy captions of CoCa in both libraries.

open_clip's own `generate` needs transformers older than 5. The loop here takes the most probable word of its forward
pass until the text ends, which is what greedy decoding is.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .verify.report import Check


# Longest caption that is compared, in tokens: each costs open_clip a pass over all tokens before it.
MAX_LENGTH = 20
# In place of an id, behind the end of a text.
NOTHING = -1


@dataclass(frozen=True)
class CaptionIds:
    """What captions are made with.

    Args:
        start: id of the first token.
        end: id of the last, `None` where it is not known.
        max_length: longest caption that the model takes, in tokens.
    """

    start: int
    end: int | None
    max_length: int

    @classmethod
    def of(cls, config: PreTrainedConfig, default: PreTrainedConfig | None = None) -> "CaptionIds":
        """Those of our configuration, or of another one where it does not know them."""
        start, end = (
            getattr(default, name, None) if getattr(config, name) is None else getattr(config, name)
            for name in ("bos_token_id", "eos_token_id")
        )
        # Any first token will do, as long as it is the same.
        return cls(1 if start is None else start, end, min(MAX_LENGTH, config.max_position_embeddings))

    def first(self, images: int) -> torch.Tensor:
        return torch.full((images, 1), self.start)

    def is_end(self, input_ids: torch.Tensor) -> torch.Tensor:
        return input_ids == (NOTHING if self.end is None else self.end)

    def finished(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(images, length) -> (images, max_length), with `NOTHING` behind the end of each text."""
        is_end = self.is_end(input_ids)
        input_ids = input_ids.masked_fill(is_end.cumsum(1) > is_end.int(), NOTHING)
        return F.pad(input_ids, (0, self.max_length - input_ids.shape[1]), value=NOTHING)


@torch.no_grad()
def open_clip_captions(model: torch.nn.Module, pixel_values: torch.Tensor, ids: CaptionIds) -> torch.Tensor:
    """Captions of open_clip's model, (images, max_length), `NOTHING` behind their end."""
    image_latent, image_tokens = model._encode_image(pixel_values)
    input_ids = ids.first(len(pixel_values))
    while input_ids.shape[1] < ids.max_length and not ids.is_end(input_ids).any(dim=1).all():
        logits = model(pixel_values, input_ids, image_latent, image_tokens, output_labels=False)["logits"]
        input_ids = torch.cat([input_ids, logits[:, -1:].argmax(dim=-1)], dim=1)
    return ids.finished(input_ids)


def our_captions(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Captions of a converted model, in the same form."""
    ids = CaptionIds.of(model.config)
    input_ids = model.generate(
        pixel_values=pixel_values,
        input_ids=ids.first(len(pixel_values)),
        max_length=ids.max_length,
        num_beams=1,
        do_sample=False,
    )
    return ids.finished(input_ids)


def captions_check(theirs: torch.Tensor, ours: torch.Tensor) -> Check:
    """Compares captions of the same images."""
    wrong = (theirs != ours).any(dim=1).nonzero().flatten().tolist()
    detail = "; ".join(f"image {i}: {theirs[i].tolist()} became {ours[i].tolist()}" for i in wrong[:1])
    return Check("captions", f"{len(theirs)} captions", len(wrong), 0, "float32", detail)
