"""The `classify` and `embed` commands: what needs embeddings of images and texts, and no decoder."""

from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AutoModelForZeroShotImageClassification, PreTrainedModel, ProcessorMixin

from ._cli_images import ImageBatches
from ._cli_messages import Failures, UsageError, warn
from ._cli_models import load
from ._cli_output import print_columns, print_record, save_embeddings


@torch.inference_mode()
def classify_images(
    names: list[str],
    labels: list[str],
    templates: list[str],
    *,
    model_name: str,
    revision: str | None,
    device: str,
    dtype: str,
    batch_size: int,
    workers: int,
    top: int,
    as_json: bool,
    failures: Failures,
):
    """Prints the most probable labels of each image.

    Probabilities are a softmax over the labels, or a sigmoid of each where the model was trained with that.

    Args:
        names: paths and URLs of the images.
        labels: what to tell apart.
        templates: texts in which `{}` stands for a label; the embeddings of several are averaged.
        model_name, revision, device, dtype: see `_cli_models.load`.
        batch_size: images, or texts, that are embedded at once.
        workers: processes that read images; 0 for none.
        top: how many labels to print for an image.
        as_json: print one JSON object a line: `{"image": name, "labels": [{"label": ..., "score": ...}, ...]}`; else
            a line `name<TAB>label<TAB>score` for each label.
        failures: gets the images that cannot be read.
    """
    model, processor = load(AutoModelForZeroShotImageClassification, model_name, revision, device, dtype)
    texts = [template.replace("{}", label) for template in templates for label in labels]
    embeds = embed_texts(model, processor, texts, batch_size).view(len(templates), len(labels), -1)
    label_embeds = F.normalize(embeds.mean(0), dim=-1).to(model.device)
    sigmoid = "siglip" in model.config.model_type
    for batch, pixel_values in ImageBatches(names, processor, batch_size, workers, failures):
        logits = model.compute_logits(embed_images(model, pixel_values), label_embeds)
        probabilities = logits.sigmoid() if sigmoid else logits.softmax(-1)
        scores, indices = (tensor.tolist() for tensor in probabilities.topk(min(top, len(labels))))
        for name, row_scores, row in zip(batch, scores, indices):
            best = [(labels[index], score) for index, score in zip(row, row_scores)]
            if as_json:
                print_record({"image": name, "labels": [{"label": label, "score": score} for label, score in best]})
            else:
                for label, score in best:
                    print_columns(name, label, f"{score:.4g}")


@torch.inference_mode()
def embed_inputs(
    names: list[str],
    texts: list[str],
    output: Path,
    *,
    model_name: str,
    revision: str | None,
    device: str,
    dtype: str,
    batch_size: int,
    workers: int,
    failures: Failures,
):
    """Writes embeddings of length 1, in float32.

    Args:
        names: paths and URLs of images.
        texts: texts.
        output: a `.safetensors` file with `image_embeds` and `text_embeds` (inputs, projection_dim), and in its
            metadata JSON lists, `images` and `texts`, of what the rows are; or a `.npy` file with one of the two.
        model_name, revision, device, dtype: see `_cli_models.load`.
        batch_size: images, or texts, that are embedded at once.
        workers: processes that read images; 0 for none.
        failures: gets the images that cannot be read; they have no row.
    """
    model, processor = load(AutoModelForZeroShotImageClassification, model_name, revision, device, dtype)
    embeddings, rows = {}, {}
    if names:
        batches = [
            (batch, embed_images(model, pixel_values).cpu())
            for batch, pixel_values in ImageBatches(names, processor, batch_size, workers, failures)
        ]
        if not batches:
            raise OSError(f"None of the images can be read: {output} was not written.")
        embeddings["image_embeds"] = torch.cat([embeds for _, embeds in batches])
        rows["images"] = [name for batch, _ in batches for name in batch]
    if texts:
        embeddings["text_embeds"] = embed_texts(model, processor, texts, batch_size)
        rows["texts"] = texts
    save_embeddings(output, embeddings, rows)


def embed_images(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """(images, channels, height, width) -> float32 (images, projection_dim), of length 1."""
    features = model.get_image_features(pixel_values.to(model.device, model.dtype)).pooler_output
    return F.normalize(_one_vector_each(features).float(), dim=-1)


def embed_texts(model: PreTrainedModel, processor: ProcessorMixin, texts: list[str], batch_size: int) -> torch.Tensor:
    """float32 (texts, projection_dim), of length 1, on the CPU. Says how many texts were cut to the context length."""
    tokenizer = processor.tokenizer
    limit = tokenizer.model_max_length
    lengths = [len(ids) for ids in tokenizer(texts, truncation=False, padding=False, verbose=False).input_ids]
    if too_long := sum(length > limit for length in lengths):
        warn(f"{too_long} of {len(texts)} texts were cut to the model's {limit} tokens.")
    # Texts of like length side by side need little padding, where the model does not need it.
    padding = "longest" if model.text_model.ignores_padding else "max_length"
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    embeds = []
    for start in range(0, len(texts), batch_size):
        batch = [texts[index] for index in order[start : start + batch_size]]
        inputs = tokenizer(batch, padding=padding, return_tensors="pt").to(model.device)
        features = model.get_text_features(**inputs).pooler_output
        embeds.append(F.normalize(_one_vector_each(features).float(), dim=-1).cpu())
    return torch.cat(embeds)[torch.tensor(order).argsort()]


def _one_vector_each(features: torch.Tensor) -> torch.Tensor:
    if features.ndim != 2:
        raise UsageError(f"This model does not pool: its embeddings have the shape {tuple(features.shape)}.")
    return features
