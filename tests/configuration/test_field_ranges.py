"""Fields of configurations: numbers beyond all models and values of other kinds are refused by the field's name."""

from dataclasses import fields

import pytest
from transformers.configuration_utils import PreTrainedConfig

from open_clip_transformers.configuration.configuration_coca import CoCaConfig, CoCaDecoderConfig
from open_clip_transformers.configuration.configuration_common import FIELD_RANGES
from open_clip_transformers.configuration.configuration_open_clip import OpenClipConfig, OpenClipSiglipConfig
from open_clip_transformers.configuration.configuration_towers import TEXT_CONFIGS, VISION_CONFIGS


pytestmark = pytest.mark.floor

CONFIGS = [*VISION_CONFIGS.values(), *TEXT_CONFIGS.values(), CoCaDecoderConfig]
WHOLE = [OpenClipConfig, OpenClipSiglipConfig, CoCaConfig]
UPSTREAM = {field.name for field in fields(PreTrainedConfig)}
BEYOND = [-(10**9), 10**9, 10**30, float("nan"), float("inf"), "7", {"a": 7}]


def own_fields(config_class) -> list[str]:
    return [field.name for field in fields(config_class) if field.name not in UPSTREAM]


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda config_class: config_class.__name__)
def test_numbers_beyond_all_models_are_refused_by_name(config_class):
    for name in FIELD_RANGES.keys() & own_fields(config_class):
        for value in BEYOND:
            with pytest.raises(ValueError, match=rf"{config_class.__name__}.*\b{name}\b"):
                config_class(**{name: value})
            with pytest.raises(ValueError, match=name):
                setattr(config_class(), name, value)


@pytest.mark.parametrize("config_class", CONFIGS + WHOLE, ids=lambda config_class: config_class.__name__)
def test_no_field_takes_what_is_not_finite_or_bytes(config_class):
    for name in own_fields(config_class):
        for value in (float("nan"), float("-inf"), b"7"):
            with pytest.raises(ValueError, match=name):
                config_class(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", 0),
        ("patch_size", 0),
        ("image_size", [224, 0]),
        ("num_hidden_layers", 0),
        ("hidden_act", "gelo"),
    ],
    ids=str,
)
def test_tower_is_refused_as_a_part_too(name, value):
    with pytest.raises(ValueError, match=name):
        OpenClipConfig(vision_config={name: value})


@pytest.mark.parametrize(
    "encoder",
    [
        {"model_type": "bert", "hidden_size": 0},
        {"model_type": "roberta", "num_hidden_layers": 10**9},
        {"model_type": "mt5", "d_model": -1},
        {"model_type": "m2m_100", "encoder_layers": 10**6},
        {"model_type": "bert", "hidden_act": "gelo"},
        {"model_type": "bert", "vocab_size": "many"},
        {"model_type": ["bert"]},
    ],
    ids=lambda encoder: "-".join(map(str, encoder)),
)
def test_encoder_is_refused_too(encoder):
    name = list(encoder)[-1]
    with pytest.raises(ValueError, match=f"(hf_config|BertConfig).*{name}"):
        OpenClipConfig(text_config={"model_type": "open_clip_hf_text", "hf_config": encoder})


def test_image_with_more_patches_than_memory_is_refused():
    with pytest.raises(ValueError, match="more than 1048576 patches"):
        OpenClipConfig(vision_config={"image_size": 2**14, "patch_size": 1})
