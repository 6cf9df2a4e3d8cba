"""Losses and gradients of a converted model and of open_clip's, on the same fixed inputs (open_clip: `loss.py`).

Both models are in eval mode: nothing is dropped out, and batch norms use their running statistics.
"""

from collections.abc import Iterator

import torch
from torch.nn import functional as F
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .mapping.state_dict import resolve
from .rename_table import rename_table
from .verify.reference import text_prefix
from .verify.values import Inputs


Losses = dict[str, torch.Tensor]
IGNORED = -100


def open_clip_losses(model: torch.nn.Module, inputs: Inputs, config: PreTrainedConfig) -> Losses:
    """Losses of open_clip's model, the last of which is the one to train on.

    Args:
        model: open_clip's model.
        inputs: images and their texts.
        config: our configuration of the model, which knows CoCa's weights of the losses and its padding.
    """
    from open_clip.loss import ClipLoss, CoCaLoss, SigLipLoss

    pixel_values, input_ids = inputs
    pixel_values = pixel_values.to(model.logit_scale.dtype)
    is_coca = hasattr(model, "text_decoder")
    if is_coca:
        outputs = model(pixel_values, input_ids)
        image, text = outputs["image_features"], outputs["text_features"]
    else:
        image, text = model.encode_image(pixel_values, normalize=True), model.encode_text(input_ids, normalize=True)
    if getattr(model.visual, "attn_pool_contrastive", None) is not None:
        image = image.squeeze(1)  # open_clip keeps the axis of the one contrastive query
    contrastive_loss = ClipLoss() if is_coca or model.logit_bias is None else SigLipLoss()
    losses = {"contrastive loss": contrastive_loss(image, text, model.logit_scale.exp(), model.logit_bias)}
    if is_coca:
        # Its contrastive part, switched off here, takes no bias.
        caption_loss = CoCaLoss(caption_loss_weight=1.0, clip_loss_weight=0.0, pad_id=config.pad_token_id)
        losses["caption loss"] = caption_loss(image, text, outputs["logits"], outputs["labels"], None)[1]
        weights = (config.contrastive_loss_weight, config.caption_loss_weight)
        losses["loss"] = sum(weight * loss for weight, loss in zip(weights, losses.values()))
    return losses


def our_losses(model: PreTrainedModel, inputs: Inputs) -> Losses:
    """Losses of a converted model, under the same names."""
    pixel_values, input_ids = inputs
    if not hasattr(model, "lm_head"):
        return {"contrastive loss": model(input_ids, pixel_values, return_loss=True).loss}
    labels = input_ids.masked_fill(input_ids == model.config.pad_token_id, IGNORED)
    outputs = model(input_ids, pixel_values, labels=labels, return_loss=True)
    return {
        "contrastive loss": model.contrastive_loss(outputs.logits_per_image),
        "caption loss": F.cross_entropy(outputs.logits[:, :-1].mT, labels[:, 1:], ignore_index=IGNORED),
        "loss": outputs.loss,
    }


def open_clip_gradients(model: torch.nn.Module, config: PreTrainedConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Gradients of open_clip's model under our names, or under open_clip's own where we have none."""
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    steps, unmatched = resolve(gradients, rename_table(config, text_prefix(model)), "sources")
    for step in steps:
        if all(name in gradients for name in step.sources):
            yield from zip(step.targets, step.operation.apply(tuple(gradients[name] for name in step.sources)))
    for name in unmatched:
        yield name, gradients[name]


def our_gradients(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Gradients of a converted model."""
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            yield name, weight.grad
