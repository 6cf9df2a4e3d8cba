"""Models are made of plain torch layers: other libraries find, replace, adapt, count and differentiate them."""

import copy
import re

import pytest
import torch
from tiny_configs import tiny_clip_cfg
from tiny_models import MODELS, main_outputs, tiny_config, tiny_inputs, tiny_model
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import BitsAndBytesConfig, CLIPConfig, CLIPModel

from open_clip_transformers.configuration.configuration_open_clip import OpenClipConfig
from open_clip_transformers.configuration.configuration_text import OpenClipTextConfig
from open_clip_transformers.configuration.configuration_vit import OpenClipVitConfig
from open_clip_transformers.modeling.modeling_layers import LayerNormFp32
from open_clip_transformers.modeling.modeling_open_clip import OpenClipModel


WIDTHS = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**WIDTHS, "image_size": 32, "patch_size": 8, "projection_dim": 32}
TEXT = {**WIDTHS, "vocab_size": 100, "max_position_embeddings": 12, "projection_dim": 32}
ADAPTED = ["vit", "siglip_vit", "resnet", "text", "coca"]


@pytest.fixture
def pair() -> tuple[OpenClipModel, CLIPModel]:
    """A CLIP of ours and transformers' CLIPModel of the same size."""
    torch.manual_seed(0)
    ours = OpenClipModel(
        OpenClipConfig(
            vision_config=OpenClipVitConfig(**VISION), text_config=OpenClipTextConfig(**TEXT), projection_dim=32
        )
    )
    theirs = CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=32))
    return ours.eval(), theirs.eval()


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(1, 99, (3, 12), generator=generator),
        "pixel_values": torch.randn(3, 3, 32, 32, generator=generator),
    }


def layers_of(model: nn.Module, *types: type) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, types)}


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_of_torchs_own_types(name):
    """Tools go by the exact type, which a subclass does not have."""
    if name.endswith(("hf_text", "timm_vision")):
        pytest.skip("made of modules of other libraries")
    kinds = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d)
    types = {type(layer) for layer in layers_of(tiny_model(name), *kinds).values()}
    assert types <= set(kinds)


def test_layer_norm_in_fp32_is_the_one_layer_of_a_type_of_its_own():
    config = tiny_config(tiny_clip_cfg())
    config.vision_config.norm_layer = "layer_norm_fp32"
    norms = layers_of(OpenClipModel(config).vision_model.encoder, nn.LayerNorm).values()
    assert {type(norm) for norm in norms} == {LayerNormFp32}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.filterwarnings("ignore")
def test_bitsandbytes_replaces_as_many_layers_as_in_transformers_clip(bits, pair, inputs, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    kind = {8: bitsandbytes.nn.Linear8bitLt, 4: bitsandbytes.nn.Linear4bit}[bits]
    settings = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    counts = []
    for model in pair:
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        expected = model(**inputs).image_embeds
        quantized = type(model).from_pretrained(folder, quantization_config=settings, device_map="cpu")
        assert getattr(quantized, f"is_loaded_in_{bits}bit")
        # transformers leaves out what it takes for the output layer, the last one.
        counts.append(len(layers_of(quantized, kind)))
        outputs = quantized(**inputs).image_embeds
        assert nn.functional.cosine_similarity(outputs.float(), expected).min() > 0.9
    assert counts[0] == counts[1] > 0


@pytest.mark.filterwarnings("ignore")
def test_dynamic_quantisation_replaces_as_many_layers_as_in_transformers_clip(pair, inputs):
    counts = []
    for model in pair:
        expected = model(**inputs).image_embeds
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        counts.append(len(layers_of(quantized, torch.ao.nn.quantized.dynamic.Linear)))
        assert nn.functional.cosine_similarity(quantized(**inputs).image_embeds, expected).min() > 0.9
    assert counts[0] == counts[1] == len(layers_of(pair[0], nn.Linear))


@pytest.mark.parametrize("gradients", [False, True], ids=["without gradients", "with gradients"])
def test_operations_are_counted_as_those_of_transformers_clip(gradients, pair, inputs):
    counts = []
    for model in pair:
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(gradients):
            logits = model(**inputs).logits_per_image
            if gradients:
                logits.sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 1e6


@pytest.mark.parametrize("name", ["vit", "siglip_vit", "resnet"])
@torch.no_grad()
def test_forward_mode_derivative_is_the_finite_difference(name):
    model = tiny_model(name).double()
    pixel_values = tiny_inputs(model)["pixel_values"].double()
    direction = torch.randn(pixel_values.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def embed(pixel_values: torch.Tensor) -> torch.Tensor:
        return model(pixel_values).pooler_output

    with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has no forward-mode derivative
        _, derivative = torch.func.jvp(embed, (pixel_values,), (direction,))
        step = 1e-6
        difference = (embed(pixel_values + step * direction) - embed(pixel_values - step * direction)) / (2 * step)
    assert derivative.abs().max() > 1e-3
    torch.testing.assert_close(derivative, difference, rtol=1e-4, atol=1e-3 * derivative.abs().max().item())


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", ADAPTED)
def test_adapters_fit_every_linear_layer_and_convolution(name, dora):
    peft = pytest.importorskip("peft")
    model = tiny_model(name)
    inputs = tiny_inputs(model)
    targets = list(layers_of(model, nn.Linear, nn.Conv2d))
    adapted = peft.get_peft_model(
        copy.deepcopy(model), peft.LoraConfig(r=2, target_modules=targets, use_dora=dora, init_lora_weights=False)
    )
    replaced = layers_of(adapted, peft.tuners.lora.LoraLayer)
    assert len(replaced) == len(targets)
    outputs = main_outputs(adapted(**inputs))
    sum(output.float().square().sum() for output in outputs).backward()
    trained = {n: p.grad for n, p in adapted.named_parameters() if re.search(r"lora_[AB]", n)}
    assert len(trained) == 2 * len(targets)
    assert all(gradient is not None and gradient.any() for gradient in trained.values())
    with torch.no_grad():
        before = main_outputs(adapted(**inputs))
        merged = main_outputs(adapted.merge_and_unload()(**inputs))
        plain = main_outputs(model(**inputs))
    for ours, expected in zip(merged, before, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert any(not torch.allclose(ours, other, atol=1e-4) for ours, other in zip(merged, plain, strict=True))
