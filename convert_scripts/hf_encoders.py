"""Configurations of the Hugging Face encoders that open_clip's text towers name (open_clip: `AutoConfig` in
`hf_model.py`).

Those of open_clip's own architectures ship as data, so that a conversion needs no network. The data holds what differs
from the defaults of transformers' configuration classes.
"""

import json
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto import AutoConfig

from ..configuration.configuration_hf_text import ENCODER_MODEL_TYPES, encoder_config
from .common import ConversionError
from .sources.source import download_file


ENCODERS_FILE = Path(__file__).with_name("data") / "hf_text_configs.json"
CONFIG_FILE = "config.json"


@cache
def _known_encoders() -> dict[str, dict[str, Any]]:
    return json.loads(ENCODERS_FILE.read_text(encoding="utf-8"))


def find_encoder_config(name: str) -> PreTrainedConfig:
    """transformers' configuration of an encoder.

    Args:
        name: open_clip's `hf_model_name`: one of those that ship, a local folder with a `config.json`, or a Hub id.

    Raises:
        ConversionError: there is no configuration, or it is not one of an encoder that open_clip can use.
    """
    known = _known_encoders()
    if name in known:
        return encoder_config(known[name])
    folder = Path(name).expanduser()
    if not folder.is_dir():
        try:
            folder = download_file(name, CONFIG_FILE).parent
        except ConversionError as error:
            raise ConversionError(
                f"text_cfg: the configuration of hf_model_name {name!r} is needed. {error}\nOr give, as "
                f"hf_model_name, a folder that holds its {CONFIG_FILE}; known without one are {', '.join(known)}."
            ) from error
    try:
        given = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"text_cfg: {CONFIG_FILE} of hf_model_name {name!r} cannot be read: {error}") from error
    model_type = given.get("model_type", "") if isinstance(given, dict) else ""
    if model_type not in ENCODER_MODEL_TYPES:
        raise ConversionError(
            f"text_cfg: hf_model_name {name!r} is a {model_type!r}; open_clip has text towers of "
            f"{', '.join(ENCODER_MODEL_TYPES)}."
        )
    return encoder_config({"model_type": model_type, **_known_fields(model_type, given)})


def _known_fields(model_type: str, given: dict[str, Any]) -> dict[str, Any]:
    """What a configuration says about the model, without what it says about files, code and tasks."""
    config_class = type(AutoConfig.for_model(model_type))
    upstream = {field.name for field in fields(PreTrainedConfig)}
    names = {field.name for field in fields(config_class)} - upstream | config_class.attribute_map.keys()
    return {key: value for key, value in given.items() if key in names}
