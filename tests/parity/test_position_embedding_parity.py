"""Resizing of position embeddings against open_clip, which does it as it loads weights (open_clip: `model.py`)."""

from types import SimpleNamespace

import pytest
import torch
from model_pairs import BOUND, converted, model_pair, random_images, relative_difference
from tiny_configs import open_clip_model, tiny_clip_cfg, tiny_coca_cfg

from open_clip_transformers.modeling.modeling_text import resize_text_position_embedding
from open_clip_transformers.modeling.modeling_vit import resize_position_embedding


GRIDS = {"larger": (7, 7), "smaller": (2, 2), "tall": (9, 4), "wide": (3, 8), "one_row": (1, 6)}


@pytest.mark.floor
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_resize_position_embedding_equals_open_clip(grid):
    # open_clip: `resize_pos_embed` in `model.py`: bicubic, antialias, the class token apart.
    from open_clip.model import resize_pos_embed

    table = torch.randn(1 + 5 * 5, 12)
    state_dict = {"visual.positional_embedding": table.clone()}
    resize_pos_embed(state_dict, SimpleNamespace(visual=SimpleNamespace(grid_size=grid)))
    resized = resize_position_embedding(table, (5, 5), grid)
    assert relative_difference(resized, state_dict["visual.positional_embedding"]) < BOUND


@pytest.mark.floor
@pytest.mark.parametrize("positions", [5, 11, 30], ids=["shorter", "equal", "longer"])
def test_resize_text_position_embedding_equals_open_clip(positions):
    # open_clip: `resize_text_pos_embed` in `model.py`: linear, no antialias.
    from open_clip.model import resize_text_pos_embed

    table = torch.randn(11, 12)
    state_dict = {"positional_embedding": table.clone()}
    resize_text_pos_embed(state_dict, SimpleNamespace(positional_embedding=torch.empty(positions, 12)))
    resized = resize_text_position_embedding(table, positions)
    assert relative_difference(resized, state_dict["positional_embedding"]) < BOUND


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_resized_position_embeddings_are_rounded_once(dtype):
    table = torch.randn(26, 12).to(dtype)
    for resize, sizes in (
        (resize_position_embedding, ((5, 5), (7, 3))),
        (resize_text_position_embedding, (40,)),
    ):
        resized = resize(table, *sizes)
        assert resized.dtype == dtype
        assert torch.equal(resized, resize(table.float(), *sizes).to(dtype))


@pytest.mark.floor
@pytest.mark.parametrize("image_size", [[40, 40], [16, 56], [24, 80]], ids=["larger", "not_square", "wide"])
@pytest.mark.parametrize("cfg", [tiny_clip_cfg(), tiny_coca_cfg()], ids=["clip", "coca"])
def test_interpolate_pos_encoding_equals_open_clip_loaded_at_that_size(cfg, image_size):
    from open_clip.model import resize_pos_embed

    reference, model = model_pair(cfg)
    resized_cfg = {**cfg, "vision_cfg": {**cfg["vision_cfg"], "image_size": image_size}}
    resized = open_clip_model(resized_cfg)
    state_dict = reference.state_dict()
    resize_pos_embed(state_dict, resized)
    resized.load_state_dict(state_dict)
    images = random_images(resized_cfg)
    with torch.no_grad():
        expected = resized.encode_image(images, normalize=False)
        outputs = model.get_image_features(images, interpolate_pos_encoding=True)
    assert relative_difference(outputs.pooler_output, expected) < BOUND
    # The converter resizes in the same way, given a checkpoint of another size.
    with torch.no_grad():
        at_load = converted(resized_cfg, reference).get_image_features(images).pooler_output
    assert relative_difference(at_load, outputs.pooler_output) < BOUND


def test_interpolate_pos_encoding_changes_nothing_at_the_model_size():
    cfg = tiny_clip_cfg()
    _, model = model_pair(cfg)
    images = random_images(cfg)
    with torch.no_grad():
        plain = model.vision_model(images)
        interpolated = model.vision_model(images, interpolate_pos_encoding=True)
    assert torch.equal(plain.pooler_output, interpolated.pooler_output)


def test_interpolate_pos_encoding_in_bf16_stays_near_fp32():
    cfg = tiny_clip_cfg()
    _, model = model_pair(cfg)
    images = torch.randn(3, 3, 40, 16)
    with torch.no_grad():
        exact = model.get_image_features(images, interpolate_pos_encoding=True).pooler_output
        low = model.bfloat16().get_image_features(images, interpolate_pos_encoding=True).pooler_output
    assert low.dtype == torch.bfloat16
    assert relative_difference(low, exact) < 0.05
