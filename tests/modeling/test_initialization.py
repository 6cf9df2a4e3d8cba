"""New weights: every parameter gets a value of its own kind, whatever memory held before."""

import math

import pytest
import torch
from safetensors.torch import save_file
from tiny_configs import HF_ENCODERS, tiny_hf_text_cfg
from tiny_models import CLIP, COCA, MODELS, SIGLIP, tiny_config

from open_clip_transformers.modeling.modeling_coca import CoCaModel
from open_clip_transformers.modeling.modeling_layers import (
    AttentionalPooler,
    CustomAttention,
    LayerScale,
)
from open_clip_transformers.modeling.modeling_open_clip import OpenClipDualModel, OpenClipModel, OpenClipSiglipModel
from open_clip_transformers.modeling.modeling_text import OpenClipTextEmbeddings
from open_clip_transformers.modeling.modeling_vit import OpenClipVitEmbeddings


def new_model(name: str, seed: int = 0):
    model_class, make_config = MODELS[name]
    torch.manual_seed(seed)
    return model_class(make_config())


def spread(weight: torch.Tensor) -> float:
    return weight.detach().std().item()


@pytest.mark.floor
@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_initialised(name, memory_of_nans):
    model = new_model(name)
    assert [key for key, weight in model.state_dict().items() if not weight.isfinite().all()] == []


@pytest.mark.parametrize("name", MODELS)
def test_random_parameters_follow_the_seed(name):
    first, again, other = new_model(name, 0), new_model(name, 0), new_model(name, 1)
    constant = {key for key, weight in first.state_dict().items() if torch.equal(weight, other.state_dict()[key])}
    for key, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[key]), key
    is_constant = ("bias", "norm", "layer_scale", "logit_scale", "logit_bias", "head_scale", "value_mix")
    sin_cos = "sin_cos" in getattr(getattr(first.config, "vision_config", first.config), "position_embedding_type", "")
    for key in first.state_dict():
        if "timm_model." in key:  # initialised by timm, which has its own choice of constants
            continue
        fixed = any(part in key.lower() for part in is_constant) or (sin_cos and key.endswith("s.position_embedding"))
        assert (key in constant) == fixed, key


def test_parameters_have_their_kinds_of_values():
    for config in (tiny_config(CLIP), tiny_config(COCA)):
        model = (CoCaModel if config.model_type == "open_clip_coca" else OpenClipModel)(config)
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.LayerNorm):
                assert (module.weight == 1).all() and (module.bias == 0).all(), name
            elif isinstance(module, LayerScale):
                assert (module.gamma == module.init_value).all() and module.init_value in (0.1, 0.2, 0.3), name
            elif isinstance(module, CustomAttention) and module.logit_scale is not None:
                assert torch.allclose(module.logit_scale, torch.tensor(math.log(10)))
                assert (module.head_scale == 1).all()
            elif isinstance(module, AttentionalPooler):
                assert 0.7 < spread(module.query) < 1.3, name
            elif isinstance(module, OpenClipVitEmbeddings):
                assert spread(module.class_embedding) == pytest.approx(config.vision_config.hidden_size**-0.5, rel=0.5)
            elif isinstance(module, OpenClipTextEmbeddings) and module.class_embedding is not None:
                assert spread(module.class_embedding) == pytest.approx(0.1, rel=0.5)
            elif isinstance(module, torch.nn.Linear | torch.nn.Embedding | torch.nn.Conv2d):
                assert spread(module.weight) == pytest.approx(0.1, rel=0.2), name


@pytest.mark.parametrize(
    ("model_class", "model_cfg", "bias"),
    [(OpenClipModel, CLIP, None), (OpenClipSiglipModel, SIGLIP, -10.0), (CoCaModel, COCA, None)],
    ids=["clip", "siglip", "coca"],
)
def test_logit_scale_and_bias_start_from_the_configuration(model_class, model_cfg, bias):
    config = tiny_config(model_cfg)
    shape = (1,) if config.nonscalar_logit_scale else ()
    model = model_class(config)
    assert model.logit_scale.shape == shape
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    assert (model.logit_bias is None) if bias is None else (model.logit_bias.item() == bias)
    config.logit_scale_init_value, config.logit_bias_init_value = 0.3, 1.7
    model = model_class(config)
    assert isinstance(model, OpenClipDualModel)
    assert model.logit_scale.item() == pytest.approx(0.3)
    assert model.logit_bias.item() == pytest.approx(1.7)
    assert model.logit_bias.shape == shape


@pytest.mark.floor
def test_parts_have_their_own_initializer_range():
    config = tiny_config(CLIP)
    config.vision_config.initializer_range, config.text_config.initializer_range = 0.5, 0.001
    model = OpenClipModel(config)
    assert spread(model.vision_model.encoder.layers[0].mlp.fc1.weight) == pytest.approx(0.5, rel=0.2)
    assert spread(model.text_model.encoder.layers[0].mlp.fc1.weight) == pytest.approx(0.001, rel=0.2)


@pytest.mark.parametrize("encoder", HF_ENCODERS)
@pytest.mark.parametrize("missing", ["text_model.", "text_model.hf_model"], ids=["tower", "encoder"])
def test_weights_that_a_file_lacks_start_as_in_a_new_encoder(encoder, missing, tmp_path, memory_of_nans):
    config = tiny_config(tiny_hf_text_cfg(encoder))
    expected = OpenClipModel(config)
    expected.save_pretrained(tmp_path)
    # One tensor of each module that has a weight and a bias is there.
    lost = {k for k in expected.state_dict() if k.startswith(missing) and k.endswith("weight") and ".q." not in k}
    kept = {k: v for k, v in expected.state_dict().items() if k not in lost}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = OpenClipModel.from_pretrained(tmp_path)
    for name, weight in model.state_dict().items():
        if name not in lost:
            assert torch.equal(weight, kept[name]), name
        else:
            by_chance = 3 * weight.numel() ** -0.5  # in the spreads of so few values
            assert spread(weight) == pytest.approx(spread(expected.state_dict()[name]), rel=0.1 + by_chance), name
