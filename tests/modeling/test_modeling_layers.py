"""Building blocks alone, against their formulas."""

import math

import pytest
import torch
from tiny_models import CLIP, COCA, tiny_config
from torch.nn import functional as F

from open_clip_transformers.modeling import modeling_layers
from open_clip_transformers.modeling.modeling_layers import (
    MLP,
    AttentionalPooler,
    CrossAttention,
    CustomAttention,
    CustomResidualAttentionBlock,
    DropPath,
    LayerScale,
    NormedMLP,
    PatchDropout,
    QuickGELU,
    ResidualAttentionBlock,
    ResidualCrossAttentionBlock,
    residual_branch,
)


BUILDING_BLOCKS = [
    "Attention",
    "AttentionalPooler",
    "LayerNormFp32",
    "LayerScale",
    "PatchDropout",
    "QuickGELU",
    "ResidualAttentionBlock",
]


@pytest.mark.parametrize("name", BUILDING_BLOCKS)
def test_building_blocks_have_the_names_of_open_clip(name):
    import open_clip.transformer

    assert issubclass(getattr(modeling_layers, name), torch.nn.Module)
    assert issubclass(getattr(open_clip.transformer, name), torch.nn.Module)


def text_config(**fields):
    config = tiny_config(CLIP).text_config
    for option in ("qk_norm", "scale_attn_inner", "scale_attn", "scale_fc"):
        setattr(config, option, False)
    for name, value in fields.items():
        setattr(config, name, value)
    config._attn_implementation = "sdpa"
    return config


def filled(module: torch.nn.Module) -> torch.nn.Module:
    for parameter in module.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape)
    return module.eval()


def heads_of(states: torch.Tensor, head_dim: int) -> torch.Tensor:
    return states.unflatten(-1, (-1, head_dim)).transpose(1, 2)


@pytest.mark.floor
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_scaled_cosine_attention_is_its_formula(causal):
    # open_clip: `Attention.forward` in `transformer.py`: cosines times a temperature per head, which is at most 100.
    config = text_config(scaled_cosine_attn=True, scale_heads=True, scale_attn_inner=True)
    attention = filled(CustomAttention(config, layer_idx=0, is_causal=causal))
    attention.logit_scale.data = torch.tensor([0.5, 2.0, 7.0]).view(3, 1, 1)
    hidden_states = torch.randn(2, 5, 36)

    query, key, value = (
        heads_of(projection(hidden_states), 12)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    cosines = torch.einsum("bhqd,bhkd->bhqk", query / query.norm(dim=-1, keepdim=True), F.normalize(key, dim=-1))
    scores = cosines * torch.tensor([math.exp(0.5), math.exp(2.0), 100.0]).view(3, 1, 1)
    if causal:
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    context = scores.softmax(-1) @ value * attention.head_scale
    context = attention.inner_norm(context.transpose(1, 2).flatten(2))
    expected = attention.out_proj(context)
    assert torch.allclose(attention(hidden_states)[0], expected, atol=1e-5)


@pytest.mark.floor
def test_cross_attention_is_torch_multi_head_attention():
    config = text_config()
    attention = filled(CrossAttention(config, hidden_size=24, key_value_size=10, num_attention_heads=4))
    reference = torch.nn.MultiheadAttention(24, 4, kdim=10, vdim=10, batch_first=True)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    for name, projection in zip("qkv", projections, strict=True):
        getattr(reference, f"{name}_proj_weight").data = projection.weight.data
    reference.in_proj_bias.data = torch.cat([projection.bias.data for projection in projections])
    reference.out_proj.load_state_dict(attention.out_proj.state_dict())
    queries, tokens = torch.randn(3, 5, 24), torch.randn(3, 7, 10)
    outputs, _ = attention(queries, *attention.project_key_value(tokens))
    assert torch.allclose(outputs, reference(queries, tokens, tokens, need_weights=False)[0], atol=1e-6)


@pytest.mark.floor
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_cross_attention_shares_an_image_between_rows(implementation):
    config = text_config()
    config._attn_implementation = implementation
    attention = filled(CrossAttention(config, hidden_size=24, key_value_size=10, num_attention_heads=4))
    queries, tokens = torch.randn(6, 5, 24), torch.randn(2, 7, 10)
    shared, weights = attention(queries, *attention.project_key_value(tokens))
    expected, expected_weights = attention(queries, *attention.project_key_value(tokens.repeat_interleave(3, dim=0)))
    assert torch.allclose(shared, expected, atol=1e-6)
    if implementation == "eager":
        assert weights.shape == (6, 4, 5, 7)
        assert torch.allclose(weights, expected_weights, atol=1e-6)


def test_cross_attention_asks_one_row_of_every_image():
    config = text_config()
    attention = filled(CrossAttention(config, hidden_size=24, key_value_size=10, num_attention_heads=4))
    query, tokens = torch.randn(1, 5, 24), torch.randn(3, 7, 10)
    key, value = attention.project_key_value(tokens)
    assert torch.allclose(attention(query, key, value)[0], attention(query.repeat(3, 1, 1), key, value)[0], atol=1e-6)


def test_attentional_pooler_gives_one_token_a_query():
    config = tiny_config(COCA).vision_config
    config._attn_implementation = "sdpa"
    pooler = filled(AttentionalPooler(config, num_queries=5, token_dim=config.hidden_size))
    assert pooler(torch.randn(2, 9, 36)).shape == (2, 5, 36)


def test_quick_gelu_is_its_formula():
    values = torch.linspace(-4, 4, 33)
    assert torch.allclose(QuickGELU()(values), values * torch.sigmoid(1.702 * values), atol=1e-6)


def test_normed_mlp_normalises_behind_the_activation():
    config = text_config(hidden_act="gelu")
    mlp = filled(NormedMLP(config))
    hidden_states = torch.randn(2, 5, 36)
    inner = F.layer_norm(F.gelu(mlp.fc1(hidden_states)), (61,), mlp.norm.weight, mlp.norm.bias, 1e-5)
    assert torch.allclose(mlp(hidden_states), mlp.fc2(inner), atol=1e-5)


def test_layer_scale_multiplies_each_feature():
    scale = filled(LayerScale(5, init_value=0.1))
    hidden_states = torch.randn(2, 3, 5)
    assert torch.equal(scale(hidden_states), hidden_states * scale.gamma)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    drop_path = DropPath(0.25)
    hidden_states = torch.ones(4000, 2, 3)
    dropped = drop_path.train()(hidden_states)
    kept = dropped[:, 0, 0] != 0
    assert torch.equal(dropped, kept.view(-1, 1, 1) / torch.tensor(0.75) * hidden_states)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert torch.equal(drop_path.eval()(hidden_states), hidden_states)


def test_drop_path_rate_grows_with_depth():
    config = text_config(drop_path_rate=0.3, num_hidden_layers=4)
    rates = [getattr(residual_branch(config, i)[1], "drop_prob", 0.0) for i in range(4)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(("prob", "kept"), [(0.1, 8), (0.5, 4), (0.9, 1)])
def test_patch_dropout_rounds_the_kept_patches_down(prob, kept):
    assert PatchDropout(prob).train()(torch.randn(2, 1 + 9, 4)).shape == (2, 1 + kept, 4)


def test_residual_blocks_add_their_branches():
    config = text_config(layer_scale_init_value=0.5)
    block = filled(ResidualAttentionBlock(config, layer_idx=0, is_causal=False))
    hidden_states = torch.randn(2, 5, 36)
    middle = hidden_states + block.layer_scale1(block.self_attn(block.layer_norm1(hidden_states))[0])
    expected = middle + block.layer_scale2(block.mlp(block.layer_norm2(middle)))
    assert torch.allclose(block(hidden_states), expected, atol=1e-6)

    block = filled(ResidualCrossAttentionBlock(config, layer_idx=0))
    tokens = torch.randn(2, 7, 36)
    key, value = block.cross_attn.project_key_value(block.layer_norm1_kv(tokens))
    attended, _ = block.cross_attn(block.layer_norm1(hidden_states), key, value)
    middle = hidden_states + block.layer_scale1(attended)
    expected = middle + block.layer_scale2(block.mlp(block.layer_norm2(middle)))
    assert torch.allclose(block(hidden_states, tokens), expected, atol=1e-6)


def test_custom_block_has_only_the_options_asked_for():
    plain = CustomResidualAttentionBlock(text_config(), layer_idx=0, is_causal=True)
    reference = ResidualAttentionBlock(text_config(), layer_idx=0, is_causal=True)
    assert plain.state_dict().keys() == reference.state_dict().keys()
    assert type(plain.mlp) is MLP
    custom = CustomResidualAttentionBlock(text_config(scale_fc=True, scale_attn=True), layer_idx=0, is_causal=True)
    added = custom.state_dict().keys() - plain.state_dict().keys()
    assert added == {"mlp.norm.weight", "mlp.norm.bias", "attn_norm.weight", "attn_norm.bias"}
