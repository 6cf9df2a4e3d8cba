"""The source of a converted folder, in `conversion.json` beside its weights."""

import json
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import ModelCard

from ..common import PACKAGE, ConversionError, read_json, user_path
from ..sources.source import SourceOptions


if TYPE_CHECKING:
    from ..convert_open_clip import ConversionReport

PROVENANCE_FILE = "conversion.json"
# Fields of `SourceOptions` that are recorded as they were given.
_OPTIONS = ("model_name", "pretrained", "revision", "ema")


def write_provenance(folder: Path, report: "ConversionReport", options: SourceOptions, license: str | None):
    """Write the source of a conversion with the versions at work and the time in UTC.

    Args:
        folder: the converted folder.
        report: of the conversion.
        options: the source as it was asked for. Paths on this machine are not recorded.
        license: of the source's model card, `None` where it names none.
    """
    package = import_module(PACKAGE)
    content = {
        "source": public_name(report.source),
        "options": {
            "source": public_name(os.fspath(options.source)),
            "has_config": options.config is not None,
            **{name: getattr(options, name) for name in _OPTIONS},
        },
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
    path = user_path(source.removeprefix("local-dir:"))
    return path.resolve().name if path.exists() else source


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """Read the contents that `write_provenance` wrote; `None` for a folder that did not come from a conversion."""
    path = folder / PROVENANCE_FILE
    if not path.is_file():
        return None
    content = read_json(path)
    options = content.get("options", {})
    texts = [content.get("source"), *(options.values() if isinstance(options, Mapping) else [])]
    if not isinstance(options, Mapping) or not all(isinstance(text, str | bool | None) for text in texts):
        raise ConversionError(f"{path} is damaged, as its source or its options are: move it away to go on without.")
    return content


def is_published(provenance: Mapping[str, Any] | None) -> bool:
    """Whether a folder was converted from a published model: a Hub repository, or one of open_clip's pretrained tags.

    A folder without a record, or from a file on somebody's machine, may hold a training run of one's own.
    """
    if provenance is None:
        return False
    return "/" in (provenance.get("source") or "") or provenance.get("options", {}).get("pretrained") is not None


def recorded_source(folder: Path) -> SourceOptions:
    """The source that a folder was converted from, as its record tells.

    A file or folder is looked for under its name in the working directory and beside the converted folder.

    Raises:
        ConversionError: there is no record, it does not tell all, or the source is not there.
    """
    provenance = read_provenance(folder)
    if provenance is None:
        raise ConversionError(
            f"{folder} has no {PROVENANCE_FILE} that says what it was converted from: give the source (--against)."
        )
    options = provenance.get("options", {"source": provenance.get("source")})
    source = options.get("source") if isinstance(options, Mapping) else None
    if not isinstance(source, str):
        raise ConversionError(f"{folder / PROVENANCE_FILE} names no source: give it (--against).")
    if options.get("has_config"):
        raise ConversionError(
            f"{folder} was converted from {source} with a configuration that {PROVENANCE_FILE} does not hold: give "
            "both (--against, --config)."
        )
    given = {name: options[name] for name in _OPTIONS if name in options}
    is_architecture = given.get("pretrained") is not None and given.get("model_name") is None
    if "/" in source or is_architecture:
        return SourceOptions(source, **given)
    for path in (Path(source), folder.resolve().parent / source):
        if path.exists():
            return SourceOptions(path, **given)
    raise ConversionError(
        f"{folder} was converted from {source}, which is neither here nor beside the folder: give its path "
        "(--against)."
    )


def license_beside(weights: Path) -> str | None:
    """The licence that a model card (README.md) beside a weights file names; never guessed."""
    card = weights.parent / "README.md"
    if not card.is_file():
        return None
    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data.license
    except (ValueError, TypeError, AttributeError, yaml.YAMLError):  # a README without a card's metadata
        return None
