"""The SigLIP tower: what its options do beyond the values that they compute, which tests/parity compares with timm."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from tiny_models import tiny_inputs, tiny_model, tiny_siglip_vit_config
from transformers import AttentionInterface, AutoConfig, AutoModel

from open_clip_transformers.configuration.configuration_siglip_vit import SiglipVitConfig
from open_clip_transformers.modeling.modeling_siglip_vit import SiglipVitModel, trunc_normal_


# transformers 5.23 has a new name for it, and the old one still works.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_.* is deprecated:FutureWarning")

# DeepSeek-VL2: `SigLIP_MODEL_CONFIG` in `siglip_vit.py`; the last is the MLP's width.
NAMED = {
    "siglip_so400m_patch14_384": (1152, 27, 16, 14, 384, 4304),
    "siglip_so400m_patch14_224": (1152, 27, 16, 14, 224, 4304),
    "siglip_large_patch16_384": (1024, 24, 16, 16, 384, 4096),
}


@pytest.mark.parametrize(("name", "sizes"), NAMED.items(), ids=NAMED)
def test_named_config_is_that_of_deepseek_vl2(name, sizes):
    config = SiglipVitConfig.from_name(name)
    fields = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size")
    assert (*(getattr(config, field) for field in fields), config.intermediate_size) == sizes
    assert (config.hidden_act, config.pooler_hidden_act) == ("gelu_pytorch_tanh", "gelu")
    assert config.pool_type == "map" and config.ignore_head and not config.use_class_token
    with torch.device("meta"):
        model = SiglipVitModel(config)
        features = model(torch.empty(2, 3, config.image_size, config.image_size)).last_hidden_state
    assert features.shape == (2, (config.image_size // config.patch_size) ** 2, config.hidden_size)


def test_named_config_takes_changes_and_refuses_other_names():
    config = SiglipVitConfig.from_name("siglip_large_patch16_384", select_layer=-2, ignore_head=False)
    assert (config.num_hidden_layers, config.num_selected_layers, config.ignore_head) == (24, 23, False)
    with pytest.raises(ValueError, match=r"one of siglip_so400m_patch14_384, .*, got 'siglip_giant'"):
        SiglipVitConfig.from_name("siglip_giant")


def test_config_comes_back_from_its_folder(tmp_path):
    config = SiglipVitConfig.from_name("siglip_so400m_patch14_384", image_size=[378, 420], num_recomputing_layers=3)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is SiglipVitConfig
    assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()


REFUSED = {
    "pool_type": ({"pool_type": "max"}, "pool_type must be one of 'map', 'avg', 'token', 'none', got 'max'"),
    "block_type": ({"block_type": "parallel"}, "block_type must be one of"),
    "proj_type": ({"proj_type": "conv"}, "proj_type must be one of"),
    "no_class_token": ({"pool_type": "token"}, 'pool_type="token" needs use_class_token=True'),
    "no_projection": ({"projection_dim": 13}, r'projection_dim \(13\) must equal hidden_size \(768\).*"linear"'),
    "padding_alone": ({"dynamic_image_padding": True}, "needs dynamic_image_size=True"),
    "no_layer_left": ({"select_layer": -13}, "select_layer -13 leaves none of 12 layers"),
    "dropout": ({"hidden_dropout": 1.0}, r"hidden_dropout must lie in \[0, 1\), got 1.0"),
    "image_size": ({"image_size": [1, 2, 3]}, r"image_size must be one number or \[height, width\]"),
    "no_patch": ({"image_size": 15}, "image_size 15 holds no patch of patch_size 16"),
    "heads": ({"num_attention_heads": 5}, r"hidden_size \(768\) must be a multiple of num_attention_heads \(5\)"),
}


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED)
def test_config_refuses(fields, message):
    # Strict data classes wrap what a check raises.
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        SiglipVitConfig(**fields)


@pytest.mark.parametrize("size", [(21, 24), (24, 25)], ids=["height", "width"])
def test_dynamic_image_size_wants_whole_patches(size):
    model = tiny_model("siglip_vit", dynamic_image_size=True)
    with pytest.raises(ValueError, match=r"expects multiples of its patches' \(8, 6\).*dynamic_image_padding"):
        model(torch.randn(2, 3, *size))
    padded = tiny_model("siglip_vit", dynamic_image_size=True, dynamic_image_padding=True)
    assert padded(torch.randn(2, 3, *size)).pooler_output.isfinite().all()


def test_select_layer_loads_part_of_a_model_in_silence(tmp_path, warnings_of_transformers):
    model = tiny_model("siglip_vit")
    model.save_pretrained(tmp_path)
    loaded, info = SiglipVitModel.from_pretrained(tmp_path, select_layer=-2, output_loading_info=True)
    assert not any(info.values()), info
    assert not warnings_of_transformers.records
    inputs = tiny_inputs(model)
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True).hidden_states
        outputs = loaded(**inputs, output_hidden_states=True)
    assert len(outputs.hidden_states) == len(expected) - 1
    assert torch.allclose(outputs.hidden_states[-1], expected[-2], atol=1e-6)
    assert torch.allclose(outputs.last_hidden_state, model.post_layernorm(expected[-2]), atol=1e-5)


def test_select_layer_loads_part_of_the_tower_of_a_dual_model(tmp_path):
    model = tiny_model("siglip_with_siglip_vit")
    model.save_pretrained(tmp_path)
    loaded, info = SiglipVitModel.from_pretrained(tmp_path, select_layer=1, output_loading_info=True)
    assert not any(info.values()), info
    assert len(loaded.encoder.layers) == 1


def test_select_layer_still_reports_layers_that_no_model_has(tmp_path):
    tiny_model("siglip_vit").save_pretrained(tmp_path)
    _, info = SiglipVitModel.from_pretrained(tmp_path, num_hidden_layers=2, output_loading_info=True)
    assert all(key.startswith("encoder.layers.2.") for key in info["unexpected_keys"])
    assert info["unexpected_keys"]


def test_ignore_head_is_undone_at_load(tmp_path):
    model = tiny_model("siglip_vit", ignore_head=True)
    inputs = tiny_inputs(model)
    assert model(**inputs).pooler_output is None
    assert len(model(**inputs, return_dict=False)) == 1
    model.save_pretrained(tmp_path)
    assert any(key.startswith("pooler.") for key in load_file(tmp_path / "model.safetensors"))
    loaded = SiglipVitModel.from_pretrained(tmp_path, ignore_head=False)
    with torch.no_grad():
        expected = tiny_model("siglip_vit")(**inputs).pooler_output
        assert torch.allclose(loaded(**inputs).pooler_output, expected, atol=1e-6)


def recomputed_layers(tower) -> list[int]:
    """Numbers of the tower's layers whose forward runs a second time in the backward pass, in the order it does."""
    calls = []
    for number, layer in enumerate(tower.encoder.layers):
        layer.self_attn.register_forward_hook(lambda *_, number=number: calls.append(number))
    (tower(torch.randn(2, 3, 24, 24)).pooler_output ** 2).sum().backward()
    return sorted(calls[len(tower.encoder.layers) :])


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non_reentrant"])
@pytest.mark.parametrize(
    ("number", "expected"), [(None, [0, 1, 2]), (0, []), (1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (7, [0, 1, 2])]
)
@pytest.mark.parametrize("name", ["siglip_vit", "siglip_with_siglip_vit"])
def test_gradient_checkpointing_recomputes_the_first_layers(name, number, expected, reentrant):
    if name == "siglip_vit":
        model = tower = tiny_model(name, num_recomputing_layers=number).train()
    else:
        config = tiny_model(name).config
        config.vision_config.num_recomputing_layers = number
        model = AutoModel.from_config(config).train()
        tower = model.vision_model
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert recomputed_layers(tower) == expected
    model.gradient_checkpointing_disable()
    assert recomputed_layers(tower) == []


def test_partial_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for number in (None, 0, 1):
        model = tiny_model("siglip_vit", num_recomputing_layers=number).train()
        model.gradient_checkpointing_enable()
        (model(**tiny_inputs(model)).pooler_output ** 2).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for others in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], others, strict=True))


def kernels() -> tuple[bool, bool]:
    """Whether PyTorch may use its math kernel, and any of its fused ones."""
    backends = torch.backends.cuda
    return backends.math_sdp_enabled(), backends.flash_sdp_enabled() or backends.mem_efficient_sdp_enabled()


@pytest.fixture
def attention_calls():
    """Determinism asked of each call of an attention function named `"recorded"`, and the kernels allowed."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    calls = []

    def recorded(*args, **kwargs):
        calls.append((kwargs.get("deterministic"), kernels()))
        return sdpa_attention_forward(*args, **kwargs)

    AttentionInterface.register("recorded", recorded)
    return calls


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("deterministic", [False, True], ids=["any_kernel", "deterministic"])
def test_deterministic_reaches_every_attention(deterministic, checkpointing, attention_calls):
    # FlashAttention knows the argument; PyTorch's own fused kernels have no such argument and are left out.
    model = tiny_model("siglip_vit", deterministic=deterministic).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.config._attn_implementation = "recorded"
    (model(**tiny_inputs(model)).pooler_output ** 2).sum().backward()
    # Three layers and the pooler, and the layers once more in the backward pass.
    assert len(attention_calls) == (7 if checkpointing else 4)
    assert set(attention_calls) == {(True, (True, False)) if deterministic else (None, (True, True))}
    assert kernels() == (True, True)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_deterministic_changes_no_output(implementation):
    model, plain = tiny_model("siglip_vit", deterministic=True), tiny_model("siglip_vit")
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        outputs, expected = model(**tiny_inputs(model)), plain(**tiny_inputs(plain))
    assert torch.allclose(outputs.pooler_output, expected.pooler_output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("deterministic", [False, True], ids=["any_kernel", "deterministic"])
def test_siglip_vit_compiles_without_a_graph_break(deterministic):
    torch.compiler.reset()
    model = tiny_model("siglip_vit", deterministic=deterministic)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    inputs = tiny_inputs(model)
    with torch.no_grad():
        assert torch.allclose(compiled(**inputs).pooler_output, model(**inputs).pooler_output, atol=1e-5)


def test_pooler_has_no_attention_dropout():
    # As in timm, where `attn_drop_rate` is the layers' alone.
    model = tiny_model("siglip_vit", attention_dropout=0.5).train()
    tokens = torch.randn(2, 15, 36)
    with torch.no_grad():
        assert torch.equal(model.pooler(tokens), model.pooler(tokens))
        assert not torch.equal(model.encoder(tokens), model.encoder(tokens))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_trunc_normal_is_drawn_in_fp32(dtype):
    tensor = torch.empty(400, 500, dtype=dtype)
    torch.manual_seed(1)
    trunc_normal_(tensor, std=0.02)
    torch.manual_seed(1)
    exact = torch.nn.init.trunc_normal_(torch.empty(400, 500), std=0.02)
    assert torch.equal(tensor, exact.to(dtype))
    # Drawn in bf16, a few of so many come out as the bounds, a hundred standard deviations away.
    assert tensor.abs().max() < 0.02 * 6
    assert tensor.float().std().item() == pytest.approx(0.02, rel=0.01)
    assert tensor.float().mean().item() == pytest.approx(0, abs=2e-4)


def test_trunc_normal_cuts_off_at_two():
    tensor = torch.empty(100_000)
    trunc_normal_(tensor, std=3.0)
    assert 1.99 < tensor.abs().max() <= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_new_weights_have_their_kinds_of_values(dtype):
    config = tiny_siglip_vit_config(initializer_range=0.02, intermediate_size=2000)
    model = AutoModel.from_config(config, dtype=dtype)
    assert {weight.dtype for weight in model.state_dict().values()} == {dtype}
    spread = {
        "embeddings.position_embedding": 0.02,
        "embeddings.patch_embedding.weight": 0.02,
        "embeddings.class_embedding": 1e-6,
        "embeddings.register_embedding": 1e-6,
        "pooler.latent": 36**-0.5,
        "pooler.mlp.fc1.weight": 0.02,
        "encoder.layers.2.mlp.fc2.weight": 0.02,
        "encoder.layers.1.self_attn.q_proj.weight": 0.02,
        "projection.weight": 0.02,
    }
    weights = {name: weight.float() for name, weight in model.state_dict().items()}
    for name, std in spread.items():
        assert weights[name].std().item() == pytest.approx(std, rel=0.4), name
        assert weights[name].abs().max() < 6 * std, name
    for name, weight in weights.items():
        if name.endswith("bias"):
            assert not weight.any(), name
        elif name.endswith("gamma"):
            assert (weight == torch.tensor(0.1, dtype=dtype).float()).all(), name
        elif "norm" in name:
            assert (weight == 1).all(), name


@pytest.mark.parametrize("init_value", [None, 0.25], ids=["one", "layer_scale"])
def test_res_post_norm_starts_from_the_layer_scale(init_value):
    config = tiny_siglip_vit_config(block_type="res_post_norm", layer_scale_init_value=init_value)
    weights = SiglipVitModel(config).state_dict()
    expected = 1.0 if init_value is None else init_value
    assert not any("layer_scale" in name for name in weights)
    for name in ("layer_norm1", "layer_norm2"):
        assert (weights[f"encoder.layers.1.{name}.weight"] == expected).all()
    assert (weights["post_layernorm.weight"] == 1).all()


def test_auto_model_loads_the_tower(tmp_path):
    model = tiny_model("siglip_vit")
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is SiglipVitModel
    assert loaded.get_input_embeddings() is loaded.embeddings.patch_embedding
