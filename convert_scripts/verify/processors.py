"""Image processor and tokenizer of a converted folder against open_clip's, on inputs that are hard to get right.

Mirrors open_clip's `create_model_from_pretrained` and `get_tokenizer` (`factory.py`).
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.configuration_utils import PreTrainedConfig

from ...configuration.configuration_common import height_and_width
from ...modeling.modeling_timm_factory import import_timm
from ..common import ConversionError
from ..mapping.config_table import text_fields_of
from ..processors.image import IMAGE_PROCESSOR_FILES, INTERPOLATION, RESAMPLE, takes_patches
from ..processors.tokenizers import load_tokenizer, tokenizer_folder
from ..sources.source import Source
from .compare import BOUND, relative_difference
from .report import Check


TOKENIZER_FILES = ("tokenizer_config.json",)
BACKENDS = ("pil", "torchvision")
MODES = ("RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "I;16", "RGB", "RGB")
TEXTS = (
    "a photo of a cat.",
    "A DIAGRAM of Two dogs, three cats; and 1 parrot!",
    "",
    " \t\n ",
    "word " * 200,
    "supercalifragilisticexpialidocious" * 12,
    "!",
    "wow!! a!b!c",
    "don't can't I'M you'Re 'twas",
    "fish &amp;amp; chips &lt;b&gt; &eacute; &#39;",
    "cafÃ© au lait â€œquotedâ€\x9d",
    "ﬂuﬀy ﬁsh, ＬＯＵＤ　ＮＯＩＳＥＳ",
    "naïve façade; Straße, İstanbul, ΣΊΣΥΦΟΣ",
    "猫が好き, кошка, قطة, 고양이, बिल्ली",
    "😀👩‍👩‍👧 e\u0301 \u200b\ufeff\u00ad",
    "<start_of_text> a <end_of_text> b <|endoftext|> </s> <pad> [SEP]",
    "3.14 + 2,718 = $5_8 #tag @user http://a.b/c?d=e&f",
    "line one\nline two\r\n\ttabbed  twice",
)


def awkward_images(height: int, width: int) -> list[Image.Image]:
    """Random images of every mode and shape, for a model whose images have this height and width."""
    sizes = [
        (2 * width + 1, height + 34),
        (width + 33, 2 * height + 2),
        (width // 2 + 1, height // 3 + 1),
        (width, height),
        (width + 1, height + 2),
    ]
    return [_random_image(mode, *sizes[i % len(sizes)], seed=i) for i, mode in enumerate(MODES)]


def _random_image(mode: str, width: int, height: int, seed: int) -> Image.Image:
    generator = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(generator.integers(0, 2**16, (height, width), dtype=np.uint16))
    image = Image.fromarray(generator.integers(0, 256, (height, width, 4), dtype=np.uint8))
    if mode == "CMYK":
        return Image.frombytes(mode, image.size, image.tobytes())
    return image.convert("RGB").quantize(37) if mode == "P" else image.convert(mode)


def open_clip_transform(source: Source, config: PreTrainedConfig) -> Callable[[Image.Image], torch.Tensor]:
    """open_clip's evaluation transform of a checkpoint, for the sizes of our configuration."""
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    cfg = merge_preprocess_dict(PreprocessCfg(), source.preprocess_cfg)
    if takes_patches(config):
        return _patches_transform(cfg, config.vision_config)
    cfg["size"] = height_and_width(config.vision_config.image_size)
    return image_transform_v2(PreprocessCfg(**cfg), is_train=False)


def _patches_transform(cfg: dict, config: PreTrainedConfig) -> Callable[[Image.Image], torch.Tensor]:
    """Make timm's transform with the arguments of open_clip 4's `naflex_eval_transform_v2`, for images of any mode.

    Returns:
        A function from an image to patches (max_num_patches, values of a patch), zeros behind those of the image.
    """
    transform = import_timm().data.create_transform(
        naflex=True,
        patchify=True,
        max_seq_len=config.max_num_patches,
        patch_size=height_and_width(config.patch_size),
        mean=cfg["mean"],
        std=cfg["std"],
        interpolation=INTERPOLATION[RESAMPLE[cfg["interpolation"]]],
    )

    def padded(image: Image.Image) -> torch.Tensor:
        patches = transform(image.convert("RGB"))["patches"]
        return F.pad(patches, (0, 0, 0, config.max_num_patches - len(patches)))

    return padded


def open_clip_tokenizer(source: Source) -> Callable[[list[str]], torch.Tensor]:
    """open_clip's tokenizer of a checkpoint, without running code from it.

    Raises:
        ConversionError: the tokenizer needs files that are not at hand, or has settings that are not supported.
    """
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    load_tokenizer(source)  # checks the settings, which open_clip hands on whatever they are
    text_cfg = text_fields_of(source.model_cfg)
    kwargs = {"context_length": text_cfg.get("context_length", 77), **(text_cfg.get("tokenizer_kwargs") or {})}
    if not text_cfg.get("hf_tokenizer_name"):
        return SimpleTokenizer(**kwargs)
    folder = tokenizer_folder(source, text_cfg["hf_tokenizer_name"])
    return HFTokenizer(str(folder), tokenizer_mode=text_cfg.get("tokenizer_mode"), **kwargs)


def pixel_checks(folder: Path, source: Source, config: PreTrainedConfig) -> Iterator[Check]:
    """Compare the folder's image processor, with each of its back ends, with open_clip's transform.

    Args:
        folder: the converted folder.
        source: the checkpoint that it was converted from.
        config: our configuration of the model that open_clip builds.
    """
    if not any((folder / name).is_file() for name in IMAGE_PROCESSOR_FILES):
        yield Check("pixels", "images", detail="the folder has no image processor")
        return
    images = awkward_images(*height_and_width(config.vision_config.image_size))
    transform = open_clip_transform(source, config)
    expected = [transform(image) for image in images]
    for backend in BACKENDS:

        def differences(backend=backend):
            processor = AutoImageProcessor.from_pretrained(folder, backend=backend, trust_remote_code=False)
            for image, pixels in zip(images, expected):
                values = processor(image, return_tensors="pt").pixel_values[0]
                yield f"{image.mode} {image.width} x {image.height}", relative_difference(values, pixels)

        yield _worst("pixels", f"images ({backend})", differences, BOUND)


def token_checks(folder: Path, source: Source) -> Iterator[Check]:
    """Compare the folder's tokenizer with open_clip's: the number of ids that differ, and the text."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        yield Check("tokens", "texts", detail="the folder has no tokenizer")
        return
    try:
        expected = open_clip_tokenizer(source)(list(TEXTS))
    except ConversionError as error:
        yield Check("tokens", "texts", detail=str(error))
        return

    def differences():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        for text, ids in zip(TEXTS, expected):
            ours = tokenizer(text, return_tensors="pt").input_ids[0]
            same_length = ours.shape == ids.shape
            yield f"{text!r:.60}", (ours != ids).sum().item() if same_length else float("inf")

    yield _worst("tokens", "texts", differences, 0)


def _worst(group: str, name: str, differences: Callable[[], Iterator[tuple[str, float]]], bound: float) -> Check:
    """The largest of named differences; its name and how many are too large, where any is."""
    try:
        found = dict(differences())
    except Exception as error:  # a folder's files may fail in any way
        return Check(group, name, float("inf"), bound, detail=f"{type(error).__name__}: {error}")
    worst = max(found, key=lambda item: found[item])
    wrong = [item for item, difference in found.items() if not difference <= bound]
    detail = f"{len(wrong)} of {len(found)} differ, the most: {worst}" if wrong else f"{len(found)} compared"
    return Check(group, name, found[worst], bound, detail=detail)
