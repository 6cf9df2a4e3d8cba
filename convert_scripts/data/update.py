"""Writes `open_clip_architectures.json` from the installed open_clip; for maintainers, after a release of open_clip.

python -m open_clip_transformers.convert_scripts.data.update
"""

import json
from pathlib import Path

from ..sources.architectures import ARCHITECTURES_FILE


def collect_architectures() -> dict[str, dict]:
    """open_clip's built-in model configurations, by name."""
    import open_clip

    paths = sorted((Path(open_clip.__file__).parent / "model_configs").glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


if __name__ == "__main__":
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(cfg)}" for name, cfg in collect_architectures().items())
    ARCHITECTURES_FILE.write_text(f"{{\n{lines}\n}}\n")
