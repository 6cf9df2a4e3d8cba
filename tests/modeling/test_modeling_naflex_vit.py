"""NaFlex towers: images of several shapes at once, whole images, inputs that do not fit, training."""

import pytest
import torch
from tiny_models import tiny_inputs, tiny_model, tiny_naflex_vit_config, tiny_patches
from torch.nn import functional as F

from open_clip_transformers.modeling.modeling_naflex_vit import FILTERS, NaFlexVitModel, patchify, resize_weights


POOLS = {
    "map": {"pool_type": "map"},
    "mean": {"pool_type": "avg"},
    "mean-with-prefix": {"pool_type": "avg", "pool_include_prefix": True},
    "map-with-prefix": {"pool_type": "map", "pool_include_prefix": True},
    "token": {"pool_type": "token"},
}


@pytest.fixture
def model():
    return tiny_model("naflex_vit")


@pytest.mark.floor
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS.keys())
def test_images_of_several_shapes_are_embedded_as_each_alone(pool, attn_implementation):
    config = tiny_naflex_vit_config(**pool)
    config._attn_implementation = attn_implementation
    model, inputs = NaFlexVitModel(config).eval(), tiny_patches(config)
    with torch.inference_mode():
        together = model(**inputs).pooler_output
        for index, shape in enumerate(inputs["spatial_shapes"]):
            pixel_values = inputs["pixel_values"][index : index + 1, : shape.prod()]
            alone = model(pixel_values=pixel_values, spatial_shapes=shape.unsqueeze(0)).pooler_output
            torch.testing.assert_close(together[index : index + 1], alone, atol=2e-6, rtol=2e-5)


def test_padding_is_not_seen(model):
    inputs = tiny_patches(model.config)
    hidden = inputs["pixel_attention_mask"].unsqueeze(-1) == 0
    other = {**inputs, "pixel_values": inputs["pixel_values"].masked_fill(hidden, 100.0)}
    with torch.inference_mode():
        expected, outputs = model(**inputs).pooler_output, model(**other).pooler_output
    assert torch.equal(outputs, expected)


def test_mask_follows_from_the_shapes(model):
    inputs = tiny_patches(model.config)
    mask = inputs.pop("pixel_attention_mask")
    with torch.inference_mode():
        assert torch.equal(model(**inputs).pooler_output, model(**inputs, pixel_attention_mask=mask).pooler_output)


@pytest.mark.floor
def test_whole_images_are_embedded_as_their_patches(model):
    images = torch.randn(2, 3, 16, 24)
    patches = patchify(images, (8, 6))
    assert torch.equal(patches[0, 5], images[0, :, 8:16, 6:12].permute(1, 2, 0).flatten())
    with torch.inference_mode():
        expected = model(patches, spatial_shapes=torch.tensor([[2, 4]]).expand(2, 2)).pooler_output
        torch.testing.assert_close(model(images).pooler_output, expected, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [1, 3, 16, 29])
def test_positions_are_resized_as_torch_does(interpolation, size):
    line = torch.randn(1, 5, 16, 4)
    expected = F.interpolate(line, (size, 4), mode=interpolation, antialias=True)
    weights = resize_weights(torch.arange(size), torch.tensor(size), 16, interpolation)
    torch.testing.assert_close(torch.einsum("oi,bciw->bcow", weights, line), expected, atol=2e-6, rtol=1e-5)


SHAPES = torch.tensor([[3, 4], [2, 5]])
MISFITS = {
    "no-shapes": ({"spatial_shapes": None, "pixel_attention_mask": None}, "pass spatial_shapes"),
    "other-patches": ({"pixel_values": torch.zeros(2, 12, 100)}, r"the model expects patches \(batch, patches, 144\)"),
    "two-axes": ({"pixel_values": torch.zeros(2, 12)}, "the model expects patches"),
    "too-many": ({"spatial_shapes": SHAPES + 1}, "of 12 patches at most"),
    "no-rows": ({"spatial_shapes": SHAPES * torch.tensor([[0, 1], [1, 1]])}, "whole numbers of rows and columns"),
    "overflow": ({"spatial_shapes": SHAPES * 0 + 2**32, "pixel_attention_mask": None}, "of 12 patches at most"),
    "fractions": ({"spatial_shapes": SHAPES.float()}, "whole numbers"),
    "fewer-shapes": ({"spatial_shapes": SHAPES[:1]}, r"spatial_shapes has shape \(1, 2\), the model expects \(2, 2\)"),
    "other-mask": ({"pixel_attention_mask": torch.ones(2, 12)}, "must be 1 on as many first patches"),
    "shorter-mask": ({"pixel_attention_mask": torch.ones(2, 11)}, "pixel_attention_mask has shape"),
    "whole": ({"pixel_values": torch.zeros(2, 3, 16, 12)}, "whole images: leave out pixel_attention_mask"),
    "whole-odd": (
        {"pixel_values": torch.zeros(2, 3, 16, 13), "spatial_shapes": None, "pixel_attention_mask": None},
        r"the model expects multiples of its patches' \(8, 6\)",
    ),
}


@pytest.mark.parametrize(("changes", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_inputs_that_do_not_fit_are_refused(model, changes, message):
    inputs = {**tiny_patches(model.config, batch=2), **changes}
    with pytest.raises(ValueError, match=message):
        model(**inputs)


@pytest.mark.parametrize("name", ["spatial_shapes", "pixel_attention_mask"])
def test_lists_are_refused(model, name):
    inputs = tiny_patches(model.config)
    with pytest.raises(TypeError, match=f"{name} must be a tensor, got list"):
        model(**{**inputs, name: inputs[name].tolist()})


def test_towers_of_whole_images_refuse_what_belongs_to_patches():
    model = tiny_model("clip")
    inputs = tiny_inputs(model)
    with pytest.raises(ValueError, match="Got spatial_shapes, a name that is not read here"):
        model(**inputs, spatial_shapes=torch.tensor([[3, 3]]))


def test_patches_are_dropped_in_training_alone():
    model = NaFlexVitModel(tiny_naflex_vit_config(patch_dropout=0.5))
    inputs = tiny_patches(model.config)
    assert model.train()(**inputs).last_hidden_state.shape[1] == 3 + 6
    assert model.eval()(**inputs).last_hidden_state.shape[1] == 3 + 12


def test_dual_model_trains_on_patches():
    model = tiny_model("siglip_with_naflex_vit").train()
    model(**tiny_inputs(model), return_loss=True).loss.backward()
    assert all(parameter.grad is not None for parameter in model.vision_model.parameters())


def test_tower_compiles_without_a_break(model):
    inputs = tiny_patches(model.config)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.inference_mode():
        torch.testing.assert_close(compiled(**inputs).pooler_output, model(**inputs).pooler_output)
