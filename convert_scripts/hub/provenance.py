"""The source of a converted folder, in `conversion.json` beside its weights."""

import json
from datetime import datetime, timezone
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import ModelCard

from ..common import PACKAGE, read_json


if TYPE_CHECKING:
    from ..convert_open_clip import ConversionReport

PROVENANCE_FILE = "conversion.json"


def write_provenance(folder: Path, report: "ConversionReport", license: str | None):
    """Write the source of a conversion with the versions at work and the time in UTC.

    Args:
        folder: the converted folder.
        report: of the conversion.
        license: of the source's model card, `None` where it names none.
    """
    package = import_module(PACKAGE)
    content = {
        "source": public_name(report.source),
        "weights_file": report.weights_file.name,
        "sha256": report.sha256,
        "license": license,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "open_clip_transformers": package.__version__,
            **{name: version(name) for name in ("torch", "transformers")},
        },
        "dropped": dict(report.dropped),
        "changed": dict(report.changed),
        "notes": list(report.notes),
        "verification": vars(report.verification),
    }
    (folder / PROVENANCE_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def public_name(source: str) -> str:
    """The Hub id or architecture that a source was given as; of a local path its last part alone."""
    path = Path(source.removeprefix("local-dir:")).expanduser()
    return path.resolve().name if path.exists() else source


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """Read the contents that `write_provenance` wrote; `None` for a folder that did not come from a conversion."""
    path = folder / PROVENANCE_FILE
    return read_json(path) if path.is_file() else None


def license_beside(weights: Path) -> str | None:
    """The licence that a model card (README.md) beside a weights file names; never guessed."""
    card = weights.parent / "README.md"
    if not card.is_file():
        return None
    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data.license
    except (ValueError, TypeError, AttributeError, yaml.YAMLError):  # a README without a card's metadata
        return None
