"""Put a model's code beside its weights, so that they work where this package is not installed.

With `trust_remote_code=True` transformers then takes our classes from the folder, or from the Hub repository that it
is uploaded to. After `import open_clip_transformers` the package's classes are taken and nothing needs to be trusted.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

from ...processing.pipeline_image_feature_extraction import OpenClipImageFeatureExtractionPipeline
from ...processing.pipeline_image_to_text import MODEL_TYPES, CoCaImageTextToTextPipeline, ImageToTextPipeline
from ..common import PACKAGE, ConversionError, checks_types, failing_as, project_address, read_json, user_path
from ..outputs import write_files
from .bundle_code import ENTRY, bundle_code


HEADER = """# {{path}} of open_clip_transformers {version}, copied as it is but for its imports.
# Changes belong there; `open-clip-transformers bundle` copies it again.
"""
# How the first line of a bundled file begins, in this version and earlier ones.
_BUNDLED = re.compile(r"# \S+\.py of open_clip_transformers \S+, ")
# Task -> our pipeline and the Auto class of its model, for a model that captions: its own tasks, and one for which
# transformers' pipeline would return what the captions are chosen from.
_PIPELINES = {
    "image-to-text": (ImageToTextPipeline, "AutoModelForImageTextToText"),
    "image-text-to-text": (CoCaImageTextToTextPipeline, "AutoModelForImageTextToText"),
    "image-feature-extraction": (OpenClipImageFeatureExtractionPipeline, "AutoModel"),
}
CONFIG_FILE = "config.json"
PROCESSOR_FILE = "processor_config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
TOKENIZER_FILE = "tokenizer_config.json"


@checks_types
def bundle_folder(folder: str | os.PathLike) -> list[str]:
    """Puts the code of a folder's model, processor and pipeline beside its weights, and names it in its JSON files.

    The same folder and version always give the same files. Bundling again replaces the files of an older version, and
    removes those that are no longer needed.

    Args:
        folder: a folder written by this package: a model, with or without its processor.

    Returns:
        Names of the files written, sorted.

    Raises:
        ConversionError: the folder holds no model of this package.
        OSError: a file cannot be written.
    """
    folder = user_path(folder)
    files = bundled_files(folder)
    write_files(folder, files)
    for path in folder.glob("*.py"):
        if path.name not in files and _BUNDLED.match(path.read_text(encoding="utf-8", errors="replace")):
            path.unlink()
    return sorted(files)


def bundled_files(folder: Path) -> dict[str, str]:
    """The files that `bundle_folder` writes: name -> contents, those last that name others."""
    config = _read_config(folder)
    references = _references(config, folder)
    entries = {entry for auto_map in references.values() for entry in _flat(auto_map.values())}
    pipelines = {}
    if config.model_type in MODEL_TYPES:
        pipelines = {task: {"impl": _reference(entry), "pt": [auto]} for task, (entry, auto) in _PIPELINES.items()}
        entries |= {entry for entry, _ in _PIPELINES.values()}
    header = HEADER.format(version=import_module(PACKAGE).__version__)
    files = bundle_code(entries, _tower_types(config), header, project_address())
    for name, auto_map in references.items():
        content = read_json(folder / name)
        content["auto_map"] = {auto: _named(entry) for auto, entry in auto_map.items()}
        if name == CONFIG_FILE and pipelines:
            content["custom_pipelines"] = pipelines
        if isinstance(content.get("image_processor"), dict):
            content["image_processor"]["auto_map"] = {"AutoImageProcessor": content["auto_map"]["AutoImageProcessor"]}
        files[name] = json.dumps(content, indent=2, sort_keys=True) + "\n"
    return files


def has_own_code(folder: Path) -> bool:
    """Whether the model of a folder needs code beside it: one of this package, not of transformers itself."""
    return _is_ours(read_config(folder))


def read_config(folder: Path) -> PreTrainedConfig:
    """Read the configuration of a folder's model. Raises `ConversionError` where it has none that can be read."""
    if not (folder / CONFIG_FILE).is_file():
        raise ConversionError(
            f"{folder} has no {CONFIG_FILE}: give a folder that `open-clip-transformers convert` wrote."
        )
    read_json(folder / CONFIG_FILE)
    with failing_as(f"{folder / CONFIG_FILE} does not describe a model"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def _is_ours(config: PreTrainedConfig) -> bool:
    return type(config).__module__.startswith(f"{PACKAGE}.")


def _read_config(folder: Path) -> PreTrainedConfig:
    config = read_config(folder)
    if not _is_ours(config):
        raise ConversionError(
            f"{folder} holds a model of type {config.model_type!r}, whose code is in transformers itself: there is "
            "nothing to put beside it."
        )
    return config


def _references(config: PreTrainedConfig, folder: Path) -> dict[str, dict[str, Any]]:
    """JSON file of the folder -> Auto class -> our class, or our classes by back end."""
    kind = type(config)
    references: dict[str, dict[str, Any]] = {CONFIG_FILE: {"AutoConfig": kind}}
    for name, auto_class in sorted(vars(modeling_auto).items()):
        models = getattr(auto_class, "_model_mapping", None)
        if isinstance(auto_class, type) and models is not None and kind in models:
            references[CONFIG_FILE][name] = models[kind]
    # Of a whole model, the image processor is its vision tower's.
    tower = type(getattr(config, "vision_config", config))
    back_ends = {"AutoImageProcessor": IMAGE_PROCESSOR_MAPPING[tower]} if tower in IMAGE_PROCESSOR_MAPPING else {}
    if (folder / PREPROCESSOR_FILE).is_file():
        references[PREPROCESSOR_FILE] = back_ends
    if (folder / PROCESSOR_FILE).is_file():
        references[PROCESSOR_FILE] = {"AutoProcessor": PROCESSOR_MAPPING[kind], **back_ends}
    if (folder / TOKENIZER_FILE).is_file():
        # A pair of a slow and a fast tokenizer in the order of transformers 4, whose second may be empty.
        references[TOKENIZER_FILE] = {"AutoTokenizer": (*_flat([TOKENIZER_MAPPING[kind]]), None)}
    return references


def _flat(entries: Iterable[Any]) -> Iterator[type]:
    """The classes in `entries`; some Auto classes have several, by back end or as a pair whose first is empty."""
    for entry in entries:
        if isinstance(entry, type):
            yield entry
        elif entry is not None:
            yield from _flat(entry.values() if isinstance(entry, dict) else entry)


def _named(entry: Any):
    """`entry` with its classes in the form `file.Class` that transformers reads."""
    if isinstance(entry, dict):
        return {name: _reference(part) for name, part in entry.items()}
    if isinstance(entry, tuple | list):  # of tokenizers: a slow one and a fast one
        return [None if part is None else _reference(part) for part in entry]
    return _reference(entry)


def _reference(entry: type) -> str:
    return f"{ENTRY}.{entry.__name__}"


def _tower_types(config: PreTrainedConfig) -> set[str]:
    """`model_type` of the model's towers, or of itself where it is one."""
    parts = (getattr(config, name) for name in config.sub_configs)
    return {config.model_type, *(part.model_type for part in parts)}
