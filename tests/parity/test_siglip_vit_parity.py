"""SigLIP's vision tower against timm's `VisionTransformer`, option by option (timm: `vision_transformer.py`, which
DeepSeek-VL2's `siglip_vit.py` is a copy of)."""

import copy

import pytest
import torch
from model_pairs import BOUND, relative_difference
from siglip_vit_pairs import converted, images_for, tower_pair
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer

from open_clip_transformers.modeling.modeling_siglip_vit import SiglipVitModel


class PostNormBlock(Block):
    """timm's layer with its norms behind the sums, as in the first transformer; timm itself has none such."""

    def forward(self, x, attn_mask=None, is_causal=False):
        x = self.norm1(x + self.drop_path1(self.ls1(self.attn(x))))
        return self.norm2(x + self.drop_path2(self.ls2(self.mlp(x))))


CLASS_TOKEN = ({"class_token": True}, {"use_class_token": True})
PREFIX = ({"class_token": True, "reg_tokens": 2}, {"use_class_token": True, "num_register_tokens": 2})


def both(*options: tuple[dict, dict]) -> tuple[dict, dict]:
    """timm's arguments and our fields of several options."""
    return {k: v for o in options for k, v in o[0].items()}, {k: v for o in options for k, v in o[1].items()}


AVERAGE = ({"global_pool": "avg"}, {"pool_type": "avg"})
TOKEN = both(CLASS_TOKEN, ({"global_pool": "token"}, {"pool_type": "token"}))
NO_POOL = ({"global_pool": ""}, {"pool_type": "none"})
FC_NORM = ({"fc_norm": True}, {"use_fc_norm": True})
NO_FC_NORM = ({"fc_norm": False}, {"use_fc_norm": False})
INCLUDE_PREFIX = ({"pool_include_prefix": True}, {"pool_include_prefix": True})
NO_EMBED_CLASS = ({"no_embed_class": True}, {"no_embed_class": True})
QK_NORM = ({"qk_norm": True}, {"qk_norm": True})
PRE_NORM = ({"pre_norm": True}, {"use_pre_layer_norm": True})
LAYER_SCALE = ({"init_values": 0.3}, {"layer_scale_init_value": 0.3})
POST_NORM = ({"block_fn": PostNormBlock}, {"block_type": "post_norm"})
RES_POST_NORM = ({"block_fn": ResPostBlock}, {"block_type": "res_post_norm"})
TANH = ({"act_layer": "gelu_tanh"}, {"hidden_act": "gelu_pytorch_tanh"})
DYNAMIC = ({"dynamic_img_size": True}, {"dynamic_image_size": True})
PADDING = both(DYNAMIC, ({"dynamic_img_pad": True}, {"dynamic_image_padding": True}))

# Name -> timm's arguments and our fields, beyond those of a SigLIP model.
OPTIONS = {
    "siglip": both(),
    "class_token": CLASS_TOKEN,
    "register_tokens": ({"reg_tokens": 2}, {"num_register_tokens": 2}),
    "class_and_register_tokens": PREFIX,
    "no_embed_class": both(PREFIX, NO_EMBED_CLASS),
    "map_over_prefix": both(PREFIX, INCLUDE_PREFIX),
    "average": AVERAGE,
    "average_behind_prefix": both(AVERAGE, PREFIX),
    "average_over_prefix": both(AVERAGE, PREFIX, INCLUDE_PREFIX),
    "average_without_fc_norm": both(AVERAGE, NO_FC_NORM),
    "token": TOKEN,
    "token_fc_norm": both(TOKEN, FC_NORM),
    "no_pool": both(NO_POOL, PREFIX),
    "no_pool_fc_norm": both(NO_POOL, FC_NORM),
    "map_fc_norm": FC_NORM,
    "pre_norm": PRE_NORM,
    "qk_norm": QK_NORM,
    "no_qkv_bias": ({"qkv_bias": False}, {"qkv_bias": False}),
    "layer_scale": LAYER_SCALE,
    "post_norm": POST_NORM,
    "post_norm_layer_scale": both(POST_NORM, LAYER_SCALE, QK_NORM),
    "res_post_norm": RES_POST_NORM,
    "res_post_norm_layer_scale": both(RES_POST_NORM, LAYER_SCALE, QK_NORM),
    "gelu_tanh": TANH,
    "one_head": ({"num_heads": 1}, {"num_attention_heads": 1}),
    "one_layer": ({"depth": 1}, {"num_hidden_layers": 1}),
    "square": ({"img_size": 24, "patch_size": 8}, {"image_size": 24, "patch_size": 8}),
    "image_not_a_multiple_of_patches": ({"img_size": (23, 34)}, {"image_size": [23, 34]}),
    "one_channel": ({"in_chans": 1}, {"num_channels": 1}),
    "classifier": ({"num_classes": 13}, {"proj_type": "linear", "proj_bias": True, "projection_dim": 13}),
    "dropouts_act_in_training_alone": (
        {"drop_rate": 0.5, "pos_drop_rate": 0.5, "patch_drop_rate": 0.5, "proj_drop_rate": 0.5, "drop_path_rate": 0.5},
        {
            "projection_dropout": 0.5,
            "embedding_dropout": 0.5,
            "patch_dropout": 0.5,
            "hidden_dropout": 0.5,
            "drop_path_rate": 0.5,
            "attention_dropout": 0.5,
        },
    ),
    "everything": both(PREFIX, NO_EMBED_CLASS, INCLUDE_PREFIX, PRE_NORM, QK_NORM, LAYER_SCALE, TANH, PADDING),
}
every_option = pytest.mark.parametrize(("timm_args", "fields"), OPTIONS.values(), ids=OPTIONS)


def assert_same_outputs(reference: VisionTransformer, model: SiglipVitModel, images: torch.Tensor, **kwargs):
    with torch.no_grad():
        tokens = reference.forward_features(images)
        pooled = reference.forward_head(tokens)
        outputs = model(images, **kwargs)
    assert relative_difference(outputs.last_hidden_state, tokens) < BOUND
    assert relative_difference(outputs.pooler_output, pooled) < BOUND


@pytest.mark.floor
@every_option
def test_siglip_vit_equals_timm(timm_args, fields):
    reference, model = tower_pair(timm_args, fields)
    assert_same_outputs(reference, model, images_for(model))


@every_option
def test_siglip_vit_has_the_gradients_of_timm(timm_args, fields):
    reference, model = tower_pair(timm_args, fields)
    images = images_for(model)
    (reference(images) ** 2).sum().backward()
    (model(images).pooler_output ** 2).sum().backward()
    named = dict(reference.named_parameters())
    expected = converted(reference, {name: p.grad for name, p in named.items() if p.grad is not None})
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert name not in expected, name
            continue
        # Keys' biases have no gradient but rounding: a shift of all keys changes no softmax.
        bound = 1e-4 * max(expected[name].abs().max(), 1e-3 * largest)
        assert (parameter.grad - expected[name]).abs().max() <= bound, name


# Image sizes for a model of 3 x 5 patches of 7 x 6 pixels.
SIZES = {"same": (21, 30), "larger": (42, 54), "smaller": (14, 18), "other_aspect": (35, 18), "same_number": (35, 18)}
ODD_SIZES = {"same": (21, 30), "a_pixel_more": (22, 31), "a_pixel_less": (20, 29), "one_patch": (3, 4)}


@pytest.mark.floor
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(
    "options", [both(), PREFIX, both(PREFIX, NO_EMBED_CLASS)], ids=["plain", "prefix", "no_embed"]
)
def test_siglip_vit_dynamic_sizes_equal_timm(options, size):
    reference, model = tower_pair(*both(options, DYNAMIC))
    assert_same_outputs(reference, model, images_for(model, size))


@pytest.mark.floor
@pytest.mark.parametrize("size", ODD_SIZES.values(), ids=ODD_SIZES)
@pytest.mark.parametrize("image_size", [(21, 30), (23, 34)], ids=["whole_patches", "cut_patches"])
def test_siglip_vit_padding_equals_timm(image_size, size):
    options = both(PADDING, CLASS_TOKEN, ({"img_size": image_size}, {"image_size": list(image_size)}))
    reference, model = tower_pair(*options)
    assert_same_outputs(reference, model, images_for(model, size))


@pytest.mark.floor
def test_siglip_vit_interpolates_positions_on_request_as_dynamic_timm():
    reference, _ = tower_pair(*both(PREFIX, DYNAMIC))
    _, model = tower_pair(*PREFIX)
    assert_same_outputs(reference, model, images_for(model, (42, 24)), interpolate_pos_encoding=True)


@pytest.mark.floor
@pytest.mark.parametrize(
    ("select_layer", "depth"), [(-3, 1), (-2, 2), (-1, 3), (0, 3), (1, 1), (2, 2), (3, 3), (9, 3)]
)
def test_siglip_vit_select_layer_equals_a_shallower_timm(select_layer, depth):
    # DeepSeek-VL2: `create_siglip_vit`.
    reference, model = tower_pair({"depth": depth}, {"select_layer": select_layer})
    assert len(model.encoder.layers) == depth
    assert_same_outputs(reference, model, images_for(model))


@pytest.mark.floor
def test_siglip_vit_pooler_may_have_an_activation_of_its_own():
    # DeepSeek-VL2's layers have the tanh form, and its pooler not, as timm's had at the time.
    timm_args, fields = TANH
    reference, model = tower_pair(timm_args, {**fields, "pooler_hidden_act": "gelu"})
    reference.attn_pool.mlp.act = torch.nn.GELU()
    assert_same_outputs(reference, model, images_for(model))


def test_siglip_vit_ignore_head_gives_the_features_of_timm():
    # DeepSeek-VL2: `VisionTransformer.forward`.
    reference, model = tower_pair({}, {"ignore_head": True})
    images = images_for(model)
    with torch.no_grad():
        outputs = model(images)
        assert relative_difference(outputs.last_hidden_state, reference.forward_features(images)) < BOUND
    assert outputs.pooler_output is None


@pytest.mark.floor
@pytest.mark.parametrize("block", [both(), POST_NORM, RES_POST_NORM], ids=["pre_norm", "post_norm", "res_post_norm"])
def test_siglip_vit_training_draws_the_same_numbers_as_timm(block):
    # Every dropout but those of patches and attention weights, which timm draws in other orders.
    timm_args = {"drop_rate": 0.1, "pos_drop_rate": 0.2, "proj_drop_rate": 0.3, "drop_path_rate": 0.4}
    fields = {"projection_dropout": 0.1, "embedding_dropout": 0.2, "hidden_dropout": 0.3, "drop_path_rate": 0.4}
    reference, model = tower_pair(*both(block, CLASS_TOKEN, (timm_args, fields)))
    images = images_for(model, batch=5)
    outputs = []
    for tower in (reference, model):
        torch.manual_seed(4)
        outputs.append(tower.train()(images))
    assert relative_difference(outputs[1].pooler_output, outputs[0]) < BOUND
    assert relative_difference(outputs[1].pooler_output, model.eval()(images).pooler_output) > 0.1


@pytest.mark.parametrize("options", [both(), CLASS_TOKEN, PREFIX], ids=["none", "class", "class_and_registers"])
def test_siglip_vit_patch_dropout_keeps_as_many_tokens_as_timm(options):
    reference, model = tower_pair(*both(options, NO_POOL, ({"patch_drop_rate": 0.4}, {"patch_dropout": 0.4})))
    images = images_for(model)
    expected = reference.train()(images)
    prefix = model.config.num_prefix_tokens
    assert model.train()(images).pooler_output.shape == expected.shape == (2, prefix + 9, 36)
    with torch.no_grad():
        embeddings = model.embeddings(images)
        assert torch.equal(model.patch_dropout(embeddings)[:, :prefix], embeddings[:, :prefix])


@pytest.mark.floor
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["siglip", "everything", "average", "post_norm", "res_post_norm"])
def test_siglip_vit_is_no_further_from_fp32_than_timm(name, dtype):
    reference, model = tower_pair(*OPTIONS[name])
    images = images_for(model, batch=8)
    with torch.no_grad():
        exact = reference(images)
        theirs = copy.deepcopy(reference).to(dtype)(images.to(dtype))
        ours = copy.deepcopy(model).to(dtype)(images.to(dtype)).pooler_output
    assert ours.dtype == dtype
    assert relative_difference(ours, exact) <= 2 * relative_difference(theirs, exact)
