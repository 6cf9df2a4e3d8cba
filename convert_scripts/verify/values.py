"""Outputs of a converted model and of open_clip's, on the same fixed inputs."""

import math
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from ...configuration.configuration_common import height_and_width
from ..common import ConversionError


# Largest accepted difference in fp32, relative to the largest value of the reference.
BOUND = 2e-5

Outputs = dict[str, torch.Tensor]
# `pixel_values` and `input_ids` of the same number of images and texts.
Inputs = tuple[torch.Tensor, torch.Tensor]


def verification_inputs(config: PreTrainedConfig, pairs: int = 2) -> Inputs:
    """Fixed inputs for a model: `pixel_values` (pairs, 3, height, width) and `input_ids` (pairs, text length).

    Images are noise, from the coarsest to the finest: noise of one kind is all alike to a model. The first text is as
    long as the model takes, the last half as long and the others in between, so that padding is in the picture.
    """
    generator = torch.Generator().manual_seed(0)
    vision, text = config.vision_config, config.text_config
    size = height_and_width(vision.image_size)
    grids = [*((2 << i, 2 << i) for i in range(pairs - 1)), size]
    noise = [torch.randn(1, 3, *grid, generator=generator) for grid in grids]
    pixel_values = torch.cat([F.interpolate(image, size, mode="bilinear") for image in noise])
    # CoCa's decoder may take shorter texts than its text tower, and know fewer words.
    length = getattr(config, "max_position_embeddings", text.max_position_embeddings)
    vocab_size = min(getattr(config, "vocab_size", text.vocab_size), text.vocab_size)
    end = text.eos_token_id if getattr(text, "pool_type", None) == "eos" else vocab_size - 1
    padding = 0 if text.pad_token_id is None else text.pad_token_id
    words = [token for token in range(vocab_size) if token not in (end, padding)]
    input_ids = torch.tensor(words)[torch.randint(len(words), (pairs, length), generator=generator)]
    for row, last in zip(input_ids, torch.linspace(length - 1, length // 2, pairs).long()):
        row[last] = end
        row[last + 1 :] = padding
    return pixel_values, input_ids


def open_clip_outputs(model: torch.nn.Module, inputs: Inputs) -> Outputs:
    """Outputs of open_clip's model, in its dtype.

    Raises:
        Exception: open_clip cannot run it.
    """
    pixel_values, input_ids = inputs
    pixel_values = pixel_values.to(model.logit_scale.dtype)
    if hasattr(model, "text_decoder"):
        (image_features, image_tokens), (text_features, text_tokens) = (
            model.visual(pixel_values),
            model.text(input_ids),
        )
        outputs = {
            "image features": image_features,
            "text features": text_features,
            "caption logits": model.text_decoder(image_tokens, text_tokens),
        }
    else:
        outputs = {"image features": model.encode_image(pixel_values), "text features": model.encode_text(input_ids)}
    if getattr(model.visual, "attn_pool_contrastive", None) is not None:
        # open_clip keeps the axis of the one contrastive query.
        outputs["image features"] = outputs["image features"].squeeze(1)
    if is_comparable(outputs):
        image, text = (F.normalize(outputs[name], dim=-1) for name in ("image features", "text features"))
        logits = model.logit_scale.exp() * image @ text.T
        outputs["logits"] = logits if model.logit_bias is None else logits + model.logit_bias
    return outputs


def load_converted(folder: Path, model_class: type[PreTrainedModel], dtype: torch.dtype) -> PreTrainedModel:
    """The model of a converted folder, in eval mode. Raises `ConversionError` where it does not load as a whole."""
    model, info = model_class.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    problems = {what: keys for what, keys in info.items() if keys}
    if problems:
        raise ConversionError(f"The converted model does not load as a whole: {problems}")
    return model


def our_outputs(model: PreTrainedModel, inputs: Inputs) -> Outputs:
    """Outputs of a converted model, in its dtype."""
    pixel_values, input_ids = inputs
    vision_outputs = model.get_image_features(pixel_values)
    outputs = {
        "image features": vision_outputs.pooler_output,
        "text features": model.get_text_features(input_ids).pooler_output,
    }
    if hasattr(model, "lm_head"):
        outputs["caption logits"] = model(input_ids, image_hidden_states=vision_outputs.last_hidden_state).logits
    if is_comparable(outputs):
        image, text = (F.normalize(outputs[name], dim=-1) for name in ("image features", "text features"))
        outputs["logits"] = model.compute_logits(image, text)
    return outputs


def is_comparable(outputs: Outputs) -> bool:
    """Whether images and texts have one vector each; with `pool_type="none"` they have one for each token."""
    return outputs["image features"].ndim == outputs["text features"].ndim == 2


def relative_difference(ours: torch.Tensor, reference: torch.Tensor, smallest: float = 0.0) -> float:
    """max|ours - reference| / max|reference|; infinite where the shapes differ, or values are not finite.

    `smallest` is taken where all of the reference is smaller.
    """
    if ours.shape != reference.shape:
        return float("inf")
    if ours.numel() == 0:
        return 0.0
    difference, largest = (ours.float() - reference.float()).abs().max(), reference.float().abs().max()
    relative = (difference / largest.clamp(min=smallest)).item() if difference else 0.0
    return float("inf") if math.isnan(relative) else relative
