"""The modern text tower beyond open_clip's values: masks, left padding, training."""

import pytest
import torch
from tiny_configs import VOCAB_SIZE, tiny_modern_text_cfg
from tiny_models import PAD, randomized, tiny_config

from open_clip_transformers.configuration.configuration_modern_text import ModernTextConfig
from open_clip_transformers.modeling.modeling_modern_text import ModernTextModel


pytestmark = pytest.mark.floor

EOS = VOCAB_SIZE - 1
POOLS = {
    "causal-eos": {"pool_type": "eos", "attention_mode": "causal", "eos_id": EOS},
    "causal-mean": {"pool_type": "mean", "attention_mode": "causal"},
    "bidirectional-eos": {"pool_type": "eos", "eos_id": EOS},
    "bidirectional-map": {},
}
every_pool = pytest.mark.parametrize("text_cfg", POOLS.values(), ids=POOLS)


def make_tower(**text_cfg) -> ModernTextModel:
    return randomized(ModernTextModel(tiny_config(tiny_modern_text_cfg(text_cfg=text_cfg)).text_config).eval())


def make_ids() -> torch.Tensor:
    ids = torch.randint(1, EOS, (3, 11), generator=torch.Generator().manual_seed(0))
    for row, end in zip(ids, (10, 5, 2)):
        row[end], row[end + 1 :] = EOS, PAD
    return ids


@every_pool
def test_padding_changes_nothing(text_cfg):
    tower, ids = make_tower(**text_cfg), make_ids()
    with torch.no_grad():
        expected = tower(ids).pooler_output
        assert torch.allclose(tower(ids[1:, :6]).pooler_output, expected[1:], atol=1e-5)
        masked = tower(ids, attention_mask=(ids != PAD).long())
        assert torch.allclose(masked.pooler_output, expected, atol=1e-5)
        # What stands behind a text does not matter where the mask says that it is none.
        rubbish = ids.masked_fill(ids == PAD, 7)
        assert torch.allclose(tower(rubbish, (ids != PAD).long()).pooler_output, expected, atol=1e-5)
    assert tower.ignores_padding


@every_pool
def test_left_padding_gives_the_same_as_right_padding(text_cfg):
    tower, ids = make_tower(**text_cfg), make_ids()
    with torch.no_grad():
        expected = tower(ids).pooler_output
        order = (ids != PAD).int().argsort(dim=1, stable=True)
        padded, mask = ids.gather(1, order), (ids != PAD).long().gather(1, order)
        assert torch.allclose(tower(padded, mask).pooler_output, expected, atol=1e-5)


@every_pool
def test_text_of_padding_alone_is_finite(text_cfg):
    ids = torch.full((2, 4), PAD)
    for attention_mask in (None, torch.zeros_like(ids)):
        assert torch.isfinite(make_tower(**text_cfg)(ids, attention_mask=attention_mask).pooler_output).all()


def test_text_without_end_is_pooled_at_its_last_token():
    tower, ids = make_tower(**POOLS["causal-eos"]), make_ids()
    ids[1] = torch.tensor([3, 4, 5, *[PAD] * 8])
    with torch.no_grad():
        outputs = tower(ids)
        expected = tower.projection(outputs.last_hidden_state[1, 2])
        assert torch.allclose(outputs.pooler_output[1], expected, atol=1e-6)


def test_registers_come_first_and_are_not_returned():
    tower, ids = make_tower(), make_ids()
    outputs = tower(ids, output_hidden_states=True)
    assert outputs.last_hidden_state.shape == (3, 11, 36)
    assert outputs.hidden_states[0].shape == (3, 13, 36)


def test_gradient_checkpointing_gives_the_same_gradients():
    tower, ids = make_tower().train(), make_ids()
    gradients = []
    for enable in (tower.gradient_checkpointing_disable, tower.gradient_checkpointing_enable):
        enable()
        tower.zero_grad()
        tower(ids).pooler_output.square().sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in tower.named_parameters()})
    assert all(torch.allclose(gradient, gradients[1][name], atol=1e-5) for name, gradient in gradients[0].items())
    assert gradients[0]["encoder.layers.1.self_attn.value_mix"].abs() > 0


def test_padding_stays_zero_in_training_where_it_is_frozen():
    tower = make_tower(freeze_pad_embed=True, attention_mode="causal")
    tower(make_ids()).pooler_output.sum().backward()
    assert tower.embeddings.token_embedding.weight.grad[PAD].abs().max() == 0
    assert ModernTextModel(tower.config).embeddings.token_embedding.weight[PAD].abs().max() == 0


REFUSED = {
    "head": ({"hidden_size": 36, "num_attention_heads": 12}, "heads must be of an even width, got 3"),
    "pool": ({"pool_type": "last"}, "pool_type must be one of 'eos', 'mean', 'map', got 'last'"),
    "end": ({"eos_token_id": None}, "pool_type='eos' needs one eos_token_id"),
    "positions": ({"position_embedding_type": "learnable"}, "must be one of 'rope', 'none'"),
    "projection": ({"proj_type": "none", "projection_dim": 7}, "without a projection"),
    "norm": ({"norm_layer": "batch_norm"}, "norm_layer must be one of"),
}


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED)
def test_towers_that_cannot_be_built_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ModernTextConfig(**fields)


def test_embeddings_are_refused_where_the_end_is_known_by_its_id():
    with pytest.raises(ValueError, match="pools at the end of a text"):
        make_tower(**POOLS["causal-eos"])(inputs_embeds=torch.zeros(1, 3, 36))
