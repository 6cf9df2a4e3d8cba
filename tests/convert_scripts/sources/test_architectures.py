"""The built-in architectures that ship as data, and the list of models with the kinds and sizes of their towers."""

import pytest
import torch

from open_clip_transformers.configuration.configuration_towers import TEXT_CONFIGS, VISION_CONFIGS
from open_clip_transformers.convert_scripts.common import DATA_FOLDER, ConversionError, data_table
from open_clip_transformers.convert_scripts.data.update import collect_architectures, collect_towers, format_table
from open_clip_transformers.convert_scripts.mapping.config import build_config
from open_clip_transformers.convert_scripts.mapping.plan import MODEL_CLASSES
from open_clip_transformers.convert_scripts.sources.architectures import (
    ARCHITECTURES,
    TIMM_TOWER,
    get_architecture,
    get_pretrained,
    is_architecture,
    list_architectures,
    list_models,
)
from open_clip_transformers.convert_scripts.towers.tables import TEXT_TOWERS, VISION_TOWERS


def test_architectures_equal_the_installed_open_clip():
    assert (DATA_FOLDER / f"{ARCHITECTURES}.json").read_text() == format_table(collect_architectures()) + "\n"


@pytest.mark.parametrize("name", ["ViT-B-32", "coca_ViT-L-14"])
def test_quickgelu_variant_differs_in_the_activation_alone(name):
    quick = get_architecture(f"{name}-quickgelu")
    assert quick.pop("quick_gelu") is True
    assert quick == get_architecture(name)


def test_get_architecture_reads_slashes_as_dashes():
    assert get_architecture("ViT-B/32") == get_architecture("ViT-B-32")


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "mammut_ViT-L-14", "coca2-moderntext_ViT-B-32"])
def test_names_of_every_version_are_architectures(name):
    assert is_architecture(name) and get_architecture(name)
    assert not is_architecture(f"{name}-33")


def test_get_architecture_returns_a_copy():
    get_architecture("ViT-B-32")["vision_cfg"]["layers"] = 1
    assert get_architecture("ViT-B-32")["vision_cfg"]["layers"] == 12


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-23", "Did you mean .*ViT-B-32"),
        ("vit-b-32", "Did you mean ViT-B-32, "),
        ("Inception", "Known names: "),
        ("", "Known names"),
    ],
    ids=["misspelt", "lower-case", "unlike-any", "empty"],
)
def test_get_architecture_helps_with_unknown_names(name, message):
    with pytest.raises(ConversionError, match=message):
        get_architecture(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CLAP-HTSAT-tiny", "a model of audio and text"),
        ("naflexclap_base_pf8_pt16_moderntext", "a model of audio and text"),
        ("naflexgenlip_b16", "a GenLIP, one generative transformer"),
        ("naflexgenlap_betwixt", "a GenLAP, one generative transformer"),
        ("coca2-moderntext-naflex_ViT-B-32", "a CoCa whose images are of any shape.*not supported yet"),
        ("mammut2-naflex_ViT-B-32", "a MaMMUT whose images are of any shape.*not supported yet"),
    ],
)
def test_get_architecture_says_what_names_of_open_clip_4_are_that_it_cannot_give(name, message):
    with pytest.raises(ConversionError, match=rf"^{name} is {message}.*\.$") as error:
        get_architecture(name)
    assert str(error.value).count(". ") == 0


def test_get_pretrained_says_what_models_of_open_clip_4_are_that_it_cannot_give():
    with pytest.raises(ConversionError, match=r"^naflexgenlip_b16 is a GenLIP"):
        get_pretrained("naflexgenlip_b16", "webli")


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP2-naflex", "ViT-SO400M-16-SigLIP2-naflex"])
def test_tags_of_open_clip_4_are_known(name):
    tag = get_pretrained(name, "webli")
    assert tag.hub_id == f"timm/{name}"
    assert tag.preprocess_cfg["mean"] == [0.5, 0.5, 0.5] and tag.preprocess_cfg["interpolation"] == "bicubic"


TOWERS = data_table("open_clip_towers")
TOWERS_4 = data_table("open_clip_4_towers")
# One of each kind of tower, none of them large.
SAMPLE = ["RN50", "ViT-S-32", "ViT-B-16-SigLIP", "MobileCLIP2-S0", "roberta-ViT-B-32", "coca_base"]


def test_towers_are_listed_for_every_architecture():
    assert list(TOWERS) == list_architectures(newer=False)
    assert sorted({**TOWERS, **TOWERS_4}) == list_architectures()
    assert not TOWERS.keys() & TOWERS_4.keys()
    assert (DATA_FOLDER / "open_clip_towers.json").read_text() == format_table(TOWERS) + "\n"
    every = [*TOWERS.values(), *TOWERS_4.values()]
    assert {towers["vision_tower"] for towers in every} == VISION_CONFIGS.keys()
    assert {towers["text_tower"] for towers in every} == TEXT_CONFIGS.keys()
    assert TIMM_TOWER in VISION_CONFIGS


def chosen(towers, cfg: dict) -> str:
    return next(tower.model_type for tower in towers if tower.config_table.selects(cfg))


def test_towers_are_those_that_conversions_choose():
    for name, towers in {**TOWERS, **TOWERS_4}.items():
        model_cfg = get_architecture(name)
        assert towers["vision_tower"] == chosen(VISION_TOWERS, model_cfg["vision_cfg"]), name
        if "text_cfg" in model_cfg:
            assert towers["text_tower"] == chosen(TEXT_TOWERS, model_cfg["text_cfg"]), name
        else:
            is_modern = model_cfg["multimodal_cfg"].get("text_arch") == "modern"
            assert towers["text_tower"] == f"open_clip_{'modern' if is_modern else 'mammut'}_text", name


@pytest.mark.parametrize("name", SAMPLE)
def test_towers_equal_open_clips(name):
    assert TOWERS[name] == collect_towers(get_architecture(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TOWERS if name not in SAMPLE])
def test_towers_of_every_architecture_equal_open_clips(name):
    assert TOWERS[name] == collect_towers(get_architecture(name))


@pytest.mark.parametrize("name", [*SAMPLE, *TOWERS_4])
def test_our_models_have_the_parameters_listed(name):
    config, towers = build_config(get_architecture(name)), {**TOWERS, **TOWERS_4}[name]
    with torch.device("meta"):
        model = MODEL_CLASSES[config.model_type](config)
    assert config.vision_config.model_type == towers["vision_tower"]
    assert model.num_parameters() == towers["parameters"]
    assert model.vision_model.num_parameters() == towers["vision_parameters"]
    assert model.text_model.num_parameters() == towers["text_parameters"]


def test_list_models_says_what_a_model_takes_and_needs():
    (model,) = list_models("ViT-B-32-plus-256")
    assert (model.image_size, model.context_length, model.timm_model, model.tokenizer) == (256, 77, None, None)
    (model,) = list_models("ViT-B-16-SigLIP2-512")
    assert (model.image_size, model.context_length, model.timm_model) == (512, 64, None)
    assert model.tokenizer == "timm/ViT-B-16-SigLIP2-512"
    assert next(list_models("PE-Core-T*")).timm_model == "vit_pe_core_tiny_patch16_384"
