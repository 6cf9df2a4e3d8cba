"""Losses of the batch of a whole process group (open_clip: `loss.py`).

Pure functions of embeddings. Each rank passes its own rows and gets a scalar whose mean over the ranks is the loss of
the batch of all; DDP and FSDP average gradients alike, which then are those of one process with that batch. Logits
have this rank's rows and the columns of all ranks, as with open_clip's `local_loss`, and are computed in float32 at
least, under autocast too. `group=None` is this process alone: nothing is gathered.
"""

from collections.abc import Sequence

import torch
from torch import distributed
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from .torch_compat import all_gather_autograd


def check_rows(rows: dict[str, int], group: ProcessGroup | None = None, device: torch.device | str = "cpu"):
    """Raise `ValueError` on every rank unless there are as many rows of each kind, on this rank and on all others.

    Args:
        rows: kind, such as "images", -> number of rows on this rank.
        group: the ranks.
        device: where the group communicates.
    """
    counts = [list(rows.values())]
    if group is not None:
        counts = gather_rows(torch.tensor(counts, device=device), group).tolist()
    for rank, numbers in enumerate(counts):
        if len(set(numbers)) > 1:
            found = " and ".join(f"{number} {kind}" for kind, number in zip(rows, numbers))
            where = "" if group is None else f" on rank {rank}"
            raise ValueError(f"The loss compares pairs, got {found}{where}: pass one text an image.")
    check_even([numbers[0] for numbers in counts])


def check_even(counts: Sequence[int]):
    """Raise `ValueError` unless all ranks have as many pairs."""
    if len(set(counts)) > 1:
        raise ValueError(
            f"The loss gathers as many pairs from each rank, got {', '.join(map(str, counts))}: drop the last, "
            "smaller batch (drop_last of a data loader, dataloader_drop_last of Trainer)."
        )


def gather_rows(embeds: torch.Tensor, group: ProcessGroup | None = None) -> torch.Tensor:
    """(rows, width) of each rank -> (ranks * rows, width), in the order of ranks, with gradients to all of them."""
    return embeds if group is None else all_gather_autograd(embeds.contiguous(), gather_dim=0, group=group)


def _check_embeds(group: ProcessGroup | None, **pairs: tuple[torch.Tensor, torch.Tensor]):
    """Raise `ValueError` unless `pairs`, images' and texts' embeddings, can be compared and gathered."""
    rows = {}
    for owner, embeds in pairs.items():
        whose = "" if owner == "model" else f" of the {owner}"
        for kind, tensor in zip(("images", "texts"), embeds):
            if tensor.ndim != 2:
                raise ValueError(f"The {kind}{whose} have embeddings {tuple(tensor.shape)}, expected (pairs, width).")
            rows[f"{kind}{whose}"] = len(tensor)
        images, texts = (tensor.shape[1] for tensor in embeds)
        if images != texts:
            raise ValueError(
                f"The images{whose} have embeddings of width {images} and the texts of width {texts}: only what was "
                "projected to one width can be compared."
            )
    check_rows(rows, group, next(iter(pairs.values()))[0].device)


def _logits(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    group: ProcessGroup | None = None,
) -> torch.Tensor:
    """This rank's images by the texts of all ranks, (pairs, ranks * pairs)."""
    dtype = torch.promote_types(image_embeds.dtype, torch.float32)
    with torch.autocast(image_embeds.device.type, enabled=False):
        logits = scale * image_embeds.to(dtype) @ gather_rows(text_embeds, group).to(dtype).T
    return logits if bias is None else logits + bias


def _labels(rows: torch.Tensor, group: ProcessGroup | None) -> torch.Tensor:
    """The column that matches each row of this rank."""
    offset = 0 if group is None else group.rank() * len(rows)
    return torch.arange(len(rows), device=rows.device) + offset


def softmax_contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    group: ProcessGroup | None = None,
) -> torch.Tensor:
    """CLIP's loss (https://arxiv.org/abs/2103.00020): each image finds its text, and each text its image.

    Args:
        image_embeds: (pairs, width), of length 1.
        text_embeds: (pairs, width), of length 1, in the same order.
        scale: scalar or (1,), what similarities are multiplied by: `model.logit_scale.exp()`.
        bias: scalar or (1,), what is added to them, if anything.
        group: the ranks whose pairs are compared with one another, each with as many.

    Returns:
        scalar, the mean over this rank's pairs and both directions (open_clip: `ClipLoss`).

    Raises:
        ValueError: on every rank, images and texts of different number or width, or ranks with different numbers.
    """
    _check_embeds(group, model=(image_embeds, text_embeds))
    per_image = _logits(image_embeds, text_embeds, scale, bias, group)
    per_text = _logits(text_embeds, image_embeds, scale, bias, group)
    labels = _labels(per_image, group)
    return (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2


def sigmoid_contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    group: ProcessGroup | None = None,
) -> torch.Tensor:
    """SigLIP's loss (https://arxiv.org/abs/2303.15343): each image and each text match or not.

    Args and errors are those of [`softmax_contrastive_loss`].

    Returns:
        scalar, the sum over all texts, averaged over this rank's images (open_clip: `SigLipLoss`).
    """
    _check_embeds(group, model=(image_embeds, text_embeds))
    logits = _logits(image_embeds, text_embeds, scale, bias, group)
    signs = 2 * F.one_hot(_labels(logits, group), logits.shape[1]) - 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)


def caption_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    group: ProcessGroup | None = None,
) -> torch.Tensor:
    """Cross-entropy of the next token (https://arxiv.org/abs/2205.01917), every token of the whole batch alike.

    Args:
        logits: (texts, length, vocab_size), prediction of the token behind each token.
        labels: (texts, length), the tokens, -100 where there is nothing to learn; they are shifted here.
        num_items_in_batch: number of tokens to learn in the whole batch, over which the mean is taken; by default
            those of `labels` on all ranks.
        group: the ranks that share the batch. They may have different numbers of texts.

    Returns:
        scalar, whose mean over the ranks is the mean over the tokens; 0 where there is none (open_clip: `CoCaLoss`).

    Raises:
        ValueError: labels that are longer or shorter than the logits, or of another number of texts.
    """
    check_labels(labels, logits.shape[:2])
    targets = labels[:, 1:].to(logits.device)
    total = F.cross_entropy(
        logits[:, :-1].transpose(1, 2).to(torch.promote_types(logits.dtype, torch.float32)),
        targets,
        ignore_index=-100,
        reduction="sum",
    )
    if num_items_in_batch is None:
        num_items_in_batch = count_targets(labels).to(logits.device)
        if group is not None:
            distributed.all_reduce(num_items_in_batch, group=group)
    num_ranks = 1 if group is None else group.size()
    return total * num_ranks / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)


def check_labels(labels: torch.Tensor, shape: tuple[int, int]):
    """Raise `ValueError` unless there is a label for each token of texts of `shape` (texts, length)."""
    if tuple(labels.shape) != tuple(shape):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, the texts {tuple(shape)}: pass a label for each token, -100 "
            "where there is nothing to learn, as a CoCaProcessor does with return_labels=True."
        )


def count_targets(labels: torch.Tensor) -> torch.Tensor:
    """Number of tokens that (texts, length) of labels have to be learned, the first of a text never."""
    return (labels[:, 1:] != -100).sum()


def distillation_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    scale: torch.Tensor,
    teacher_image_embeds: torch.Tensor,
    teacher_text_embeds: torch.Tensor,
    teacher_scale: torch.Tensor,
    group: ProcessGroup | None = None,
) -> torch.Tensor:
    """Cross-entropy of a teacher's matches of the same pairs, over the whole batch and in both directions.

    Args:
        image_embeds: (pairs, width), of length 1.
        text_embeds: (pairs, width), of length 1.
        scale: scalar or (1,), what similarities are multiplied by: `model.logit_scale.exp()`.
        teacher_image_embeds: (pairs, teacher's width), of length 1; no gradients reach the teacher.
        teacher_text_embeds: (pairs, teacher's width), of length 1.
        teacher_scale: scalar or (1,), that of the teacher's similarities.
        group: the ranks whose pairs are compared with one another, each with as many.

    Returns:
        scalar, the mean over this rank's pairs and both directions (open_clip: the second loss of `DistillClipLoss`).

    Raises:
        ValueError: on every rank, images and texts of different number or width, of model, teacher or ranks; or a
            teacher of other pairs.
    """
    teacher = (teacher_image_embeds, teacher_text_embeds)
    _check_embeds(group, model=(image_embeds, text_embeds), teacher=teacher)

    def one_way(rows, columns, teacher_rows, teacher_columns) -> torch.Tensor:
        predictions = _logits(rows, columns, scale, group=group)
        with torch.no_grad():
            targets = _logits(teacher_rows, teacher_columns, teacher_scale, group=group).softmax(dim=1)
        return F.cross_entropy(predictions, targets)

    per_image = one_way(image_embeds, text_embeds, teacher_image_embeds, teacher_text_embeds)
    per_text = one_way(text_embeds, image_embeds, teacher_text_embeds, teacher_image_embeds)
    return (per_image + per_text) / 2
