"""Zero-shot classification, retrieval and captions, measured as open_clip does (open_clip_train: `zero_shot.py`)."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import cached_assets_path
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import BatchFeature, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging

from ..configuration.errors import MissingPackageError, UserError
from .embeddings import embed_images, embed_texts, eval_mode


if TYPE_CHECKING:
    import datasets

logger = logging.get_logger(__name__)

IMAGENET = json.loads(Path(__file__).with_name("data").joinpath("imagenet.json").read_text(encoding="utf-8"))
CLASSIFICATION_RANKS = (1, 5)
RETRIEVAL_RANKS = (1, 5, 10)
# Texts are compared with that many images at once, and images with that many texts.
ROWS_AT_ONCE = 1024


def build_zero_shot_classifier(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    class_names: Sequence[str],
    templates: Sequence[str],
    batch_size: int = 64,
    use_cache: bool = False,
) -> torch.Tensor:
    """Embed each class as the mean over its prompts (open_clip: `build_zero_shot_classifier`).

    Args:
        class_names: a name for each class.
        templates: texts with {} for the name, such as "a photo of a {}.".
        batch_size: prompts that the model works on at once.
        use_cache: keep the result on disk, in the assets folder of huggingface_hub, for the same text tower, dtype,
            names and templates.

    Returns:
        Float32 (classes, projection_dim), of length 1, on the CPU.

    Raises:
        ValueError: no classes or templates, a template without {}, or a model that does not pool.
    """
    if not class_names or not templates or isinstance(class_names, str) or isinstance(templates, str):
        raise UserError(f"Expected lists of class names and templates, got {class_names!r} and {templates!r}.")
    if lacking := [template for template in templates if "{}" not in template]:
        raise UserError(f"The template {lacking[0]!r} has no {{}} for the class, as in 'a photo of a {{}}.'.")
    prompts = [template.replace("{}", name) for name in class_names for template in templates]

    def build() -> torch.Tensor:
        embeds = embed_texts(model, tokenizer, prompts, batch_size, logger.warning).view(
            len(class_names), len(templates), -1
        )
        return F.normalize(embeds.mean(dim=1), dim=-1)

    return _cached(_fingerprint(model, tokenizer, prompts, len(templates)), build) if use_cache else build()


def _fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], count: int) -> str:
    """Digest all that class embeddings depend on: the text tower, its settings, token ids, templates a class."""
    digest = hashlib.sha256()
    for name, tensor in model.text_model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    ids = tokenizer(prompts, padding=False, verbose=False).input_ids
    digest.update(json.dumps([model.config.text_config.to_dict(), count, ids], default=str).encode())
    return digest.hexdigest()


def _cached(fingerprint: str, build) -> torch.Tensor:
    """Load the embeddings of that fingerprint, or build and keep them."""
    folder = cached_assets_path("open_clip_transformers", namespace="zero_shot")
    path = folder / f"{fingerprint}.safetensors"
    if path.is_file():
        return load_file(path)["class_embeds"]
    class_embeds = build()
    temporary = path.with_suffix(f".{id(class_embeds)}.part")
    save_file({"class_embeds": class_embeds}, temporary)
    temporary.replace(path)  # whole or not at all, whoever else writes it
    return class_embeds


def evaluate_zero_shot(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: "datasets.Dataset",
    class_names: Sequence[str] | None = None,
    templates: Sequence[str] = IMAGENET["templates"]["openai"],
    image_column: str | None = None,
    label_column: str | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    use_cache: bool = True,
) -> dict[str, float]:
    """Classify the images of a data set by texts (open_clip: `zero_shot_eval`).

    Args:
        dataset: with a column of images and one of labels, integers from 0 on.
        class_names: a name for each label; by default those of the label column, with spaces for underscores. Where
            these are ImageNet's thousand ids of synsets, ImageNet's names as open_clip has them.
        templates: texts with {} for the name; several are averaged.
        image_column, label_column: by default the columns of type `Image` and `ClassLabel`.
        batch_size: images, and prompts, that the model works on at once.
        num_workers: processes that read images.
        use_cache: keep the embedded classes on disk.

    Returns:
        "top1" and, with five classes or more, "top5": shares of the images, 0 to 1, whose label is the best, or among
        the five best; "images" and "classes": their numbers.

    Raises:
        OSError: an image cannot be read.
        TypeError: see [`find_column`].
        ValueError: a column that is missing, labels without names or that are no integers, no images.
    """
    image_column = find_column(dataset, "image_column", image_column, "Image")
    label_column = find_column(dataset, "label_column", label_column, "ClassLabel")
    labels = _labels(dataset, label_column)
    names = _class_names(dataset, label_column, class_names)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
        raise UserError(
            f"Labels of the column {label_column!r} go from {int(labels.min())} to {int(labels.max())}, but there are "
            f"{len(names)} class names: pass a name for each label from 0 on."
        )
    classifier = build_zero_shot_classifier(
        model, processor.tokenizer, names, templates, batch_size, use_cache=use_cache
    ).to(model.device)
    ranks = [rank for rank in CLASSIFICATION_RANKS if rank <= len(names)]
    correct = dict.fromkeys(ranks, 0)
    start = 0
    for images in pixel_batches(dataset, processor, image_column, batch_size, num_workers):
        logits = embed_images(model, images) @ classifier.T
        best = logits.topk(max(ranks), dim=-1).indices.cpu()
        hits = best == labels[start : start + len(best), None]
        start += len(best)
        for rank in ranks:
            correct[rank] += int(hits[:, :rank].sum())
    return {**{f"top{rank}": correct[rank] / start for rank in ranks}, "images": start, "classes": len(names)}


def _labels(dataset: "datasets.Dataset", label_column: str) -> torch.Tensor:
    """The labels of a data set, int64 (images,)."""
    labels = _column(dataset, label_column)
    if wrong := [label for label in labels if not isinstance(label, int)]:
        raise UserError(f"The column {label_column!r} holds {wrong[0]!r}: labels are integers from 0 on.")
    return torch.tensor(labels)


def _class_names(dataset: "datasets.Dataset", label_column: str, class_names: Sequence[str] | None) -> list[str]:
    if class_names is not None:
        return list(class_names)
    names = getattr(dataset.features[label_column], "names", None)
    if not names:
        raise UserError(f"The column {label_column!r} holds labels without names: pass class_names.")
    if all(len(name) == 9 and name[0] == "n" and name[1:].isdigit() for name in names):
        if len(names) == len(IMAGENET["class_names"]):
            return IMAGENET["class_names"]
        raise UserError(
            f"Classes are called {names[0]}, ..., which are ids of WordNet and no words that a model knows, and there "
            f"are {len(names)}, not ImageNet's {len(IMAGENET['class_names'])}: pass class_names."
        )
    return [name.replace("_", " ") for name in names]


def evaluate_retrieval(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: "datasets.Dataset",
    image_column: str | None = None,
    text_column: str = "text",
    batch_size: int = 32,
    num_workers: int = 0,
) -> dict[str, float]:
    """Find texts by images and images by texts, among all of a data set.

    Args:
        dataset: with a column of images and one of texts, a string or a list of strings for each image.
        image_column: by default the column of type `Image`.
        text_column: name of the column of texts.
        batch_size: images, and texts, that the model works on at once.
        num_workers: processes that read images.

    Returns:
        What [`retrieval_recall`] does, and "images" and "texts", their numbers.

    Raises:
        OSError: an image cannot be read.
        TypeError: see [`find_column`].
        ValueError: a column that is missing, an image without a text, no images.
    """
    image_column = find_column(dataset, "image_column", image_column, "Image")
    references = read_texts(dataset, text_column)
    all_texts = [text for texts in references for text in texts]
    text_embeds = embed_texts(model, processor.tokenizer, all_texts, batch_size, logger.warning)
    owners = torch.tensor([row for row, texts in enumerate(references) for _ in texts])
    batches = pixel_batches(dataset, processor, image_column, batch_size, num_workers)
    image_embeds = torch.cat([embed_images(model, images).cpu() for images in batches])
    recall = retrieval_recall(image_embeds, text_embeds, owners)
    return {**recall, "images": len(image_embeds), "texts": len(text_embeds)}


def retrieval_recall(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, image_of_text: torch.Tensor | None = None
) -> dict[str, float]:
    """Measure recall at 1, 5 and 10 both ways (open_clip: `get_clip_metrics`, for pairs).

    Args:
        image_embeds: (images, projection_dim), of length 1.
        text_embeds: (texts, projection_dim), of length 1.
        image_of_text: (texts,) int64, the index of each text's image; by default images and texts are pairs.

    Returns:
        "image_to_text_recall@1" and so on: the share of images, 0 to 1, one of whose texts is among that many nearest;
        "text_to_image_recall@1" and so on: the share of texts whose image is. Ranks beyond the number of texts, or of
        images, are left out.

    Raises:
        ValueError: shapes that do not fit, or an image without a text.
    """
    if image_of_text is None:
        image_of_text = torch.arange(len(text_embeds), device=text_embeds.device)
    images, texts = len(image_embeds), len(text_embeds)
    if not images or image_embeds.shape[1:] != text_embeds.shape[1:] or image_of_text.shape != (texts,):
        raise UserError(
            "Expected embeddings (images, dim) and (texts, dim) and an image's index for each text, got "
            f"{tuple(image_embeds.shape)}, {tuple(text_embeds.shape)} and {tuple(image_of_text.shape)}."
        )
    if image_of_text.unique().tolist() != list(range(images)):
        raise UserError(f"Expected at least one text for each of {images} images, and none for others.")
    return {
        **_recall("image_to_text", image_embeds, text_embeds, torch.arange(images), image_of_text),
        **_recall("text_to_image", text_embeds, image_embeds, image_of_text, torch.arange(images)),
    }


def _recall(name, queries: torch.Tensor, keys: torch.Tensor, query_images, key_images) -> dict[str, float]:
    ranks = [rank for rank in RETRIEVAL_RANKS if rank <= len(keys)]
    found = dict.fromkeys(ranks, 0)
    for start in range(0, len(queries), ROWS_AT_ONCE):
        nearest = (queries[start : start + ROWS_AT_ONCE] @ keys.T).topk(max(ranks), dim=-1).indices.cpu()
        hits = key_images.cpu()[nearest] == query_images.cpu()[start : start + ROWS_AT_ONCE, None]
        for rank in ranks:
            found[rank] += int(hits[:, :rank].any(dim=-1).sum())
    return {f"{name}_recall@{rank}": found[rank] / len(queries) for rank in ranks}


def evaluate_captions(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: "datasets.Dataset",
    image_column: str | None = None,
    text_column: str = "text",
    batch_size: int = 16,
    num_workers: int = 0,
    **generate_kwargs,
) -> dict[str, Any]:
    """Caption the images of a data set and compare the captions with its texts.

    Args:
        dataset: with a column of images and one of texts, a string or a list of strings for each image.
        image_column: by default the column of type `Image`.
        text_column: name of the column of texts.
        batch_size: images that the model works on at once.
        num_workers: processes that read images.
        generate_kwargs: arguments of `generate`.

    Returns:
        What [`caption_metrics`] does, "images": their number, and "captions": the list of them.

    Raises:
        ImportError: sacrebleu is missing.
        OSError: an image cannot be read.
        TypeError: see [`find_column`].
        ValueError: a model that does not caption, a column that is missing, an image without a text, no images.
    """
    if not model.can_generate():
        raise UserError(f"{type(model).__name__} does not caption: load a CoCa or MaMMUT.")
    image_column = find_column(dataset, "image_column", image_column, "Image")
    references = read_texts(dataset, text_column)
    captions: list[str] = []
    for images in pixel_batches(dataset, processor, image_column, batch_size, num_workers):
        with eval_mode(model):
            ids = model.generate(**BatchFeature(images).to(model.device, model.dtype), **generate_kwargs)
        captions += [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]
    return {**caption_metrics(captions, references), "images": len(captions), "captions": captions}


def caption_metrics(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compare captions with one or several references each, by sacrebleu; case is ignored.

    Returns:
        "exact": share of captions, 0 to 1, that are one of their references; "bleu" and "chrf": of the corpus, 0 to
        100.

    Raises:
        ImportError: sacrebleu is missing.
        ValueError: not as many lists of references as captions, or an empty one.
    """
    if len(captions) != len(references) or not captions or not all(references):
        raise UserError(f"Expected references for each of {len(captions)} captions, got {len(references)} lists.")
    try:
        import sacrebleu
    except ImportError as error:
        raise MissingPackageError("Caption metrics need sacrebleu: pip install sacrebleu") from error
    captions = [caption.lower() for caption in captions]
    lowered = [[text.lower() for text in texts] for texts in references]
    # sacrebleu takes the first references of all captions, then the second, and so on; None where there is none.
    columns: Any = [
        [texts[index] if index < len(texts) else None for texts in lowered] for index in range(max(map(len, lowered)))
    ]
    return {
        "exact": sum(caption in texts for caption, texts in zip(captions, lowered, strict=True)) / len(captions),
        "bleu": sacrebleu.corpus_bleu(captions, columns).score,
        "chrf": sacrebleu.corpus_chrf(captions, columns).score,
    }


def find_column(dataset: "datasets.Dataset", argument: str, name: str | None, kind: str) -> str:
    """Find a column of a data set by its name, or the only one of a type such as "Image".

    Raises:
        TypeError: a data set of several splits, a streamed one, or of another library.
        ValueError: there is none, or several; the message names `argument`.
    """
    if not (hasattr(dataset, "__len__") and isinstance(getattr(dataset, "column_names", None), list)):
        raise TypeError(
            f"Expected a datasets.Dataset, got {type(dataset).__name__}: choose a split, or put what is streamed into "
            "one with Dataset.from_list(list(streamed))."
        )
    if name is not None:
        if name not in dataset.column_names:
            raise UserError(f"{argument}={name!r} is none of the columns: {', '.join(dataset.column_names)}.")
        return name
    found = [column for column, feature in dataset.features.items() if type(feature).__name__ == kind]
    if len(found) != 1:
        raise UserError(
            f"{'None' if not found else 'Several'} of the columns {', '.join(dataset.column_names)} "
            f"{'is' if not found else 'are'} of type {kind}: pass {argument}."
        )
    return found[0]


def _column(dataset: "datasets.Dataset", name: str) -> list:
    """The values of one column, without decoding the images of others."""
    return list(dataset.select_columns([name])[:][name])


def read_texts(dataset: "datasets.Dataset", text_column: str) -> list[list[str]]:
    """Read the texts of each row, of a column of strings or of lists of strings.

    Raises:
        ValueError: a column that is missing, a row without a text.
    """
    find_column(dataset, "text_column", text_column, "Value")
    rows = _column(dataset, text_column)
    texts = [[row] if isinstance(row, str) else list(row or ()) for row in rows]
    for index, row in enumerate(texts):
        if not row or not all(isinstance(text, str) for text in row):
            raise UserError(f"Row {index} of the column {text_column!r} holds {rows[index]!r}, expected texts.")
    return texts


class PixelDataset(torch.utils.data.Dataset):
    """Pixels of the images of a data set, read as open_clip reads them: not turned as EXIF data may say."""

    def __init__(self, dataset: "datasets.Dataset", image_processor, image_column: str):
        from datasets import Image as ImageFeature

        if isinstance(dataset.features[image_column], ImageFeature):
            dataset = dataset.cast_column(image_column, ImageFeature(decode=False))
        self.dataset, self.image_processor, self.image_column = dataset, image_processor, image_column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Prepare the image of a row. Raises `OSError` for what is no image, with the row's number."""
        source = self.dataset[index][self.image_column]
        try:
            if isinstance(source, dict):
                source = source["path"] if source["bytes"] is None else BytesIO(source["bytes"])
            with Image.open(source) as image:
                image.load()
                images = self.image_processor(image, return_tensors="pt")
                return {name: tensor[0] for name, tensor in images.items()}
        except Exception as error:  # Pillow raises nearly everything
            raise OSError(
                f"Row {index} of the column {self.image_column!r} holds no readable image: {error}"
            ) from error


def pixel_batches(
    dataset: "datasets.Dataset", processor: ProcessorMixin, image_column: str, batch_size: int, num_workers: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Iterate over at most batch_size images, as the model takes them by name, with a progress bar on a terminal.

    Raises:
        OSError: an image cannot be read.
        ValueError: no images.
    """
    if not len(dataset):
        raise UserError("The data set has no rows to evaluate.")
    pixels = PixelDataset(dataset, processor.image_processor, image_column)
    batches: Iterable[dict[str, torch.Tensor]] = DataLoader(pixels, batch_size=batch_size, num_workers=num_workers)
    with tqdm(total=len(dataset), unit="image", disable=None, leave=False) as progress:
        for images in batches:
            yield images
            progress.update(len(images["pixel_values"]))


def load_dataset(data: str, split: str | None = None) -> "datasets.Dataset":
    """Load a data set: a folder of class folders or of images with a metadata file, a saved one, or one of the Hub.

    Args:
        data: a folder, or an id of the Hub.
        split: name of the split; by default "test", "validation", or the only one.

    Raises:
        ImportError: datasets is missing.
        OSError: there is no such data set.
        ValueError: no such split, or several to choose from.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingPackageError("Evaluating on a data set needs datasets: pip install datasets") from error
    if not Path(data).is_dir():
        loaded = datasets.load_dataset(data, split=split)
    elif any((Path(data) / name).is_file() for name in ("dataset_dict.json", "state.json")):
        loaded = datasets.load_from_disk(data)
    else:
        loaded = datasets.load_dataset("imagefolder", data_dir=data)
    if isinstance(loaded, datasets.Dataset):
        return loaded
    if split is None:
        split = next((name for name in ("test", "validation") if name in loaded), None) or next(iter(loaded))
        if split not in ("test", "validation") and len(loaded) > 1:
            raise UserError(f"{data} has the splits {', '.join(loaded)}: choose one with `split`.")
    if split not in loaded:
        raise UserError(f"split={split!r} is none of the splits of {data}: {', '.join(loaded)}.")
    return loaded[split]
