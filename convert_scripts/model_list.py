"""What can be converted: open_clip's architectures and pretrained tags as rows of a table, without torch."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from .pretrained import PretrainedTag, list_pretrained
from .sources.architectures import get_architecture, list_architectures


TOWERS_FILE = Path(__file__).with_name("data") / "open_clip_towers.json"
TIMM_TOWER = "open_clip_timm_vision"


@dataclass(frozen=True)
class ListedModel:
    """An architecture, with one of its pretrained tags where it has any.

    Args:
        model: open_clip's name of the architecture.
        pretrained: a tag of it.
        vision_tower: `model_type` of our configuration of its vision tower.
        text_tower: `model_type` of our configuration of its text tower.
        vision_parameters: numbers in the vision tower.
        text_parameters: numbers in the text tower.
        parameters: numbers in the whole model.
        image_size: pixels, (height, width) where they differ.
        context_length: tokens of a text.
        timm_model: what timm calls the vision tower where timm is needed for it.
        tokenizer: Hub id of the tokenizer whose files are needed; `None` for CLIP's, which is built in.
    """

    model: str
    pretrained: PretrainedTag | None
    vision_tower: str
    text_tower: str
    vision_parameters: int
    text_parameters: int
    parameters: int
    image_size: int | list[int]
    context_length: int
    timm_model: str | None
    tokenizer: str | None


@cache
def _towers() -> dict[str, dict[str, Any]]:
    return json.loads(TOWERS_FILE.read_text(encoding="utf-8"))


def list_models(pattern: str | None = None, tags: bool = True) -> Iterator[ListedModel]:
    """Architectures by name, each with its tags in open_clip's order.

    Args:
        pattern: part of the name of an architecture or a tag, or a pattern with `*`, `?` or `[...]` for the whole of
            one; upper and lower case are not told apart. By default everything is listed.
        tags: `False` lists each architecture once, whether or not it has tags.
    """
    for model in list_architectures():
        entries = list_pretrained(model)
        if not _matches(pattern, model):
            entries = [entry for entry in entries if _matches(pattern, entry.tag)]
            if not entries:
                continue
        for entry in entries if tags and entries else [None]:
            yield _listed(model, entry)


def _matches(pattern: str | None, name: str) -> bool:
    if pattern is None:
        return True
    pattern, name = pattern.casefold(), name.casefold()
    return fnmatchcase(name, pattern) if any(sign in pattern for sign in "*?[") else pattern in name


def _listed(model: str, pretrained: PretrainedTag | None) -> ListedModel:
    model_cfg, towers = get_architecture(model), _towers()[model]
    vision_cfg, text_cfg = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    return ListedModel(
        model=model,
        pretrained=pretrained,
        **towers,
        image_size=vision_cfg.get("image_size", 224),
        context_length=text_cfg.get("context_length", 77),
        timm_model=vision_cfg["timm_model_name"] if towers["vision_tower"] == TIMM_TOWER else None,
        tokenizer=text_cfg.get("hf_tokenizer_name"),
    )
