"""Architectures by name, and the inputs that all contestants of a cell run on: a row is the same in every batch."""

import json
from pathlib import Path

import torch


ARCHITECTURES = Path(__file__).resolve().parents[2] / "convert_scripts" / "data" / "open_clip_architectures.json"
REDUCED_WIDTH = 48


def architecture(settings: dict) -> dict:
    """open_clip's `model_cfg` of `settings["model"]`; with `settings["reduced"]` narrow and shallow, for tests."""
    model_cfg = json.loads(ARCHITECTURES.read_text(encoding="utf-8"))[settings["model"]]
    return _reduced(model_cfg) if settings["reduced"] else model_cfg


def _reduced(model_cfg: dict) -> dict:
    """Two layers on four patches; for open_clip's own transformers alone."""
    vision = model_cfg["vision_cfg"]
    vision |= {"width": 64, "head_width": 16, "layers": 2, "image_size": 2 * vision["patch_size"]}
    for text in (model_cfg[name] for name in ("text_cfg", "multimodal_cfg") if name in model_cfg):
        text |= {"width": REDUCED_WIDTH, "heads": 4, "layers": 2}
    return {**model_cfg, "embed_dim": REDUCED_WIDTH}


def pixel_values(settings: dict) -> torch.Tensor:
    """(batch, 3, height, width) in the dtype and on the device of the cell."""
    size = architecture(settings)["vision_cfg"]["image_size"]
    rows = [torch.randn(3, size, size, generator=_generator(row)) for row in range(settings["batch"])]
    return torch.stack(rows).to(settings["device"], getattr(torch, settings["dtype"]))


def input_ids(settings: dict) -> torch.Tensor:
    """(batch, context length) on the device of the cell: texts that fill the context, between CLIP's two last ids."""
    text = architecture(settings)["text_cfg"]
    length, vocab_size = text.get("context_length", 77), text.get("vocab_size", 49408)
    rows = [torch.randint(1, vocab_size - 2, (length,), generator=_generator(row)) for row in range(settings["batch"])]
    ids = torch.stack(rows)
    ids[:, 0], ids[:, -1] = vocab_size - 2, vocab_size - 1
    return ids.to(settings["device"])


def _generator(row: int) -> torch.Generator:
    return torch.Generator().manual_seed(row)
