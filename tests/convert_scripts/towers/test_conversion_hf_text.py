"""Hugging Face text towers: configurations of their encoders, fields, names and whole conversions."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_configs import (
    HF_ENCODERS,
    open_clip_model,
    save_open_clip_folder,
    tiny_hf_coca_cfg,
    tiny_hf_encoder,
    tiny_hf_text_cfg,
)
from transformers import AutoModel, PreTrainedModel

from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.convert_to_open_clip import convert_to_open_clip
from open_clip_transformers.convert_scripts.mapping.config import TokenIds, build_config, build_model_cfg
from open_clip_transformers.convert_scripts.mapping.plan import plan_conversion
from open_clip_transformers.convert_scripts.sources.architectures import get_architecture, list_architectures
from open_clip_transformers.convert_scripts.towers.hf_text import find_encoder_config


# Architecture -> parameters of its text tower and of the whole, in millions: open_clip's `docs/model_profile.csv`, and
# for the two with SigLIP's image tower, which it leaves out, open_clip's models.
PUBLISHED_SIZES = {
    "coca_roberta-ViT-B-32": (124.45, 420.37),
    "mt5-base-ViT-B-32": (277.86, 365.71),
    "mt5-xl-ViT-H-14": (1674.68, 2306.75),
    "nllb-clip-base": (414.04, 501.89),
    "nllb-clip-base-siglip": (414.3, 507.47),
    "nllb-clip-large": (767.14, 1399.22),
    "nllb-clip-large-siglip": (767.27, 1195.5),
    "roberta-ViT-B-32": (124.87, 212.72),
    "xlm-roberta-base-ViT-B-32": (278.27, 366.12),
    "xlm-roberta-large-ViT-H-14": (560.94, 1193.01),
}


def test_hf_architectures_are_all_of_open_clips():
    names = [
        name for name in list_architectures(newer=False) if get_architecture(name)["text_cfg"].get("hf_model_name")
    ]
    assert names == list(PUBLISHED_SIZES)


@pytest.mark.parametrize(("name", "sizes"), PUBLISHED_SIZES.items(), ids=PUBLISHED_SIZES)
def test_hf_architecture_has_the_size_that_open_clip_publishes(name, sizes):
    config = build_config(get_architecture(name))
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    assert (millions(model.text_model), millions(model)) == sizes


def millions(model: PreTrainedModel) -> float:
    return round(model.num_parameters() / 1e6, 2)


def test_coca_roberta_has_the_ids_and_vocabularies_of_open_clip():
    config = build_config(get_architecture("coca_roberta-ViT-B-32"))
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 2, 1)
    # open_clip's decoder has CLIP's number of ids, whatever the encoder's (`CoCa.__init__` in `coca_model.py`).
    assert (config.vocab_size, config.text_config.vocab_size) == (49408, 50265)
    assert (config.text_config.max_position_embeddings, config.max_position_embeddings) == (77, 76)
    assert (config.text_config.pool_type, config.text_config.proj_type) == ("mean_pooler", "linear")


@pytest.mark.parametrize(
    ("pad_id", "token_ids", "expected"),
    [({}, None, 1), ({}, TokenIds(pad=5), 5), ({"pad_id": 6}, TokenIds(pad=5), 6), ({"pad_id": 0}, None, 0)],
    ids=["encoder", "tokenizer", "given", "given-zero"],
)
def test_coca_padding_is_the_encoders_unless_it_is_given(pad_id, token_ids, expected):
    config = build_config({**tiny_hf_coca_cfg("roberta"), **pad_id}, token_ids)
    assert config.pad_token_id == expected
    assert config.text_config.pad_token_id == 1


def test_coca_refuses_an_hf_tower_without_the_first_token():
    with pytest.raises(ConversionError, match="leaves the first one out"):
        build_config(tiny_hf_coca_cfg("m2m_100", text_cfg={"hf_pooler_type": None}))


@pytest.mark.parametrize(
    ("model_type", "pooler"),
    [
        ("roberta", "mean_pooler"),
        ("xlm-roberta", "mean_pooler"),
        ("mt5", "mean_pooler"),
        ("bert", "cls_last_hidden_state_pooler"),
        ("m2m_100", "cls_pooler"),
    ],
)
def test_hf_pooler_is_by_default_that_of_the_encoder(model_type, pooler):
    config = build_config(tiny_hf_text_cfg(model_type, text_cfg={"hf_pooler_type": None}))
    assert config.text_config.pool_type == pooler


@pytest.mark.parametrize(
    ("text_cfg", "message"),
    [
        ({"hf_pooler_type": "attentional"}, "hf_pooler_type must be one of mean_pooler, .*got 'attentional'"),
        ({"hf_proj_type": "none"}, "hf_proj_type must be linear, mlp or null, got 'none'"),
        ({"hf_proj_type": None}, r"without a projection, projection_dim \(28\).*\(36\)"),
        ({"hf_model_name": "org/unheard-of"}, r"config.json of org/unheard-of(.|\n)*known without one are bert-base"),
    ],
    ids=["pooler", "projection", "no-projection", "encoder"],
)
def test_hf_text_fields_that_open_clip_cannot_build_are_refused(text_cfg, message):
    with pytest.raises(ConversionError, match=message):
        build_config(tiny_hf_text_cfg(text_cfg=text_cfg))


@pytest.mark.parametrize("model_type", HF_ENCODERS)
def test_encoder_configuration_is_read_from_a_folder(model_type):
    config = find_encoder_config(tiny_hf_encoder(model_type))
    assert config.model_type == model_type
    assert {name: getattr(config, name) for name in HF_ENCODERS[model_type]} == HF_ENCODERS[model_type]


def test_encoder_configuration_keeps_what_describes_the_encoder_alone(tmp_path):
    extra = {"auto_map": {"AutoModel": "code.Model"}, "architectures": ["BertForMaskedLM"], "output_attentions": True}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 48, **extra}))
    config = find_encoder_config(str(tmp_path))
    assert config.hidden_size == 48
    assert not hasattr(config, "auto_map")
    assert not config.architectures and not config.output_attentions


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "gpt2"}', "is a 'gpt2'; open_clip has text towers of roberta"),
        ("{}", "is a ''; open_clip has"),
        ("no JSON", "cannot be read"),
        (None, "cannot be read"),
    ],
    ids=["another", "unknown", "broken", "missing"],
)
def test_encoder_configuration_that_cannot_be_used_is_refused(content, message, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConversionError, match=message):
        find_encoder_config(str(tmp_path))


@pytest.mark.parametrize("model_type", [name for name in HF_ENCODERS if name != "t5"])
def test_hf_text_conversion_is_verified_against_open_clip(model_type, tmp_path):
    model_cfg = tiny_hf_text_cfg(model_type)
    save_open_clip_folder(tmp_path / "source", model_cfg)
    report = convert_open_clip_checkpoint(tmp_path / "source", tmp_path / "ours", with_processor=False, verify="full")
    assert report.verification.mode == "full"
    model = AutoModel.from_pretrained(tmp_path / "ours")
    assert model.config.text_config.hf_config.model_type == model_type


def test_coca_hf_text_conversion_is_verified_against_open_clip(tmp_path):
    save_open_clip_folder(tmp_path / "source", tiny_hf_coca_cfg("roberta"))
    report = convert_open_clip_checkpoint(tmp_path / "source", tmp_path / "ours", with_processor=False, verify="full")
    assert "logits" in "".join(report.verification.differences)


@pytest.mark.parametrize("make", [tiny_hf_text_cfg, tiny_hf_coca_cfg], ids=["clip", "coca"])
def test_hf_text_model_goes_back_to_open_clip(make, tmp_path):
    save_open_clip_folder(tmp_path / "source", make("roberta"))
    kwargs = {"with_processor": False, "verify": "none"}
    convert_open_clip_checkpoint(tmp_path / "source", tmp_path / "ours", **kwargs)
    convert_to_open_clip(tmp_path / "ours", tmp_path / "back", **kwargs)
    before, after = (load_file(tmp_path / name / "open_clip_model.safetensors") for name in ("source", "back"))
    assert before.keys() == after.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []


def test_hf_text_model_without_a_name_cannot_go_back_to_open_clip():
    config = build_config(tiny_hf_text_cfg("roberta"))
    config.text_config.hf_model_name = None
    with pytest.raises(ConversionError, match="set hf_model_name in the text_config"):
        build_model_cfg(config)


def test_hf_text_model_of_another_encoder_than_its_name_says_cannot_go_back_to_open_clip():
    config = build_config(tiny_hf_text_cfg("roberta"))
    config.text_config.hf_config.layer_norm_eps = 0.5
    with pytest.raises(ConversionError, match=r"text_config\.hf_config\.layer_norm_eps = 0\.5"):
        build_model_cfg(config)


def test_tables_of_old_transformers_releases_are_dropped(tmp_path):
    tables = {
        "roberta": ("text.transformer.embeddings.position_ids", torch.arange(17).unsqueeze(0)),
        "m2m_100": ("text.transformer.embed_positions.weights", torch.zeros(19, 36)),
    }
    for model_type, (key, table) in tables.items():
        model_cfg = tiny_hf_text_cfg(model_type)
        source = {**open_clip_model(model_cfg).state_dict(), key: table}
        plan = plan_conversion(build_config(model_cfg), source)
        assert list(plan.dropped) == [key]
