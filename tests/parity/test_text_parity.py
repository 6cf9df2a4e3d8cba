"""The text tower against open_clip's `TextTransformer`, option by option (open_clip: `transformer.py`)."""

import pytest
import torch
from model_pairs import BOUND, EOS, PAD, model_pair, random_texts, relative_difference
from tiny_configs import VOCAB_SIZE, open_clip_model, tiny_clip_cfg


CONTEXT_LENGTH = 11

# Name -> changes to `text_cfg` (open_clip: `CLIPTextCfg` in `model.py`).
OPTIONS = {
    "plain": {},
    "layer_scale": {"ls_init_value": 0.1},
    "bidirectional": {"no_causal_mask": True},
    "pool_first": {"pool_type": "first"},
    "pool_last": {"pool_type": "last"},
    "pool_eos": {"pool_type": "eos", "eos_id": 41},
    "pool_none": {"pool_type": "none"},
    "projection_bias": {"proj_bias": True},
    "gelu_tanh": {"act_kwargs": {"approximate": "tanh"}},
    "norm_eps": {"norm_kwargs": {"eps": 0.2}},
    "context_length": {"context_length": 5},
    "pad_id": {"pad_id": 3, "embed_cls": True},
    "embed_cls": {"embed_cls": True},
    "embed_cls_bidirectional": {"embed_cls": True, "no_causal_mask": True},
    "embed_cls_over_pool_type": {"embed_cls": True, "pool_type": "first"},
    "embed_cls_projection_bias": {"embed_cls": True, "proj_bias": True},
    "qk_norm": {"qk_norm": True},
    "scale_heads": {"scale_heads": True},
    "scale_attn_inner": {"scale_attn_inner": True},
    "scale_attn": {"scale_attn": True},
    "scale_fc": {"scale_fc": True},
    "block_type_custom": {"block_type": "custom"},
    "every_block_option": {
        "qk_norm": True,
        "scale_heads": True,
        "scale_attn_inner": True,
        "scale_attn": True,
        "scale_fc": True,
        "ls_init_value": 0.1,
        "embed_cls": True,
    },
}


def texts(context_length: int) -> torch.Tensor:
    """Short, middling and full-length texts, and the padding id inside a text: it is also CLIP's id of "!"."""
    ids = random_texts([3, 4, context_length - 1, context_length, context_length], context_length)
    ids[-1, 2] = PAD
    ids[:, 1] = 41
    ids[1, 2] = 3
    return ids


def assert_same_outputs(model_cfg: dict, reference: torch.nn.Module | None = None, ids: torch.Tensor | None = None):
    reference, model = model_pair(model_cfg, reference)
    reference.text.output_tokens = True
    ids = texts(model_cfg["text_cfg"]["context_length"]) if ids is None else ids
    with torch.no_grad():
        pooled, tokens = reference.text(ids)
        outputs = model.text_model(ids)
    assert relative_difference(outputs.pooler_output, pooled) < BOUND
    assert relative_difference(outputs.last_hidden_state, tokens) < BOUND


@pytest.mark.floor
@pytest.mark.parametrize("text_cfg", OPTIONS.values(), ids=OPTIONS)
def test_text_model_equals_open_clip(text_cfg):
    assert_same_outputs(tiny_clip_cfg(custom_text=True, text_cfg=text_cfg))


@pytest.mark.floor
@pytest.mark.parametrize("embed_cls", [False, True], ids=["pooled", "class_token"])
def test_text_model_equals_open_clip_without_a_projection(embed_cls):
    model_cfg = tiny_clip_cfg(
        custom_text=True,
        embed_dim=36,
        vision_cfg={"attn_pooler_heads": 3},
        text_cfg={"proj_type": "none", "embed_cls": embed_cls},
    )
    assert_same_outputs(model_cfg)


# A causal tower without a class token takes full-length texts only in open_clip (`TextTransformer._embeds`).
@pytest.mark.parametrize("text_cfg", [{"no_causal_mask": True}, {"embed_cls": True}], ids=["pooled", "class_token"])
@pytest.mark.parametrize("length", [1, 6], ids=["one_token", "six_tokens"])
def test_text_model_equals_open_clip_on_fewer_tokens_than_positions(length, text_cfg):
    model_cfg = tiny_clip_cfg(custom_text=True, text_cfg=text_cfg)
    assert_same_outputs(model_cfg, ids=texts(CONTEXT_LENGTH)[:, :length])


@pytest.mark.floor
def test_text_model_argmax_takes_the_first_highest_id():
    # open_clip: `text_global_pool` in `transformer.py`. An id above the end of text, as an added token has, wins.
    ids = random_texts([7, 7], CONTEXT_LENGTH)
    ids[0, 4] = EOS
    ids[1, 2], ids[1, 6] = EOS, EOS - 1
    assert_same_outputs(tiny_clip_cfg(custom_text=True), ids=ids)


@pytest.mark.floor
def test_text_model_pools_the_first_token_where_there_is_no_eos():
    # open_clip: `text_global_pool` in `transformer.py`: argmax over no match is 0.
    model_cfg = tiny_clip_cfg(custom_text=True, text_cfg={"pool_type": "eos", "eos_id": 77})
    ids = texts(CONTEXT_LENGTH)
    ids[ids == 77] = 78
    assert_same_outputs(model_cfg, ids=ids)


def text_transformer(causal: bool, **options):
    """open_clip's tower, with the options that its `CLIPTextCfg` cannot set."""
    from open_clip.transformer import TextTransformer

    torch.manual_seed(5)
    tower = TextTransformer(
        context_length=CONTEXT_LENGTH,
        vocab_size=VOCAB_SIZE,
        width=36,
        heads=3,
        layers=2,
        mlp_ratio=1.7,
        output_dim=28,
        no_causal_mask=not causal,
        **options,
    )
    for parameter in tower.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
    return tower.eval()


@pytest.mark.floor
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize(
    "options",
    [
        # No effect in causal mode (open_clip: `TextTransformer.__init__`).
        {"use_pad_mask": True},
        {"use_pad_mask": True, "pool_type": "last"},
        # The released CoCa weights have the padding mask shifted by one (open_clip: `_build_additive_mask`).
        {"embed_cls": True, "correct_cls_mask": False},
        {"embed_cls": True, "correct_cls_mask": True},
        {"embed_cls": True, "correct_cls_mask": True, "pad_id": 3},
        {"embed_cls": True, "use_pad_mask": True},
    ],
    ids=["pad_mask", "pad_mask_pool_last", "shifted_mask", "correct_mask", "correct_mask_pad_id", "both"],
)
def test_text_model_hides_padding_as_open_clip(causal, options):
    constructor_only = {name: options[name] for name in ("use_pad_mask", "correct_cls_mask") if name in options}
    text_cfg = {"no_causal_mask": not causal, **options}
    reference = open_clip_model(
        tiny_clip_cfg(custom_text=True, text_cfg={k: v for k, v in text_cfg.items() if k not in constructor_only})
    )
    reference.text = text_transformer(causal, **options)
    assert_same_outputs(tiny_clip_cfg(custom_text=True, text_cfg=text_cfg), reference)


def test_text_model_shifted_mask_differs_from_the_correct_one():
    # Without this the test above could pass on a mask that hides nothing.
    model_cfg = tiny_clip_cfg(custom_text=True, text_cfg={"embed_cls": True})
    _, model = model_pair(model_cfg)
    ids = texts(CONTEXT_LENGTH)
    shifted = model.text_model(ids).pooler_output
    model.config.text_config.correct_cls_mask = True
    correct = model.text_model(ids).pooler_output
    # Only a text without padding has the same mask in both forms.
    assert [torch.equal(a, b) for a, b in zip(shifted, correct)] == [False, False, False, True, False]


@pytest.mark.floor
@pytest.mark.parametrize("embed_cls", [False, True], ids=["pooled", "class_token"])
def test_text_model_equals_open_clip_with_scaled_cosine_attention(embed_cls, monkeypatch):
    # open_clip: `Attention.forward` in `transformer.py` calls `torch.bmm` on (batch, heads, length, dim).
    monkeypatch.setattr(torch, "bmm", torch.matmul)
    text_cfg = {"scaled_cosine_attn": True, "embed_cls": embed_cls}
    assert_same_outputs(tiny_clip_cfg(custom_text=True, text_cfg=text_cfg))
