"""open_clip's models as a reference: built without downloads, and with the tensors of the checkpoint."""

import pytest
import torch
from model_pairs import converted
from reduced_models import reduced_cfg, reduced_timm
from tiny_configs import open_clip_model, tiny_clip_cfg, tiny_hf_text_cfg, tiny_resnet_cfg, tiny_siglip_cfg

from open_clip_transformers.convert_scripts.mapping.config import build_config
from open_clip_transformers.convert_scripts.mapping.plan import plan_conversion
from open_clip_transformers.convert_scripts.sources.architectures import get_architecture
from open_clip_transformers.convert_scripts.verify.reference import (
    build_open_clip_model,
    load_open_clip_model,
    require_open_clip,
    text_prefix,
)


CONFIGS = {
    "clip": tiny_clip_cfg(),
    "siglip": tiny_siglip_cfg(),
    "resnet": tiny_resnet_cfg(),
    "bert": tiny_hf_text_cfg("bert"),
    "m2m-100": tiny_hf_text_cfg("m2m_100"),
}
every_config = pytest.mark.parametrize("model_cfg", CONFIGS.values(), ids=CONFIGS)


@every_config
def test_load_open_clip_model_has_every_tensor_of_the_checkpoint(model_cfg):
    expected = open_clip_model(model_cfg)
    plan = plan_conversion(build_config(model_cfg), expected.state_dict())
    model = load_open_clip_model(model_cfg, plan)
    assert not model.training
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    wanted = {**dict(expected.named_parameters()), **dict(expected.named_buffers())}
    assert tensors.keys() == wanted.keys()
    # Buffers that no checkpoint holds included.
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in tensors.items())


def test_load_open_clip_model_rounds_but_counts():
    model_cfg = tiny_resnet_cfg()
    source = open_clip_model(model_cfg).state_dict()
    plan = plan_conversion(build_config(model_cfg), source)
    for name, tensor in load_open_clip_model(model_cfg, plan, torch.bfloat16).state_dict().items():
        expected = source[name].bfloat16().float() if source[name].is_floating_point() else source[name]
        assert torch.equal(tensor, expected) and tensor.dtype == source[name].dtype, name


def test_load_open_clip_model_changes_neither_the_checkpoint_nor_the_random_state():
    model_cfg = tiny_clip_cfg()
    source = open_clip_model(model_cfg).state_dict()
    before = {name: tensor.clone() for name, tensor in source.items()}
    plan = plan_conversion(build_config(model_cfg), source)
    state = torch.get_rng_state()
    load_open_clip_model(model_cfg, plan, torch.float16)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.items())


def test_build_open_clip_model_takes_the_encoder_from_our_configuration():
    model_cfg = tiny_hf_text_cfg("roberta")
    reference = open_clip_model(model_cfg)
    config = converted(model_cfg, reference).config
    text_cfg = {
        **model_cfg["text_cfg"],
        "hf_model_name": "not-a-folder/and-not-in-the-cache",
        "hf_model_pretrained": True,
    }
    model = build_open_clip_model({**model_cfg, "text_cfg": text_cfg}, config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in reference.state_dict().items()}


def test_text_prefix_is_where_the_text_tower_is():
    assert text_prefix(open_clip_model(tiny_clip_cfg())) == ""
    assert text_prefix(open_clip_model(tiny_siglip_cfg())) == "text."


def test_require_open_clip_names_the_reference():
    assert require_open_clip() == "open_clip 3.3.0"


def test_load_open_clip_model_sets_models_of_timm_to_the_image_size():
    with reduced_timm():
        model_cfg = reduced_cfg(get_architecture("ViT-B-16-SigLIP"))
        source = open_clip_model(model_cfg).state_dict()
        resized = {**model_cfg, "vision_cfg": {**model_cfg["vision_cfg"], "image_size": [160, 192]}}
        model = load_open_clip_model(resized, plan_conversion(build_config(resized), source))
    assert model.visual.trunk.pos_embed.shape[1] == 10 * 12
    assert model.visual(torch.randn(1, 3, 160, 192)).isfinite().all()
