"""Writes `open_clip_towers.json` from the installed open_clip; for maintainers, after a release of open_clip or with a
new tower.

python -m open_clip_transformers.convert_scripts.update_towers
"""

import json
from typing import Any

import torch

from .mapping.config import build_config
from .model_list import TOWERS_FILE
from .sources.architectures import get_architecture, list_architectures
from .verify.reference import build_open_clip_model


def collect_towers(name: str) -> dict[str, Any]:
    """Our model types of the towers of an architecture, and the number of parameters of open_clip's model of it."""
    model_cfg = get_architecture(name)
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


if __name__ == "__main__":
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(collect_towers(name))}" for name in list_architectures())
    TOWERS_FILE.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
