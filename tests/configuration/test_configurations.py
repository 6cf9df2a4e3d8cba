"""Configurations: what they hold, what they refuse, and that they come back from JSON as they were."""

import copy
import json
import logging
import pickle

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from open_clip_transformers.configuration.configuration_coca import CoCaConfig, CoCaDecoderConfig
from open_clip_transformers.configuration.configuration_common import height_and_width
from open_clip_transformers.configuration.configuration_hf_text import HfTextConfig
from open_clip_transformers.configuration.configuration_open_clip import OpenClipConfig, OpenClipSiglipConfig
from open_clip_transformers.configuration.configuration_text import OpenClipTextConfig
from open_clip_transformers.configuration.configuration_vit import OpenClipVitConfig


CONFIGS = {
    "vit": lambda: OpenClipVitConfig(image_size=[48, 64], patch_size=16, hidden_act="quick_gelu", qk_norm=True),
    "text": lambda: OpenClipTextConfig(is_causal=False, pool_type="last", layer_norm_eps=1e-6),
    "hf_text": lambda: HfTextConfig(hf_config={"model_type": "mt5", "d_model": 96}, proj_type="mlp"),
    "decoder": lambda: CoCaDecoderConfig(num_hidden_layers=5, layer_scale_init_value=0.1),
    "clip": lambda: OpenClipConfig(vision_config={"num_hidden_layers": 3}, text_config={"hidden_size": 256}),
    "clip_hf_text": lambda: OpenClipConfig(text_config=HfTextConfig(hf_model_name="roberta-base")),
    "siglip": lambda: OpenClipSiglipConfig(logit_bias_init_value=-3.0, nonscalar_logit_scale=True),
    "coca": lambda: CoCaConfig(text_config={"embed_cls": True, "correct_cls_mask": True}, caption_loss_weight=3.0),
}
every_config = pytest.mark.parametrize("make", CONFIGS.values(), ids=CONFIGS)


@pytest.fixture
def warnings_of_transformers(caplog):
    transformers_logging.enable_propagation()
    caplog.set_level(logging.WARNING)
    yield caplog
    transformers_logging.disable_propagation()


def without_path(config) -> dict:
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


@pytest.mark.floor
@every_config
def test_configuration_round_trip_is_exact_and_silent(make, tmp_path, warnings_of_transformers):
    config = make()
    config.save_pretrained(tmp_path)
    for loaded in (type(config).from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is type(config)
        assert without_path(loaded) == without_path(config)
    assert not warnings_of_transformers.records
    assert copy.deepcopy(config).to_dict() == pickle.loads(pickle.dumps(config)).to_dict() == config.to_dict()


@pytest.mark.floor
@pytest.mark.parametrize("dtype", ["x", 0, [1], {"a": 1}, "int8", "auto"], ids=str)
@pytest.mark.parametrize("part", [None, "vision_config"], ids=["whole", "part"])
def test_dtype_of_a_file_is_one_that_weights_have(part, dtype, tmp_path):
    content = OpenClipConfig().to_dict()
    (content if part is None else content[part])["dtype"] = dtype
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match='OpenClipConfig: dtype must be a floating dtype such as "float32"'):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.floor
@pytest.mark.parametrize("name", ["clip", "siglip", "coca"])
def test_towers_load_their_part_of_a_whole_configuration(name, tmp_path, warnings_of_transformers):
    config = CONFIGS[name]()
    config.save_pretrained(tmp_path)
    parts = {"vision_config": OpenClipVitConfig, "text_config": OpenClipTextConfig}
    if name == "coca":
        parts["multimodal_config"] = CoCaDecoderConfig
    for key, config_class in parts.items():
        assert without_path(config_class.from_pretrained(tmp_path)) == without_path(getattr(config, key))
    assert not warnings_of_transformers.records


@pytest.mark.floor
def test_whole_configuration_takes_parts_as_objects_and_as_fields():
    from_fields = OpenClipConfig(vision_config={"hidden_size": 96}, text_config={"hidden_size": 64})
    from_objects = OpenClipConfig(
        vision_config=OpenClipVitConfig(hidden_size=96), text_config=OpenClipTextConfig(hidden_size=64)
    )
    assert from_fields.to_dict() == from_objects.to_dict()
    assert type(from_fields.vision_config) is OpenClipVitConfig
    assert from_fields.projection_dim == 512


def test_saved_configuration_names_the_towers(tmp_path):
    CoCaConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["vision_config"]["model_type"] == "open_clip_vit"
    assert saved["text_config"]["model_type"] == "open_clip_text"
    assert saved["multimodal_config"]["model_type"] == "open_clip_coca_decoder"


def test_hf_text_configuration_knows_what_its_encoder_knows():
    config = HfTextConfig(hf_config={"model_type": "m2m_100", "d_model": 96, "encoder_layers": 5, "vocab_size": 70})
    assert (config.token_dim, config.num_hidden_layers, config.vocab_size) == (96, 5, 70)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (1, 0, 2)
    config.vocab_size = 77
    assert config.hf_config.vocab_size == 77


def test_hf_text_configuration_does_not_read_code_from_elsewhere(tmp_path):
    fields = {"model_type": "bert", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    config = HfTextConfig(hf_config=fields)
    assert type(config.hf_config).__module__.startswith("transformers.models.bert.")
    config.save_pretrained(tmp_path)
    assert type(HfTextConfig.from_pretrained(tmp_path).hf_config) is type(config.hf_config)


def test_towers_know_their_token_width():
    assert OpenClipVitConfig(hidden_size=96, projection_dim=64).token_dim == 96
    assert OpenClipVitConfig(hidden_size=96, projection_dim=64, attentional_pool=True).token_dim == 64
    assert OpenClipTextConfig(hidden_size=96, projection_dim=64).token_dim == 96


@pytest.mark.parametrize(
    ("image_size", "patch_size", "grid"), [(224, 32, (7, 7)), ([48, 80], 16, (3, 5)), ((50, 33), [16, 8], (3, 4))]
)
def test_grid_counts_whole_patches(image_size, patch_size, grid):
    assert OpenClipVitConfig(image_size=image_size, patch_size=patch_size).grid_size == grid


def test_height_and_width_of_a_side_or_a_pair():
    assert height_and_width(7) == (7, 7)
    assert height_and_width([7, 9]) == (7, 9)


@pytest.mark.floor
def test_coca_configuration_describes_the_whole_causal_stack():
    config = CoCaConfig(text_config={"num_hidden_layers": 5, "embed_cls": True, "max_position_embeddings": 40})
    assert config.get_text_config(decoder=True) is config
    assert config.get_text_config() is config.multimodal_config
    assert config.num_hidden_layers == 5 + 12
    assert config.max_position_embeddings == 40
    config.vocab_size = 1000
    assert config.text_config.vocab_size == config.multimodal_config.vocab_size == config.vocab_size == 1000


def test_coca_token_ids_are_those_of_its_text_tower_by_default():
    config = CoCaConfig(text_config={"embed_cls": True, "pad_token_id": 5, "bos_token_id": 6}, bos_token_id=9)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (5, 9, 49407)


# Class, fields, and what the message must say: the field, the value, and what it could be.
ERRORS = {
    "heads": (OpenClipVitConfig, {"hidden_size": 100, "num_attention_heads": 3}, r"hidden_size \(100\).*\(3\)"),
    "text_heads": (OpenClipTextConfig, {"hidden_size": 100, "num_attention_heads": 3}, r"\(100\).*\(3\)"),
    "decoder_heads": (CoCaDecoderConfig, {"hidden_size": 100, "num_attention_heads": 3}, r"\(100\).*\(3\)"),
    "norm": (OpenClipVitConfig, {"norm_layer": "rms"}, r"norm_layer must be one of 'layer_norm'.*got 'rms'"),
    "dropout": (OpenClipTextConfig, {"attention_dropout": 1.5}, r"attention_dropout.*\[0, 1\).*1\.5"),
    "drop_path": (OpenClipVitConfig, {"drop_path_rate": -0.1}, r"drop_path_rate.*-0\.1"),
    "cosine_and_norm": (OpenClipVitConfig, {"qk_norm": True, "scaled_cosine_attn": True}, "exclude each other"),
    "positions": (OpenClipVitConfig, {"position_embedding_type": "rope"}, r"'learnable', 'sin_cos_2d', got 'rope'"),
    "vision_pool": (OpenClipVitConfig, {"pool_type": "argmax"}, r"'tok', 'avg', 'avg_all', 'none', got 'argmax'"),
    "pooler": (OpenClipVitConfig, {"attentional_pool": "series"}, r"'parallel', 'cascade', got 'series'"),
    "patch_dropout": (OpenClipVitConfig, {"patch_dropout": 1.0}, r"patch_dropout.*\[0, 1\).*1\.0"),
    "three_sizes": (OpenClipVitConfig, {"image_size": [1, 2, 3]}, r"image_size.*\[height, width\].*\[1, 2, 3\]"),
    "no_patch": (OpenClipVitConfig, {"image_size": 16, "patch_size": 32}, "16 holds no patch of patch_size 32"),
    "pooler_heads": (
        OpenClipVitConfig,
        {"attentional_pool": True, "projection_dim": 100, "attn_pooler_heads": 8},
        r"projection_dim \(100\).*attn_pooler_heads.*8",
    ),
    "cascade_widths": (
        OpenClipVitConfig,
        {"attentional_pool": "cascade", "hidden_size": 768},
        r"'cascade' needs hidden_size \(768\) to equal projection_dim \(512\)",
    ),
    "sin_cos_grid": (
        OpenClipVitConfig,
        {"position_embedding_type": "sin_cos_2d", "image_size": [32, 64]},
        r"square grid.*\(1, 2\)",
    ),
    "sin_cos_width": (
        OpenClipVitConfig,
        {"position_embedding_type": "sin_cos_2d", "hidden_size": 30, "num_attention_heads": 3},
        "multiple of 4, got 30",
    ),
    "projection": (OpenClipTextConfig, {"proj_type": "mlp"}, r"'linear', 'none', got 'mlp'"),
    "text_pool": (OpenClipTextConfig, {"pool_type": "tok"}, r"'argmax', 'eos'.*got 'tok'"),
    "no_pad_id": (OpenClipTextConfig, {"embed_cls": True, "pad_token_id": None}, "pad_token_id, got None"),
    "no_eos_id": (OpenClipTextConfig, {"pool_type": "eos", "eos_token_id": None}, "one eos_token_id, got None"),
    "eos_ids": (OpenClipTextConfig, {"pool_type": "eos", "eos_token_id": [1, 2]}, r"one eos_token_id, got \[1, 2\]"),
    "no_projection": (
        OpenClipTextConfig,
        {"proj_type": "none", "projection_dim": 64},
        r"projection_dim \(64\).*hidden_size \(512\)",
    ),
    "embedding_widths": (OpenClipConfig, {"vision_config": {"projection_dim": 64}}, "got 64, 64, 512"),
    "model_width": (OpenClipConfig, {"projection_dim": 64}, "got 64, 512, 512"),
    "tower": (OpenClipConfig, {"text_config": {"model_type": "bert"}}, r"text_config.*open_clip_text, .*got 'bert'"),
    "encoder": (HfTextConfig, {"hf_config": {"model_type": "gpt2"}}, "roberta, xlm-roberta, bert.* got 'gpt2'"),
    "no_encoder": (HfTextConfig, {"hf_config": {"hidden_size": 64}}, "model_type must be one of.* got None"),
    "hf_text_pooler": (HfTextConfig, {"pool_type": "mean"}, "'mean_pooler', 'max_pooler'.*got 'mean'"),
    "hf_text_projection": (HfTextConfig, {"proj_type": None}, "proj_type"),
    "hf_text_no_projection": (HfTextConfig, {"proj_type": "none"}, r"projection_dim \(512\).*hidden_size \(768\)"),
    "hf_text_padding": (HfTextConfig, {"pad_token_id": 0}, "pad_token_id = 0 and hf_config.pad_token_id = 1"),
    "hf_text_positions": (HfTextConfig, {"max_position_embeddings": 513}, r"\(513\) exceeds the 512 positions"),
    "coca_without_first_token": (
        CoCaConfig,
        {"text_config": {"model_type": "open_clip_hf_text", "pool_type": "cls_pooler"}},
        "leaves the first one out.*'mean_pooler'",
    ),
    "coca_widths": (
        CoCaConfig,
        {"multimodal_config": {"hidden_size": 64}},
        r"vision_config.token_dim = 512, text_config.token_dim = 512, multimodal_config.hidden_size = 64",
    ),
    "wrong_type": (OpenClipVitConfig, {"hidden_size": "768"}, "hidden_size"),
}


@pytest.mark.floor
@pytest.mark.parametrize(("config_class", "fields", "message"), ERRORS.values(), ids=ERRORS)
def test_configuration_refuses_what_cannot_be_built(config_class, fields, message):
    # Strict data classes wrap what a check raises.
    with pytest.raises((StrictDataclassError, ValueError), match=message) as error:
        config_class(**fields)
    assert isinstance(error.value.__cause__ or error.value, ValueError | TypeError)


def test_a_number_is_not_taken_for_a_switch():
    with pytest.raises(StrictDataclassError, match="attentional_pool"):
        OpenClipVitConfig(attentional_pool=1)


@pytest.mark.floor
@pytest.mark.parametrize(
    "make",
    [
        lambda: OpenClipVitConfig(hiden_size=64),
        lambda: OpenClipConfig(text_config={"hiden_size": 64}),
        lambda: CoCaConfig(hiden_size=64),
    ],
    ids=["tower", "part", "whole"],
)
def test_misspelt_field_is_reported(make, warnings_of_transformers):
    make()
    messages = [record.getMessage() for record in warnings_of_transformers.records]
    assert any("no field named hiden_size: left out" in message for message in messages)


def test_settings_of_transformers_are_not_reported(warnings_of_transformers):
    config = OpenClipConfig(num_labels=3, output_hidden_states=True, attn_implementation="eager", dtype="bfloat16")
    assert config.num_labels == 3
    assert not warnings_of_transformers.records
