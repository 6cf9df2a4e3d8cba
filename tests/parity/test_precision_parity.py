"""Low precision: norms bit-equal to open_clip's, and models no further from fp32 than open_clip's own.

The measure for a model is a ratio: our error against fp32 is at most twice open_clip's.
"""

import copy

import pytest
import torch
from model_pairs import model_pair, random_images, random_texts
from tiny_configs import open_clip_model, tiny_clip_cfg, tiny_coca_cfg, tiny_siglip_cfg

from open_clip_transformers.modeling.modeling_layers import LayerNormFp32


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
CONFIGS = {"clip": tiny_clip_cfg(), "siglip": tiny_siglip_cfg(), "coca": tiny_coca_cfg()}
every_config = pytest.mark.parametrize("model_cfg", CONFIGS.values(), ids=CONFIGS)


def norm_pair(ours: type, theirs: str, eps: float):
    import open_clip.transformer

    reference = getattr(open_clip.transformer, theirs)(13, eps=eps)
    reference.weight.data, reference.bias.data = torch.randn(13), torch.randn(13)
    norm = ours(13, eps=eps)
    norm.load_state_dict(reference.state_dict())
    return reference, norm


# open_clip: `LayerNorm` and `LayerNormFp32` in `transformer.py`.
@pytest.mark.floor
@pytest.mark.parametrize("eps", [1e-5, 0.3], ids=["default_eps", "large_eps"])
@every_dtype
def test_layer_norm_fp32_is_bit_equal_to_open_clip(dtype, eps):
    reference, norm = norm_pair(LayerNormFp32, "LayerNormFp32", eps)
    for hidden_states in (torch.randn(5, 3, 13), 30 * torch.randn(5, 3, 13).to(dtype)):
        normalized = norm(hidden_states)
        assert normalized.dtype == hidden_states.dtype
        assert torch.equal(normalized, reference(hidden_states))


def test_layer_norm_fp32_takes_half_precision_weights():
    # `from_pretrained(dtype=...)` casts all weights; open_clip leaves those of norms in fp32.
    _, norm = norm_pair(LayerNormFp32, "LayerNormFp32", 1e-5)
    low = copy.deepcopy(norm).bfloat16()
    hidden_states = torch.randn(5, 3, 13).bfloat16()
    norm.load_state_dict(low.state_dict())
    assert torch.equal(low(hidden_states), norm(hidden_states))


@pytest.mark.floor
@every_dtype
def test_layer_norm_is_bit_equal_to_open_clip(dtype):
    reference, norm = norm_pair(torch.nn.LayerNorm, "LayerNorm", 1e-5)
    hidden_states = torch.randn(5, 3, 13)
    assert torch.equal(norm(hidden_states), reference(hidden_states))
    low = norm.to(dtype)(hidden_states.to(dtype))
    assert low.dtype == dtype
    assert torch.equal(low, reference.to(dtype)(hidden_states.to(dtype)))


@pytest.mark.parametrize("name", ["LayerNorm", "LayerNormFp32"])
def test_layer_norm_keeps_the_input_dtype_under_autocast_as_open_clip(name):
    reference, norm = norm_pair({"LayerNorm": torch.nn.LayerNorm, "LayerNormFp32": LayerNormFp32}[name], name, 1e-5)
    for hidden_states in (torch.randn(5, 3, 13), torch.randn(5, 3, 13).bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            normalized, expected = norm(hidden_states), reference(hidden_states)
        assert normalized.dtype == hidden_states.dtype
        assert torch.equal(normalized, expected)


def outputs_of(model, images: torch.Tensor, texts: torch.Tensor) -> list[torch.Tensor]:
    """Image embeddings, text embeddings and, of CoCa, caption logits, in fp32, of either library's model."""
    with torch.no_grad():
        if hasattr(model, "encode_image"):
            outputs = [model.encode_image(images, normalize=True), model.encode_text(texts, normalize=True)]
            if hasattr(model, "text_decoder"):
                outputs.append(model(images, texts, output_labels=False)["logits"])
        else:
            output = model(texts, images)
            outputs = [output.image_embeds, output.text_embeds]
            if hasattr(output, "logits"):
                outputs.append(output.logits)
    return [output.float() for output in outputs]


def assert_error_within_twice_the_reference(exact, ours, reference):
    for values in zip(exact, ours, reference, strict=True):
        expected, our_value, their_value = values
        our_error, their_error = (our_value - expected).norm(), (their_value - expected).norm()
        assert their_error > 0
        assert our_error <= 2 * their_error, f"our error {our_error:.2e}, open_clip's {their_error:.2e}"


def inputs_of(model_cfg: dict) -> tuple[torch.Tensor, torch.Tensor]:
    context_length = model_cfg["text_cfg"]["context_length"]
    return random_images(model_cfg, 8), random_texts([3, 5, 6, 7, 8, 9, 10, 10], context_length)


@every_dtype
@every_config
def test_model_in_low_precision_is_as_near_to_fp32_as_open_clip(model_cfg, dtype):
    # open_clip: precision "pure_bf16" / "pure_fp16" of `create_model` in `factory.py`.
    reference, model = model_pair(model_cfg)
    images, texts = inputs_of(model_cfg)
    exact = outputs_of(reference, images, texts)
    theirs = outputs_of(reference.to(dtype), images.to(dtype), texts)
    ours = outputs_of(model.to(dtype), images.to(dtype), texts)
    assert_error_within_twice_the_reference(exact, ours, theirs)


@every_dtype
@pytest.mark.parametrize(
    "model_cfg",
    [
        tiny_clip_cfg(),
        tiny_clip_cfg(vision_cfg={"qk_norm": True, "scale_fc": True, "pool_type": "avg"}),
    ],
    ids=["plain_blocks", "custom_blocks"],
)
def test_clip_with_fp32_norms_is_as_near_to_fp32_as_open_clip(model_cfg, dtype):
    # open_clip: precision "bf16" / "fp16": `LayerNormFp32`, and `convert_weights_to_lp` in `model.py`, which leaves
    # norms and embeddings in fp32. (Its CoCa fails there, on mixed dtypes.)
    from open_clip.model import convert_weights_to_lp

    low_cfg = {**model_cfg, "cast_dtype": dtype}
    images, texts = inputs_of(model_cfg)
    reference, model = model_pair(low_cfg, norm_layer="layer_norm_fp32")
    exact = outputs_of(open_clip_model(model_cfg), images, texts)
    convert_weights_to_lp(reference, dtype)
    theirs = outputs_of(reference, images.to(dtype), texts)
    ours = outputs_of(model.to(dtype), images.to(dtype), texts)
    assert_error_within_twice_the_reference(exact, ours, theirs)


@every_config
def test_model_under_autocast_is_as_near_to_fp32_as_open_clip(model_cfg):
    # open_clip: precision "amp_bf16".
    reference, model = model_pair(model_cfg)
    images, texts = inputs_of(model_cfg)
    exact = outputs_of(reference, images, texts)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = outputs_of(reference, images, texts)
        ours = outputs_of(model, images, texts)
    assert_error_within_twice_the_reference(exact, ours, theirs)


def test_model_in_half_precision_takes_images_of_any_floating_dtype():
    model_cfg = tiny_clip_cfg()
    _, model = model_pair(model_cfg)
    images = random_images(model_cfg)
    with torch.no_grad():
        from_fp32 = model.bfloat16().vision_model(images).pooler_output
        from_bf16 = model.vision_model(images.bfloat16()).pooler_output
    assert from_fp32.dtype == torch.bfloat16
    assert torch.equal(from_fp32, from_bf16)
