"""Writes `open_clip_pretrained.json` from the installed open_clip; for maintainers, after a release of open_clip.

python -m open_clip_transformers.convert_scripts.update_pretrained
"""

import json
import posixpath
from typing import Any

from .pretrained import PRETRAINED_FILE


def collect_pretrained() -> dict[str, dict[str, dict[str, Any]]]:
    """open_clip's pretrained tags: model -> tag -> where the weights are, their activation and image settings."""
    import open_clip

    tags: dict[str, dict[str, dict[str, Any]]] = {}
    for model, tag in open_clip.list_pretrained():
        tags.setdefault(model, {})[tag] = _fields(open_clip.get_pretrained_cfg(model, tag))
    return tags


def _fields(cfg: dict[str, Any]) -> dict[str, Any]:
    cfg = dict(cfg)
    # "org/name/" or "org/name/filename".
    hub_id, filename = posixpath.split(cfg.pop("hf_hub"))
    fields = {"hub_id": hub_id, "filename": filename, **cfg}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items() if value}


if __name__ == "__main__":
    models = (
        f"  {json.dumps(model)}: {{\n"
        + ",\n".join(f"    {json.dumps(tag)}: {json.dumps(fields)}" for tag, fields in tags.items())
        + "\n  }"
        for model, tags in collect_pretrained().items()
    )
    PRETRAINED_FILE.write_text("{\n" + ",\n".join(models) + "\n}\n", encoding="utf-8")
