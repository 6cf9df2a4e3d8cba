"""Attention maps of captions over the image, and similarity maps of texts for any dual model.

open_clip has nothing like it; what is averaged and multiplied here are the weights of its `MultimodalTransformer` and
`AttentionalPooler` (`transformer.py`).
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase


def _require_weights(module: nn.Module):
    if module.config._attn_implementation != "eager":
        raise ValueError(
            f"Attention weights are needed, which attn_implementation={module.config._attn_implementation!r} does not "
            'give: load the model with attn_implementation="eager", or call model.set_attn_implementation("eager").'
        )


def _encode(
    tower: PreTrainedModel, pixel_values: torch.Tensor, interpolate_pos_encoding: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Image tokens (images, tokens, token_dim), and the attention weights (images, tokens, keys) that pooled them,
    averaged over heads, or `None` where nothing pools."""
    pooler, weights = getattr(tower, "attn_pool", None), []
    if pooler is None:
        return tower(pixel_values, interpolate_pos_encoding).last_hidden_state, None
    _require_weights(pooler.attention)
    hook = pooler.attention.register_forward_hook(lambda module, args, outputs: weights.append(outputs[1]))
    try:
        tokens = tower(pixel_values, interpolate_pos_encoding).last_hidden_state
    finally:
        hook.remove()
    # The first query may be pooled for the embedding; the decoder gets those behind it.
    return tokens, weights[0].float().mean(dim=1)[:, -tokens.shape[1] :]


@torch.no_grad()
def caption_attention(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    interpolate_pos_encoding: bool = False,
) -> torch.Tensor:
    """Compute the attention over the image with which a captioner predicts each token of captions.

    The weights of the decoder's cross-attention at the token before, averaged over layers and heads, are multiplied
    with those of the attentional pooler, averaged over heads, which lead from its queries back to the patches. A tower
    without a pooler hands on the patches themselves. The share of a class token is left out.

    Args:
        model: a [`CoCaModel`] or [`MaMMUTModel`] with `attn_implementation="eager"`.
        pixel_values: (images, channels, height, width), normalised as the image processor does.
        input_ids: (captions, length) as `generate` returns them, the start of text first. The number of captions is a
            multiple of the number of images, those of an image side by side.
        interpolate_pos_encoding: accept other image sizes than the model's.

    Returns:
        (captions, length - 1, rows, columns) in fp32, for every token but the first; each map adds up to 1.

    Raises:
        ValueError: the attention gives no weights, the model has no decoder, or the tower has no grid of patches.
    """
    tower, decoder = model.vision_model, getattr(model, "multimodal_decoder", None)
    if decoder is None:
        raise ValueError(
            f"{type(model).__name__} writes no captions: load a CoCa or a MaMMUT, or use patch_similarity for texts."
        )
    if not hasattr(tower, "patch_grid"):
        raise ValueError(
            f"Where in the image the tokens of a tower of type {tower.config.model_type!r} come from is not known."
        )
    _require_weights(decoder)
    tokens, pooling = _encode(tower, pixel_values, interpolate_pos_encoding)
    outputs = model(input_ids[:, :-1], image_hidden_states=tokens, output_attentions=True)
    weights = sum(layer.float().mean(dim=1) for layer in outputs.cross_attentions) / len(outputs.cross_attentions)
    if pooling is not None:
        weights = weights @ pooling.repeat_interleave(len(weights) // len(pooling), dim=0)
    rows, columns = tower.patch_grid(pixel_values)
    weights = weights[..., -rows * columns :]
    return (weights / weights.sum(dim=-1, keepdim=True)).unflatten(-1, (rows, columns))


def group_words(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> list[tuple[str, list[int]]]:
    """Split a text into words, each with the indices of its tokens; special tokens are left out.

    Args:
        tokenizer: decides what a token adds to the text, and thereby where words end.
        token_ids: ids as `generate` returns them.
    """
    words, members, before = [], [], ""
    for index in range(len(token_ids)):
        text = tokenizer.decode(token_ids[: index + 1], skip_special_tokens=True)
        if text != before:
            words, before = text.split(), text
            if members and len(words) <= len(members):
                members[-1].append(index)
            members += [[index] for _ in range(len(words) - len(members))]
            # A token may join words, as the second half of "don't" does.
            while len(members) > max(len(words), 1):
                members[-2:] = [members[-2] + members[-1]]
    return list(zip(words, members))


def word_attention(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    interpolate_pos_encoding: bool = False,
) -> list[list[tuple[str, torch.Tensor]]]:
    """Average [`caption_attention`] over the tokens of each word of captions.

    Takes the arguments of [`caption_attention`] and the tokenizer.

    Returns:
        For each caption its words, each with a map (rows, columns) in fp32 that adds up to 1.
    """
    maps = caption_attention(model, pixel_values, input_ids, interpolate_pos_encoding)
    return [
        [(word, row[[index - 1 for index in indices]].mean(dim=0)) for word, indices in group_words(tokenizer, ids)]
        for row, ids in zip(maps, input_ids.tolist())
    ]


def _pools_class_token(config: PreTrainedConfig) -> bool:
    return getattr(config, "pool_type", None) in ("tok", "token") and not getattr(config, "attentional_pool", False)


@torch.no_grad()
def patch_similarity(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    interpolate_pos_encoding: bool = False,
    last_attention: bool | None = None,
) -> torch.Tensor:
    """Compute the similarity of each patch of images to texts, by [`OpenClipModel.get_patch_features`].

    Args:
        model: a dual model or a captioner.
        pixel_values: (images, channels, height, width), normalised as the image processor does.
        input_ids: (texts, length).
        attention_mask: (texts, length), as for `get_text_features`.
        interpolate_pos_encoding: accept other image sizes than the model's.
        last_attention: as for `get_patch_features`; by default `False` where the tower pools by its class token.

    Returns:
        (images, texts, rows, columns), cosines in fp32.

    Raises:
        ValueError: the tower has no patches that can be embedded, or the texts are not pooled.
    """
    if last_attention is None:
        last_attention = not _pools_class_token(model.config.vision_config)
    patches = model.get_patch_features(pixel_values, interpolate_pos_encoding, last_attention)
    texts = model.get_text_features(input_ids, attention_mask).pooler_output
    if texts.ndim != 2:
        raise ValueError(f"The text tower does not pool: its embeddings have the shape {tuple(texts.shape)}.")
    patches, texts = (F.normalize(features.float(), dim=-1) for features in (patches, texts.to(patches.device)))
    return torch.einsum("ihwd,td->ithw", patches, texts)


__all__ = ["caption_attention", "group_words", "patch_similarity", "word_attention"]
