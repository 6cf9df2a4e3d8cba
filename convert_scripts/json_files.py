"""Reading JSON files that others wrote."""

import json
from pathlib import Path
from typing import Any

from .common import ConversionError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `ConversionError` where it cannot be read or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConversionError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds a {type(content).__name__}; expected a JSON object.")
    return content
