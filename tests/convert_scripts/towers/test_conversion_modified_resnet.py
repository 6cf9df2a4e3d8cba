"""Conversion of CLIP's ResNets: the built-in architectures at full size, and what only batch norms have."""

import pytest
import torch
from reduced_models import reduced_cfg
from safetensors.torch import load_file
from tiny_configs import open_clip_model, save_open_clip_folder, tiny_resnet_cfg

from open_clip_transformers.configuration.configuration_modified_resnet import ModifiedResNetConfig
from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.mapping.config import build_config, build_model_cfg
from open_clip_transformers.convert_scripts.mapping.plan import plan_conversion
from open_clip_transformers.convert_scripts.sources.architectures import get_architecture, list_architectures


RESNETS = [name for name in list_architectures(newer=False) if name.startswith("RN")]


def test_open_clip_has_ten_resnets():
    assert len(RESNETS) == 10


@pytest.mark.parametrize("name", RESNETS)
def test_resnet_has_the_keys_and_shapes_of_open_clip_at_full_size(name):
    from open_clip.model import CLIP

    model_cfg = get_architecture(name)
    with torch.device("meta"):
        reference = CLIP(**model_cfg)
    config = build_config(model_cfg)
    assert isinstance(config.vision_config, ModifiedResNetConfig)
    assert config.vision_config.num_attention_heads == reference.visual.attnpool.num_heads
    plan = plan_conversion(config, reference.state_dict())
    assert not plan.dropped and not plan.changed
    assert {key: tensor.shape for key, tensor in plan.converted()} == {
        key: tensor.shape for key, tensor in plan.layout.items()
    }
    parameters = sum(parameter.numel() for parameter in reference.parameters())
    assert plan.model.num_parameters() == parameters


@pytest.mark.parametrize("name", ["RN50", "RN101-quickgelu", "RN50x4", "RN50x16-quickgelu", "RN50x64"])
def test_resnet_agrees_with_open_clip_at_reduced_size(tmp_path, name):
    save_open_clip_folder(tmp_path / "source", reduced_cfg(get_architecture(name)))
    report = convert_open_clip_checkpoint(tmp_path / "source", tmp_path / "out", with_processor=False, verify="full")
    assert report.verification.differences.keys() == {"image features", "text features", "logits"}


@pytest.mark.parametrize("dtype", [None, "bfloat16"], ids=["fp32", "bf16"])
def test_batch_norm_statistics_are_carried(tmp_path, dtype):
    reference = save_open_clip_folder(tmp_path / "source", tiny_resnet_cfg())
    convert_open_clip_checkpoint(
        tmp_path / "source", tmp_path / "out", with_processor=False, verify="structure", dtype=dtype
    )
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    ours = "vision_model.encoder.stages.2.layers.0.conv2.normalization."
    theirs = reference.visual.layer3[0].bn2
    assert tensors[ours + "num_batches_tracked"].dtype == torch.int64
    assert tensors[ours + "num_batches_tracked"].item() == 7
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = tensors[ours + name]
        assert torch.equal(tensor, getattr(theirs, name).detach().to(tensor.dtype))


def test_checkpoint_for_another_image_size_is_refused():
    # open_clip cannot load it either: its `resize_pos_embed` knows vision transformers alone.
    tensors = open_clip_model(tiny_resnet_cfg()).state_dict()
    config = build_config(tiny_resnet_cfg(vision_cfg={"image_size": 64}))
    with pytest.raises(ConversionError, match=r"9 positions.*2 x 2.*Correct image_size, to 96.*interpolate_pos"):
        plan_conversion(config, tensors)


def test_image_that_is_not_square_is_refused():
    with pytest.raises(ConversionError, match=r"image_size must be one number for a ResNet, got \[96, 64\]"):
        build_config(tiny_resnet_cfg(vision_cfg={"image_size": [96, 64]}))


@pytest.mark.parametrize("name", RESNETS)
def test_configuration_goes_back_to_open_clip(name):
    config = build_config(get_architecture(name))
    again = build_config(build_model_cfg(config))
    assert again.to_dict() == config.to_dict()
