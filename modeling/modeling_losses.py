"""Contrastive losses within one batch (open_clip: `ClipLoss` and `SigLipLoss` in `loss.py`)."""

import torch
from torch.nn import functional as F


def softmax_contrastive_loss(logits_per_image: torch.Tensor) -> torch.Tensor:
    """CLIP's loss (https://arxiv.org/abs/2103.00020): matching pairs on the diagonal, mean of both directions.

    Args:
        logits_per_image: (batch, batch), scaled similarities.
    """
    labels = torch.arange(logits_per_image.shape[0], device=logits_per_image.device)
    return (F.cross_entropy(logits_per_image, labels) + F.cross_entropy(logits_per_image.T, labels)) / 2


def sigmoid_contrastive_loss(logits_per_image: torch.Tensor) -> torch.Tensor:
    """SigLIP's loss (https://arxiv.org/abs/2303.15343): each pair matches or not, sum over pairs per image.

    Args:
        logits_per_image: (batch, batch), scaled and biased similarities.
    """
    signs = 2 * torch.eye(logits_per_image.shape[0], device=logits_per_image.device) - 1
    return -F.logsigmoid(signs * logits_per_image).sum() / logits_per_image.shape[0]
