"""The built-in architectures that ship as data."""

import pytest

from open_clip_transformers.convert_scripts.common import DATA_FOLDER, ConversionError
from open_clip_transformers.convert_scripts.data.update import collect_architectures, format_table
from open_clip_transformers.convert_scripts.sources.architectures import ARCHITECTURES, get_architecture


def test_architectures_equal_the_installed_open_clip():
    assert (DATA_FOLDER / f"{ARCHITECTURES}.json").read_text() == format_table(collect_architectures()) + "\n"


@pytest.mark.parametrize("name", ["ViT-B-32", "coca_ViT-L-14"])
def test_quickgelu_variant_differs_in_the_activation_alone(name):
    quick = get_architecture(f"{name}-quickgelu")
    assert quick.pop("quick_gelu") is True
    assert quick == get_architecture(name)


def test_get_architecture_reads_slashes_as_dashes():
    assert get_architecture("ViT-B/32") == get_architecture("ViT-B-32")


def test_get_architecture_returns_a_copy():
    get_architecture("ViT-B-32")["vision_cfg"]["layers"] = 1
    assert get_architecture("ViT-B-32")["vision_cfg"]["layers"] == 12


@pytest.mark.parametrize(
    ("name", "message"),
    [("ViT-B-23", "Did you mean .*ViT-B-32"), ("Inception", "Known names: "), ("", "Known names")],
    ids=["misspelt", "unlike-any", "empty"],
)
def test_get_architecture_helps_with_unknown_names(name, message):
    with pytest.raises(ConversionError, match=message):
        get_architecture(name)
