"""Padding behind a text: where the features show it."""

import pytest
import torch

from open_clip_transformers import OpenClipTextConfig, OpenClipTextModel


SIZES = {
    "vocab_size": 37,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
}
BIDIRECTIONAL = {"is_causal": False}
TOWERS = {
    "first": ({"pool_type": "first"}, True),
    "argmax": ({"pool_type": "argmax"}, True),
    "eos": ({"pool_type": "eos"}, True),
    "last": ({"pool_type": "last"}, False),
    "all tokens": ({"pool_type": "none"}, False),
    "class token": ({"embed_cls": True, "pool_type": "last"}, False),
    "bidirectional": ({**BIDIRECTIONAL, "pool_type": "argmax"}, False),
    "bidirectional, last": ({**BIDIRECTIONAL, "pool_type": "last", "use_pad_mask": True}, False),
    "bidirectional, padding hidden": ({**BIDIRECTIONAL, "pool_type": "argmax", "use_pad_mask": True}, True),
}


@pytest.mark.parametrize(("settings", "ignores"), TOWERS.values(), ids=TOWERS)
def test_padding_is_ignored_where_the_tower_says_so(settings, ignores):
    torch.manual_seed(0)
    config = OpenClipTextConfig(
        **SIZES, max_position_embeddings=11, projection_dim=8, eos_token_id=36, pad_token_id=0, **settings
    )
    model = OpenClipTextModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    padded = torch.tensor([[35, 7, 4, 36, 0, 0, 0, 0], [35, 9, 2, 5, 36, 0, 0, 0]])
    with torch.no_grad():
        full, short = (model(ids).pooler_output for ids in (padded, padded[:, :5]))
    is_same = full.shape == short.shape and torch.allclose(full, short, rtol=1e-4, atol=1e-5)
    assert model.ignores_padding is is_same is ignores
