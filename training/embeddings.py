"""Embeddings of images and of texts alone, for whatever compares them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BatchFeature, PreTrainedModel, PreTrainedTokenizerBase

from ..configuration.errors import UserError


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model that may be training in eval mode, in which it drops nothing, and each module back behind it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.inference_mode()
def embed_images(model: PreTrainedModel, images: torch.Tensor | Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Embed images as float32 (images, projection_dim), of length 1.

    Args:
        model: a dual model or a captioner.
        images: what the image processor gives, or `pixel_values` (images, channels, height, width) alone.

    Raises:
        ValueError: the model does not pool.
    """
    images = {"pixel_values": images} if isinstance(images, torch.Tensor) else images
    with eval_mode(model):
        features = model.get_image_features(**BatchFeature(images).to(model.device, model.dtype)).pooler_output
    return F.normalize(_pooled(features).float(), dim=-1)


@torch.inference_mode()
def embed_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int,
    warn: Callable[[str], object] | None = None,
) -> torch.Tensor:
    """Embed texts as float32 (texts, projection_dim), of length 1, on the CPU, each as far as the context length.

    Args:
        batch_size: texts that the model works on at once.
        warn: is told how many texts were cut, if any.

    Raises:
        ValueError: the model does not pool.
    """
    lengths = token_counts(tokenizer, texts, warn)
    # Texts of like length side by side need little padding, where the model does not need it.
    padding = "longest" if model.text_model.ignores_padding else "max_length"
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    embeds = []
    for start in range(0, len(texts), batch_size):
        batch = [texts[index] for index in order[start : start + batch_size]]
        inputs = tokenizer(batch, padding=padding, return_tensors="pt").to(model.device)
        with eval_mode(model):
            features = model.get_text_features(**inputs).pooler_output
        embeds.append(F.normalize(_pooled(features).float(), dim=-1).cpu())
    return torch.cat(embeds)[torch.tensor(order).argsort()]


def token_counts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], warn: Callable[[str], object] | None = None
) -> list[int]:
    """Count the tokens of each text before it is cut; `warn` is told how many texts will be, if any."""
    limit = tokenizer.model_max_length
    lengths = [len(ids) for ids in tokenizer(list(texts), truncation=False, padding=False, verbose=False).input_ids]
    if warn is not None and (too_long := sum(length > limit for length in lengths)):
        warn(f"{too_long} of {len(texts)} texts were cut to the model's {limit} tokens.")
    return lengths


def _pooled(features: torch.Tensor) -> torch.Tensor:
    """Return the features, once it is clear that there is one vector for each input."""
    if features.ndim != 2:
        raise UserError(f"This model does not pool: its embeddings have the shape {tuple(features.shape)}.")
    return features
