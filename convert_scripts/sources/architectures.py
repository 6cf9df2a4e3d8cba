"""open_clip's built-in architectures by name, without open_clip (its `model_configs/*.json`, release 3.3.0)."""

import difflib
import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from ..common import ConversionError


ARCHITECTURES_FILE = Path(__file__).parents[1] / "data" / "open_clip_architectures.json"
QUICK_GELU_SUFFIX = "-quickgelu"


@cache
def _architectures() -> dict[str, dict[str, Any]]:
    return json.loads(ARCHITECTURES_FILE.read_text(encoding="utf-8"))


def list_architectures() -> list[str]:
    """Names of the built-in architectures."""
    return sorted(_architectures())


def get_architecture(name: str) -> dict[str, Any]:
    """open_clip's `model_cfg` of a built-in architecture.

    Args:
        name: open_clip's name, such as `"coca_ViT-L-14"`; a slash is read as a dash, as open_clip does. Every name
            may end in `-quickgelu`, which is open_clip's `force_quick_gelu`.

    Raises:
        ConversionError: there is no such architecture; close names are listed.
    """
    name = name.replace("/", "-")
    architectures = _architectures()
    if name in architectures:
        return deepcopy(architectures[name])
    base = name.removesuffix(QUICK_GELU_SUFFIX)
    if base in architectures:
        return {**deepcopy(architectures[base]), "quick_gelu": True}
    close = difflib.get_close_matches(name, architectures, n=5, cutoff=0.5)
    hint = f"Did you mean {', '.join(close)}?" if close else f"Known names: {', '.join(list_architectures())}."
    raise ConversionError(
        f"{name!r} is not among the {len(architectures)} architectures of open_clip 3.3.0. "
        f"{hint} For another architecture give its configuration with config=FILE."
    )
