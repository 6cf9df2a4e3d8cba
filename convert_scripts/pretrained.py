"""open_clip's pretrained tags as data, without open_clip (its `pretrained.py`, release 3.3.0)."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .common import ConversionError, listing
from .sources.architectures import get_architecture


PRETRAINED_FILE = Path(__file__).with_name("data") / "open_clip_pretrained.json"


@dataclass(frozen=True)
class PretrainedTag:
    """Weights that open_clip knows by name.

    Args:
        model: open_clip's name of the architecture.
        tag: name of the weights.
        hub_id: the Hub repository that holds them.
        filename: the weights file in it; `None` for one of open_clip's usual names.
        url: where they were first published, if that is another place.
        quick_gelu: whether they were trained with QuickGELU.
        preprocess_cfg: open_clip's image settings: `mean`, `std`, `interpolation`, `resize_mode`.
    """

    model: str
    tag: str
    hub_id: str
    filename: str | None
    url: str | None
    quick_gelu: bool
    preprocess_cfg: Mapping[str, Any]


@cache
def _pretrained() -> dict[str, dict[str, PretrainedTag]]:
    return {
        model: {tag: _read_tag(model, tag, dict(fields)) for tag, fields in tags.items()}
        for model, tags in json.loads(PRETRAINED_FILE.read_text(encoding="utf-8")).items()
    }


def _read_tag(model: str, tag: str, fields: dict[str, Any]) -> PretrainedTag:
    # open_clip's tags say it only where the weights differ from their architecture, and then only "yes".
    quick_gelu = fields.pop("quick_gelu", False) or get_architecture(model).get("quick_gelu", False)
    hub_id, filename, url = fields.pop("hub_id"), fields.pop("filename", None), fields.pop("url", None)
    return PretrainedTag(model, tag, hub_id, filename, url, quick_gelu, fields)


def list_pretrained(model: str | None = None) -> list[PretrainedTag]:
    """The tags of an architecture, by default of all, in open_clip's order; empty for one that has none."""
    return [entry for name, tags in _pretrained().items() if model in (None, name) for entry in tags.values()]


def get_pretrained(model: str, tag: str) -> PretrainedTag:
    """Weights by name. As open_clip does, dashes in a tag are read as underscores, and its case does not matter.

    Raises:
        ConversionError: there is no such architecture or it has no such tag; its tags and close names are listed.
    """
    get_architecture(model)
    model = model.replace("/", "-")
    tags = _pretrained().get(model, {})
    cleaned = tag.lower().replace("-", "_")
    if cleaned in tags:
        return tags[cleaned]
    if not tags:
        raise ConversionError(f"{model} has no pretrained tags in open_clip 3.3.0, so {tag!r} is not one of them.")
    close = difflib.get_close_matches(cleaned, tags, n=3, cutoff=0.6)
    others = [name for name, other in _pretrained().items() if cleaned in other]
    raise ConversionError(
        f"{model} has no pretrained tag {tag!r}. "
        + (f"Did you mean {' or '.join(close)}? " if close else "")
        + (f"These models have it: {', '.join(others)}. " if others else "")
        + f"Tags of {model}:{listing(tags, limit=30)}"
    )
