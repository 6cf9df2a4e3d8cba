"""Writes `open_clip_architectures.json` from the installed open_clip; for maintainers, after a release of open_clip.

python -m open_clip_transformers.convert_scripts.update_architectures
"""

import json
from pathlib import Path

from .architectures import ARCHITECTURES_FILE
from .config_mapping import build_config
from .errors import ConversionError


def collect_architectures() -> dict[str, dict]:
    """open_clip's built-in model configurations that can be converted, by name."""
    import open_clip

    architectures = {}
    for path in sorted((Path(open_clip.__file__).parent / "model_configs").glob("*.json")):
        model_cfg = json.loads(path.read_text())
        try:
            build_config(model_cfg)
        except ConversionError:  # a tower that is not supported yet
            continue
        architectures[path.stem] = model_cfg
    return architectures


if __name__ == "__main__":
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(cfg)}" for name, cfg in collect_architectures().items())
    ARCHITECTURES_FILE.write_text(f"{{\n{lines}\n}}\n")
