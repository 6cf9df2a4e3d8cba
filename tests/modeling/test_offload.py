"""Weights spread over memory and disk by accelerate give the same results, captions included."""

import pytest
import torch
from tiny_models import PAD, main_outputs, tiny_inputs, tiny_model


PLACES = {
    "auto": "auto",
    "all_on_disk": "disk",
    "vision_on_disk": {"vision_model": "disk"},
    "text_on_disk": {"text_model": "disk"},
    "decoder_on_disk": {"multimodal_decoder": "disk"},
    "head_on_disk": {"lm_head": "disk"},
}
CAPTIONERS = ("coca", "mammut", "coca_modern", "mammut_modern")
OF_CAPTIONERS = ("decoder_on_disk", "head_on_disk")
CASES = [
    (name, place)
    for name in ("clip", "siglip", *CAPTIONERS)
    for place in PLACES
    if name in CAPTIONERS or place not in OF_CAPTIONERS
]


def load_with(model, folder, places):
    """`model` loaded with the parts of `places` there and all others in memory; "disk" puts every module there."""
    model.save_pretrained(folder)
    if places != "auto":
        modules = dict(model.named_children())
        places = dict.fromkeys(modules, "disk") if places == "disk" else places
        places = {name.split(".")[0]: "cpu" for name in model.state_dict()} | places
    return type(model).from_pretrained(folder, device_map=places, offload_folder=folder / "offload")


@pytest.mark.filterwarnings("ignore:.*device_map keys do not match any submodules")
@pytest.mark.parametrize(("name", "place"), CASES)
def test_model_gives_the_same_with_parts_on_disk(name, place, tmp_path):
    model = tiny_model(name)
    offloaded = load_with(model, tmp_path, PLACES[place])
    on_disk = {key for key, weight in offloaded.named_parameters() if weight.device.type == "meta"}
    assert bool(on_disk) == (place != "auto")
    inputs = tiny_inputs(model)
    with torch.no_grad():
        for ours, expected in zip(main_outputs(offloaded(**inputs)), main_outputs(model(**inputs)), strict=True):
            assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-6)
        for features, argument in (("get_image_features", "pixel_values"), ("get_text_features", "input_ids")):
            ours, expected = (getattr(m, features)(inputs[argument]).pooler_output for m in (offloaded, model))
            assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*device_map keys do not match any submodules")
@pytest.mark.parametrize("places", [PLACES["all_on_disk"], PLACES["head_on_disk"]], ids=["all", "head"])
def test_coca_captions_with_parts_on_disk(places, tmp_path):
    model = tiny_model("coca")
    offloaded = load_with(model, tmp_path, places)
    pixel_values = tiny_inputs(model)["pixel_values"]
    prompts = torch.tensor([[95, 7, 8], [PAD, 95, 9], [95, PAD, 11]])
    attention_mask = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 1]])
    for settings in ({}, {"num_beams": 2}, {"input_ids": prompts, "attention_mask": attention_mask}):
        captions = [m.generate(pixel_values=pixel_values, max_new_tokens=5, **settings) for m in (model, offloaded)]
        assert torch.equal(*captions)


@pytest.mark.filterwarnings("ignore:.*device_map keys do not match any submodules")
def test_device_map_auto_splits_between_memory_and_disk(tmp_path):
    model = tiny_model("clip")
    model.save_pretrained(tmp_path)
    # The towers' layers are never split.
    offloaded = type(model).from_pretrained(
        tmp_path, device_map="auto", max_memory={"cpu": 60_000}, offload_folder=tmp_path / "offload"
    )
    assert set(offloaded.hf_device_map.values()) == {"cpu", "disk"}
    for tower in (offloaded.vision_model, offloaded.text_model):
        for layer in tower.encoder.layers:
            assert len({weight.device.type for weight in layer.parameters()}) == 1
    with torch.no_grad():
        for ours, expected in zip(
            main_outputs(offloaded(**tiny_inputs(model))), main_outputs(model(**tiny_inputs(model))), strict=True
        ):
            assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*device_map keys do not match any submodules")
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("vit", "embeddings"),
        ("vit", "encoder"),
        ("siglip_vit", "embeddings"),
        ("siglip_vit", "encoder"),
        ("siglip_vit", "pooler"),
        ("text_with_class_token", "embeddings"),
        ("text_with_class_token", "encoder"),
        ("image_classification", "vision_model"),
    ],
)
def test_tower_gives_the_same_with_a_part_on_disk(name, part, tmp_path):
    model = tiny_model(name)
    offloaded = load_with(model, tmp_path, {part: "disk"})
    with torch.no_grad():
        for ours, expected in zip(
            main_outputs(offloaded(**tiny_inputs(model))), main_outputs(model(**tiny_inputs(model))), strict=True
        ):
            assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-6)
