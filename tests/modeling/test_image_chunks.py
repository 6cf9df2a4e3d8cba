"""Large batches of images, some at a time: the same outputs, and nothing that watches the model can tell."""

import pytest
import torch
from tiny_models import tiny_inputs, tiny_model
from torch.testing import assert_close

from open_clip_transformers.modeling import image_chunks, modeling_patches


towers = pytest.mark.parametrize("name", ["clip", "siglip_vit", "resnet", "coca"])


def tower_and_pixels(name: str, images: int = 7):
    model = tiny_model(name, attn_implementation="eager").eval()
    return getattr(model, "vision_model", model), tiny_inputs(model, batch=images)["pixel_values"]


@pytest.fixture
def calls(monkeypatch):
    """Starts to count: how many images each call of a tower's first module has."""

    def count(tower) -> list[int]:
        embeddings, seen = type(tower.embeddings), []
        forward = embeddings.forward

        def counted(self, pixel_values, *args, **kwargs):
            seen.append(len(pixel_values))
            return forward(self, pixel_values, *args, **kwargs)

        monkeypatch.setattr(embeddings, "forward", counted)
        return seen

    return count


def in_threes(tower, monkeypatch):
    monkeypatch.setattr(type(tower), "images_per_chunk", lambda self, pixel_values: 3)


@towers
@torch.no_grad()
def test_outputs_are_those_of_all_images_at_once(name, monkeypatch, calls):
    tower, pixel_values = tower_and_pixels(name)
    asked = {"output_hidden_states": True, "output_attentions": True}
    expected, expected_tuple = tower(pixel_values, **asked), tower(pixel_values=pixel_values, return_dict=False)
    in_threes(tower, monkeypatch)
    seen = calls(tower)
    outputs, outputs_tuple = tower(pixel_values, **asked), tower(pixel_values=pixel_values, return_dict=False)
    assert seen == [3, 2, 2, 3, 2, 2]
    assert type(outputs) is type(expected) and list(outputs) == list(expected)
    assert_close(tuple(outputs.values()), tuple(expected.values()), atol=1e-5, rtol=1e-4)
    assert_close(outputs_tuple, expected_tuple, atol=1e-5, rtol=1e-4)


@towers
@torch.no_grad()
def test_chunks_have_activations_of_a_size(name, monkeypatch, calls):
    tower, pixel_values = tower_and_pixels(name)
    seen = calls(tower)
    tower(pixel_values)
    assert seen == [7]
    monkeypatch.setattr(image_chunks, "CHUNK_BYTES", 1)
    monkeypatch.setattr(modeling_patches, "CHUNK_TOKENS", 1)
    tower(pixel_values)
    assert seen == [7] + 7 * [1]


@towers
def test_training_and_gradients_have_all_images_at_once(name, monkeypatch, calls):
    tower, pixel_values = tower_and_pixels(name)
    in_threes(tower, monkeypatch)
    seen = calls(tower)
    tower(pixel_values)
    tower.train()
    with torch.no_grad():
        tower(pixel_values)
    assert seen == [7, 7]


@towers
@torch.no_grad()
def test_hooks_see_all_images_at_once(name, monkeypatch):
    tower, pixel_values = tower_and_pixels(name)
    expected = tower(pixel_values).pooler_output
    in_threes(tower, monkeypatch)
    seen = []
    handle = tower.encoder.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    assert torch.equal(tower(pixel_values).pooler_output, expected)
    handle.remove()
    assert seen == [7]


@torch.no_grad()
def test_bad_images_are_refused_as_ever(monkeypatch):
    tower, pixel_values = tower_and_pixels("clip")
    in_threes(tower, monkeypatch)
    for bad in (pixel_values[0], pixel_values[:, :2], pixel_values[..., :-1]):
        with pytest.raises(ValueError, match="pixel_values"):
            tower(bad)
