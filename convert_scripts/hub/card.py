"""Model cards of converted folders, from the templates in `model_cards/` and what the folder says of itself."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from transformers import AutoImageProcessor
from transformers.configuration_utils import PreTrainedConfig

from ..common import PACKAGE, ConversionError, checks_types, failing_as, project_address, user_path
from ..outputs import write_files
from ..verify.report import MARKDOWN_FILE
from .bundle import read_config
from .bundle_code import TESTED_TRANSFORMERS
from .provenance import PROVENANCE_FILE, is_published, read_provenance
from .push import CARD_FILE, check_repo_id


# `model_type` of a tower -> family, the name of a template, where the whole model says no more.
_TOWER_FAMILIES = {
    "open_clip_modified_resnet": "resnet",
    "open_clip_timm_vision": "timm",
    "open_clip_hf_text": "hf_text",
    "open_clip_modern_text": "modern_text",
}
_MODEL_FAMILIES = {"open_clip_coca": "coca", "open_clip_mammut": "mammut", "open_clip_siglip": "siglip"}
# Family -> the task that the Hub lists it under.
_TASKS = {"coca": "image-to-text", "mammut": "image-to-text"}
_TOWER_TASKS = {"vision_config": "image-feature-extraction", "text_config": "feature-extraction"}
_HUB_ID = re.compile(r"(?:hf-hub:)?([\w.-]+/[\w.-]+)(?:@\S+)?")


@dataclass(frozen=True)
class CardFacts:
    """Facts for a card that the folder of the model does not state, or states otherwise.

    Args:
        model_id: the Hub id that the examples are to name, by default the folder's name.
        license: the Hub's name of a licence, by default that of the original weights.
        base_model: Hub id of the model that it was made of, by default the repository that was converted.
        datasets: Hub ids, or names, of what it was trained on.
        languages: ISO codes of the languages of its texts.
        space: Hub id of a Space that shows the model.
    """

    model_id: str | None = None
    license: str | None = None
    base_model: str | None = None
    datasets: Sequence[str] = ()
    languages: Sequence[str] = ()
    space: str | None = None


@checks_types
def write_model_card(
    folder: str | os.PathLike, model_id: str | None = None, *, force: bool = False, **facts: Any
) -> Path:
    """Writes the model card of a folder, `README.md`.

    Args:
        folder: a folder written by this package, by a conversion or by `save_pretrained`.
        model_id: the Hub id that its examples are to name, by default the folder's name.
        force: replace a card that is there.
        facts: the other fields of [`CardFacts`].

    Returns:
        Path of the card.

    Raises:
        ConversionError: the folder holds no model of this package, or has a card already.
    """
    folder = user_path(folder)
    path = folder / CARD_FILE
    if path.exists() and not force:
        raise ConversionError(f"{path} exists: move it away to have a new one written, or pass force (--force).")
    write_files(folder, {CARD_FILE: str(build_model_card(folder, model_id, **facts))})
    return path


@checks_types
def build_model_card(folder: str | os.PathLike, model_id: str | None = None, **facts: Any) -> ModelCard:
    """The card that `write_model_card` writes."""
    folder = user_path(folder)
    config = read_config(folder)
    if not type(config).__module__.startswith(f"{PACKAGE}."):
        raise ConversionError(f"{folder} holds a model of type {config.model_type!r}, which is not of this package.")
    given = CardFacts(model_id, **facts)
    for repo_id in filter(None, (given.model_id, given.base_model, given.space)):
        check_repo_id(repo_id)
    name = given.model_id or folder.resolve().name
    provenance = read_provenance(folder)
    family = _family(config)
    original_license = (provenance or {}).get("license")
    hub_id = _HUB_ID.fullmatch((provenance or {}).get("source") or "")
    base_model = given.base_model or (hub_id[1] if hub_id else None)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=_TOWER_TASKS.get(config.base_config_key) or _TASKS.get(family, "zero-shot-image-classification"),
        tags=["open_clip", "safetensors", family if family in _MODEL_FAMILIES.values() else "clip"],
        license=given.license or original_license,
        base_model=base_model,
        datasets=list(given.datasets) or None,
        language=list(given.languages) or None,
    )
    templates = Environment(
        loader=FileSystemLoader([*import_module(f"{PACKAGE}.model_cards").__path__]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    with failing_as(f"No card can be made of what {folder} holds, such as its {PROVENANCE_FILE}"):
        body = templates.get_template("TEMPLATE.md").render(
            model_name=name.rpartition("/")[2],
            model_id=name,
            family=family,
            config=config,
            max_length=min(30, getattr(getattr(config, "text_config", config), "max_position_embeddings", 30)),
            image_processor=_image_settings(folder),
            provenance=provenance,
            is_published=is_published(provenance),
            verification_table=_verification_table(folder),
            license=data.license,
            is_original_license=data.license == original_license,
            base_model=base_model,
            datasets=given.datasets,
            space=given.space,
            tested=TESTED_TRANSFORMERS,
            address=project_address(),
        )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")


def _family(config: PreTrainedConfig) -> str:
    """The template that describes a model."""
    if not hasattr(config, "vision_config"):
        return "tower"
    if config.model_type in _MODEL_FAMILIES:
        return _MODEL_FAMILIES[config.model_type]
    towers = config.vision_config.model_type, config.text_config.model_type
    return next((_TOWER_FAMILIES[tower] for tower in towers if tower in _TOWER_FAMILIES), "clip")


def _image_settings(folder: Path) -> dict[str, Any] | None:
    if not any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        return None
    with failing_as(f"{folder} has no image processor that can be loaded; converting it again writes one."):
        settings = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False).to_dict()
    return {**settings, "interpolation": Image.Resampling(settings["resample"]).name.lower()}


def _verification_table(folder: Path) -> str | None:
    """The verdict and the table of a verification report in the folder."""
    if not (folder / MARKDOWN_FILE).is_file():
        return None
    with failing_as(f"{folder / MARKDOWN_FILE} is damaged; `verify` writes it again."):
        lines = (folder / MARKDOWN_FILE).read_text(encoding="utf-8").splitlines()
        verdict = next(line for line in lines if line.startswith("**"))
        start = next(i for i, line in enumerate(lines) if line.startswith("| | Compared"))
    return "\n".join([verdict, "", *(line for line in lines[start:] if line.startswith("|"))])
