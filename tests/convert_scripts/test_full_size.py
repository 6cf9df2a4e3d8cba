"""Full-size models with random weights against open_clip: on demand, as they take minutes, memory and disk.

pytest -m slow tests/convert_scripts/test_full_size.py -k ViT-B-32
"""

import os
import tempfile
from pathlib import Path

import pytest
from tiny_configs import save_open_clip_folder

from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.sources.architectures import get_architecture, list_models
from open_clip_transformers.convert_scripts.towers.hf_text import find_encoder_config


# open_clip's model, ours and the checkpoint are in memory at once, in fp32: 12 bytes for each parameter.
MAX_PARAMETERS = float(os.environ.get("MAX_PARAMETERS", 5e8))
MODELS = {model.model: model.parameters for model in list_models(tags=False)}


def without_network(model_cfg: dict, folder: Path) -> dict:
    """`model_cfg` with the configuration of an encoder of transformers in `folder` in place of its Hub id."""
    text_cfg = model_cfg["text_cfg"]
    if not text_cfg.get("hf_model_name"):
        return model_cfg
    find_encoder_config(text_cfg["hf_model_name"]).save_pretrained(folder)
    text_cfg = {**text_cfg, "hf_model_name": str(folder), "hf_model_pretrained": False}
    return {**model_cfg, "text_cfg": text_cfg, "custom_text": True}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_full_size_model_agrees_with_open_clip(name):
    if MODELS[name] > MAX_PARAMETERS:
        pytest.skip(f"{MODELS[name]:,} parameters; the environment allows MAX_PARAMETERS={MAX_PARAMETERS:.0e}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model_cfg = without_network(get_architecture(name), folder / "encoder")
        save_open_clip_folder(folder / "source", model_cfg)
        report = convert_open_clip_checkpoint(folder / "source", folder / "out", with_processor=False, verify="full")
    assert report.verification.mode == "full"
