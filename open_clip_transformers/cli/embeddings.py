"""Embeddings of images and texts, for the commands that need no decoder."""

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, ProcessorMixin

from .messages import UsageError, warn


@torch.inference_mode()
def embed_images(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Embed pixels (images, channels, height, width) as float32 (images, projection_dim), of length 1."""
    features = model.get_image_features(pixel_values.to(model.device, model.dtype)).pooler_output
    return F.normalize(_pooled(features).float(), dim=-1)


@torch.inference_mode()
def embed_texts(model: PreTrainedModel, processor: ProcessorMixin, texts: list[str], batch_size: int) -> torch.Tensor:
    """Embed texts as float32 (texts, projection_dim), of length 1, on the CPU.

    Says how many texts were cut to the context length.
    """
    limit = processor.tokenizer.model_max_length
    if too_long := sum(length > limit for length in _count_tokens(processor, texts)):
        warn(f"{too_long} of {len(texts)} texts were cut to the model's {limit} tokens.")
    return embed_cut_texts(model, processor, texts, batch_size).cpu()


def _count_tokens(processor: ProcessorMixin, texts: list[str]) -> list[int]:
    return [len(ids) for ids in processor.tokenizer(texts, truncation=False, padding=False, verbose=False).input_ids]


@torch.inference_mode()
def embed_cut_texts(
    model: PreTrainedModel, processor: ProcessorMixin, texts: list[str], batch_size: int
) -> torch.Tensor:
    """Embed texts as float32 (texts, projection_dim), of length 1, each as far as the context length."""
    tokenizer = processor.tokenizer
    lengths = _count_tokens(processor, texts)
    # Texts of like length side by side need little padding, where the model does not need it.
    padding = "longest" if model.text_model.ignores_padding else "max_length"
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    embeds = []
    for start in range(0, len(texts), batch_size):
        batch = [texts[index] for index in order[start : start + batch_size]]
        inputs = tokenizer(batch, padding=padding, return_tensors="pt").to(model.device)
        features = model.get_text_features(**inputs).pooler_output
        embeds.append(F.normalize(_pooled(features).float(), dim=-1))
    return torch.cat(embeds)[torch.tensor(order, device=model.device).argsort()]


def _pooled(features: torch.Tensor) -> torch.Tensor:
    """Return the features, once it is clear that there is one vector for each input."""
    if features.ndim != 2:
        raise UsageError(f"This model does not pool: its embeddings have the shape {tuple(features.shape)}.")
    return features
