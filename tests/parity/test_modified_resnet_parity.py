"""The ResNet tower against open_clip's `ModifiedResNet` (open_clip: `modified_resnet.py`)."""

import pytest
import torch
from model_pairs import (
    BOUND,
    assert_same_gradients,
    converted,
    converted_tensors,
    model_pair,
    random_images,
    random_texts,
    relative_difference,
)
from tiny_configs import open_clip_model, tiny_resnet_cfg
from transformers import AutoModel

from open_clip_transformers.modeling.modeling_open_clip import OpenClipModel


# Name -> changes to `vision_cfg`.
OPTIONS = {
    "plain": {},
    "one_bottleneck_a_stage": {"layers": [1, 1, 1, 1]},
    "deep": {"layers": [3, 4, 6, 3]},
    "one_head": {"head_width": 192},
    "odd_width": {"width": 7, "head_width": 32},
    "one_token": {"image_size": 32},
    "image_not_a_multiple_of_32": {"image_size": 90},
    "odd_image": {"image_size": 105},
    # Fields of other towers.
    "other_fields": {"patch_size": 7, "mlp_ratio": 2.0, "pool_type": "avg", "qk_norm": True, "no_ln_pre": True},
}


def assert_same_outputs(model_cfg: dict):
    reference, model = model_pair(model_cfg)
    images = random_images(model_cfg)
    with torch.no_grad():
        outputs = model.vision_model(images, output_hidden_states=True)
        expected = reference.visual.forward_intermediates(images)
    assert relative_difference(outputs.pooler_output, expected["image_features"]) < BOUND
    for ours, theirs in zip(outputs.hidden_states, expected["image_intermediates"], strict=True):
        assert relative_difference(ours, theirs) < BOUND
    last = expected["image_intermediates"][-1].flatten(2).transpose(1, 2)
    assert relative_difference(outputs.last_hidden_state, last) < BOUND


@pytest.mark.parametrize("vision_cfg", OPTIONS.values(), ids=OPTIONS)
def test_modified_resnet_equals_open_clip(vision_cfg):
    assert_same_outputs(tiny_resnet_cfg(vision_cfg=vision_cfg))


def test_quick_gelu_is_of_the_text_tower_alone():
    # open_clip: `_build_vision_tower` in `model.py` hands no activation to a ResNet.
    plain, quick = (open_clip_model(tiny_resnet_cfg(quick_gelu=value)) for value in (False, True))
    images = random_images(tiny_resnet_cfg())
    assert torch.equal(plain.visual(images), quick.visual(images))
    model = converted(tiny_resnet_cfg(quick_gelu=True), quick)
    assert model.config.text_config.hidden_act == "quick_gelu"
    assert relative_difference(model.vision_model(images).pooler_output, quick.visual(images)) < BOUND


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_.* is deprecated:FutureWarning")
@pytest.mark.parametrize("checkpointing", [None, "reentrant", "non_reentrant"])
def test_modified_resnet_trains_as_open_clip(checkpointing):
    model_cfg = tiny_resnet_cfg()
    reference, model = model_pair(model_cfg)
    if checkpointing:
        kwargs = {"use_reentrant": checkpointing == "reentrant"}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    images, texts = random_images(model_cfg), random_texts([3, 7, 11], 11)
    reference.train()
    model.train()
    weights = torch.randn(3, 3)
    image, text, scale = reference(images, texts)
    expected = scale * image @ text.T
    logits = model(texts, images).logits_per_image
    assert relative_difference(logits, expected) < BOUND
    for output in (logits, expected):
        (output * weights).sum().backward()
    assert_same_gradients(model, reference)
    statistics = converted_tensors(model.config, reference.state_dict())
    buffers = dict(model.named_buffers())
    assert len(buffers) == 3 * (3 + 3 * 6 + 4)
    for name, buffer in buffers.items():
        if name.endswith("num_batches_tracked"):
            assert buffer.item() == statistics[name].item() == 8
        else:
            assert relative_difference(buffer, statistics[name]) < BOUND, name


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def assert_error_within_twice_the_reference(exact, ours, theirs):
    our_error, their_error = (ours.float() - exact).norm(), (theirs.float() - exact).norm()
    assert their_error > 0
    assert our_error <= 2 * their_error, f"our error {our_error:.2e}, open_clip's {their_error:.2e}"


@every_dtype
def test_modified_resnet_in_low_precision_is_as_near_to_fp32_as_open_clip(dtype):
    # open_clip: precision "pure_bf16" / "pure_fp16" of `create_model` in `factory.py`.
    model_cfg = tiny_resnet_cfg()
    reference, model = model_pair(model_cfg)
    images = random_images(model_cfg, 8)
    with torch.no_grad():
        exact = reference.visual(images)
        theirs = reference.to(dtype).visual(images.to(dtype))
        ours = model.to(dtype).vision_model(images).pooler_output
    assert ours.dtype == dtype
    assert_error_within_twice_the_reference(exact, ours, theirs)


def test_modified_resnet_under_autocast_is_as_near_to_fp32_as_open_clip():
    # open_clip: precision "amp_bf16".
    model_cfg = tiny_resnet_cfg()
    reference, model = model_pair(model_cfg)
    images = random_images(model_cfg, 8)
    with torch.no_grad():
        exact = reference.visual(images)
        with torch.autocast("cpu", torch.bfloat16):
            theirs, ours = reference.visual(images), model.vision_model(images).pooler_output
    assert_error_within_twice_the_reference(exact, ours, theirs)


def test_new_weights_are_spread_as_open_clips():
    # open_clip: `ModifiedResNet.init_parameters`, and torch's own values for what it leaves alone.
    from open_clip.model import CLIP

    model_cfg = tiny_resnet_cfg(vision_cfg={"width": 24})
    reference = CLIP(**model_cfg)
    config = model_pair(model_cfg)[1].config
    expected = converted_tensors(config, reference.state_dict())
    for model in (AutoModel.from_config(config), OpenClipModel._from_config(config)):
        for name, tensor in model.vision_model.state_dict(prefix="vision_model.").items():
            theirs = expected[name].float()
            if theirs.numel() == 1 or theirs.std() == 0:
                assert torch.equal(tensor.float(), theirs), name
            elif name.endswith("_proj.bias"):
                # As everywhere in transformers; open_clip leaves torch's small random numbers.
                assert not tensor.any(), name
            else:
                assert tensor.std() / theirs.std() == pytest.approx(1, abs=0.2 if theirs.numel() > 99 else 0.5), name
                assert tensor.abs().max() / theirs.abs().max() == pytest.approx(1, abs=0.3), name
