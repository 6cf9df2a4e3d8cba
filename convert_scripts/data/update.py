"""Update the tables of architectures, pretrained tags and towers from the installed open_clip; for maintainers, after
a release of open_clip or with a new tower. With open_clip 4 installed, the tables of what it added, those of its
architectures aside that cannot be converted.

python -m open_clip_transformers.convert_scripts.data.update
"""

import json
import posixpath
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..common import DATA_FOLDER, data_table
from ..mapping.config import build_config
from ..mapping.plan import MODEL_CLASSES
from ..sources.architectures import (
    ARCHITECTURES,
    ARCHITECTURES_4,
    PRETRAINED,
    TOWERS,
    TOWERS_4,
    find_unsupported,
)
from ..verify.reference import build_open_clip_model


def collect_architectures() -> dict[str, dict[str, Any]]:
    """open_clip's built-in model configurations, by name."""
    import open_clip

    paths = sorted((Path(open_clip.__file__).parent / "model_configs").glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


def collect_pretrained() -> dict[str, dict[str, dict[str, Any]]]:
    """open_clip's pretrained tags: model -> tag -> where the weights are, their activation and image settings."""
    import open_clip

    tags: dict[str, dict[str, dict[str, Any]]] = {}
    for model, tag in open_clip.list_pretrained():
        tags.setdefault(model, {})[tag] = _tag_fields(open_clip.get_pretrained_cfg(model, tag))
    return tags


def _tag_fields(cfg: dict[str, Any]) -> dict[str, Any]:
    cfg = dict(cfg)
    # "org/name/" or "org/name/filename".
    hub_id, filename = posixpath.split(cfg.pop("hf_hub"))
    fields = {"hub_id": hub_id, "filename": filename, **cfg}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items() if value}


def collect_towers(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Our model types of the towers of an architecture, and the number of parameters of open_clip's model of it."""
    config = build_config(model_cfg)
    with torch.device("meta"):
        model = build_open_clip_model(model_cfg, config)
    sizes = {key: parameter.numel() for key, parameter in model.named_parameters()}
    vision = sum(size for key, size in sizes.items() if key.startswith("visual."))
    others = sum(size for key, size in sizes.items() if key.startswith(("text_decoder.", "logit_")))
    return {
        "vision_tower": config.vision_config.model_type,
        "text_tower": config.text_config.model_type,
        "vision_parameters": vision,
        "text_parameters": sum(sizes.values()) - vision - others,
        "parameters": sum(sizes.values()),
    }


def count_towers(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Count the parameters of an architecture in our own model, which the installed open_clip cannot build.

    Returns:
        The row that `collect_towers` makes of an architecture.
    """
    config = build_config(model_cfg)
    with torch.device("meta"):
        model = MODEL_CLASSES[config.model_type](config)
    vision, text = model.vision_model.num_parameters(), model.text_model.num_parameters()
    return {
        "vision_tower": config.vision_config.model_type,
        "text_tower": config.text_config.model_type,
        "vision_parameters": vision,
        "text_parameters": text,
        "parameters": model.num_parameters(),
    }


def format_table(table: Mapping[str, Any], depth: int = 1, indent: str = "") -> str:
    """JSON whose first `depth` levels have a line for each entry."""
    if not depth:
        return json.dumps(table)
    lines = (
        f"{indent}  {json.dumps(key)}: {format_table(row, depth - 1, indent + '  ')}" for key, row in table.items()
    )
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def main():
    """Write the tables beside this file."""
    newer = data_table(ARCHITECTURES_4)
    architectures = collect_architectures()
    if import_module("open_clip").__version__ >= "4":
        _write_newer(architectures)
        return
    towers = {name: collect_towers(model_cfg) for name, model_cfg in sorted(architectures.items())}
    tables = {
        ARCHITECTURES: format_table(architectures),
        PRETRAINED: format_table(collect_pretrained(), depth=2),
        TOWERS: format_table(towers),
        TOWERS_4: format_table({name: count_towers(model_cfg) for name, model_cfg in sorted(newer.items())}),
    }
    for name, text in tables.items():
        (DATA_FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _write_newer(architectures: Mapping[str, dict[str, Any]]):
    # Rows that this open_clip does not have stay.
    known, rows, towers = data_table(ARCHITECTURES), dict(data_table(ARCHITECTURES_4)), dict(data_table(TOWERS_4))
    for name, model_cfg in architectures.items():
        if name not in known and find_unsupported(name) is None:
            rows[name], towers[name] = model_cfg, collect_towers(model_cfg)
    for name, table in ((ARCHITECTURES_4, rows), (TOWERS_4, towers)):
        text = format_table(dict(sorted(table.items())))
        (DATA_FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
