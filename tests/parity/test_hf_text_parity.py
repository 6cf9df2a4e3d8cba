"""The Hugging Face text tower against open_clip's `HFTextEncoder` (open_clip: `hf_model.py`)."""

import pytest
import torch
from model_pairs import (
    BOUND,
    assert_same_gradients,
    model_pair,
    random_images,
    relative_difference,
)
from tiny_configs import VOCAB_SIZE, tiny_hf_coca_cfg, tiny_hf_text_cfg


CONTEXT_LENGTH = 11
# open_clip has no T5, which differs from mT5 in name only.
MODEL_TYPES = ["roberta", "xlm-roberta", "bert", "mt5", "m2m_100"]
POOLERS = ["mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"]

every_encoder = pytest.mark.parametrize("model_type", MODEL_TYPES)


def texts(pad: int, lengths=(3, 6, CONTEXT_LENGTH, CONTEXT_LENGTH)) -> torch.Tensor:
    """Texts that end at different places, and the padding id inside one of them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, VOCAB_SIZE, (len(lengths), CONTEXT_LENGTH), generator=generator)
    for row, length in enumerate(lengths):
        ids[row, length:] = pad
    ids[-1, 4] = pad
    return ids


def assert_same_outputs(model_cfg: dict, **stack_fields):
    reference, model = model_pair(model_cfg, **stack_fields)
    reference.text.output_tokens = True
    ids = texts(model.config.text_config.pad_token_id)
    with torch.no_grad():
        pooled, tokens = reference.text(ids)
        outputs = model.text_model(ids)
    assert relative_difference(outputs.pooler_output, pooled) < BOUND
    assert relative_difference(outputs.last_hidden_state, tokens) < BOUND


@every_encoder
@pytest.mark.parametrize("pooler", POOLERS)
@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_hf_text_model_equals_open_clip(model_type, pooler, projection):
    text_cfg = {"hf_pooler_type": pooler, "hf_proj_type": projection}
    assert_same_outputs(tiny_hf_text_cfg(model_type, text_cfg=text_cfg))


@every_encoder
def test_hf_text_model_equals_open_clip_without_a_projection(model_type):
    assert_same_outputs(tiny_hf_text_cfg(model_type, embed_dim=36, text_cfg={"hf_proj_type": None}))
