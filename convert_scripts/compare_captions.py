"""Greedy captions of CoCa in both libraries.

open_clip's own `generate` needs transformers older than 5. The loop here takes the most probable word of its forward
pass until the text ends, which is what greedy decoding is.
"""

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .verification_report import Check


# Longest caption that is compared, in tokens: each costs open_clip a pass over all tokens before it.
MAX_LENGTH = 20
NOTHING = -1


def _start(config: PreTrainedConfig, images: int) -> torch.Tensor:
    # Where the tokenizer is not known, any token will do.
    return torch.full((images, 1), 1 if config.bos_token_id is None else config.bos_token_id)


def _finished(input_ids: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """(images, length) -> (images, longest), with `NOTHING` behind the end of each text."""
    length = min(MAX_LENGTH, config.max_position_embeddings)
    is_end = _is_end(input_ids, config)
    input_ids = input_ids.masked_fill(is_end.cumsum(1) > is_end.int(), NOTHING)
    return torch.nn.functional.pad(input_ids, (0, length - input_ids.shape[1]), value=NOTHING)


def _is_end(input_ids: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    return input_ids == (NOTHING if config.eos_token_id is None else config.eos_token_id)


@torch.no_grad()
def open_clip_captions(model: torch.nn.Module, pixel_values: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """Captions of open_clip's model, (images, `MAX_LENGTH` or the model's length), -1 behind their end.

    Args:
        model: open_clip's model.
        pixel_values: (images, channels, height, width).
        config: our configuration, which knows the first and the last token.
    """
    image_latent, image_tokens = model._encode_image(pixel_values)
    input_ids = _start(config, len(pixel_values))
    for _ in range(min(MAX_LENGTH, config.max_position_embeddings) - 1):
        logits = model(pixel_values, input_ids, image_latent, image_tokens, output_labels=False)["logits"]
        input_ids = torch.cat([input_ids, logits[:, -1:].argmax(dim=-1)], dim=1)
        if _is_end(input_ids, config).any(dim=1).all():
            break
    return _finished(input_ids, config)


def our_captions(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Captions of a converted model, in the same form."""
    config = model.config
    input_ids = model.generate(
        pixel_values=pixel_values,
        input_ids=_start(config, len(pixel_values)),
        max_length=min(MAX_LENGTH, config.max_position_embeddings),
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        num_beams=1,
        do_sample=False,
    )
    return _finished(input_ids, config)


def captions_check(theirs: torch.Tensor, ours: torch.Tensor) -> Check:
    """Compares captions of the same images."""
    wrong = (theirs != ours).any(dim=1).nonzero().flatten().tolist()
    detail = "; ".join(f"image {i}: {theirs[i].tolist()} became {ours[i].tolist()}" for i in wrong[:1])
    return Check("captions", f"{len(theirs)} captions", len(wrong), 0, "float32", detail)
