"""Where a model looks: maps against explicit computations, and on models of which it is known."""

import pytest
import torch
from bright_patch_coca import bright_patch_coca
from tiny_configs import tiny_clip_cfg, tiny_coca_cfg, tiny_siglip_cfg
from tiny_models import COCA, randomized, tiny_config, tiny_inputs, tiny_model
from torch.nn import functional as F

from open_clip_transformers import OpenClipTokenizer, caption_attention, patch_similarity, word_attention
from open_clip_transformers.modeling.attention_maps import group_words
from open_clip_transformers.modeling.modeling_coca import CoCaModel
from open_clip_transformers.modeling.modeling_open_clip import OpenClipModel, OpenClipSiglipModel


# Where a decoder's image tokens come from -> open_clip's configuration, and image tokens that it does not get.
POOLING = {
    "attentional": (tiny_coca_cfg(), 1),
    "attentional_avg": (tiny_coca_cfg(vision_cfg={"pool_type": "avg"}), 1),
    "attentional_none": (tiny_coca_cfg(vision_cfg={"pool_type": "none"}), 0),
    "cascade": (COCA, 0),
    "parallel": (tiny_coca_cfg(vision_cfg={"attentional_pool": "parallel", "width": 36, "head_width": 18}), 0),
    "raw_patches": (tiny_coca_cfg(vision_cfg={"attentional_pool": False, "width": 36, "head_width": 18}), None),
    "raw_tokens": (
        tiny_coca_cfg(
            vision_cfg={"attentional_pool": False, "pool_type": "none", "width": 36, "head_width": 18}, embed_dim=36
        ),
        None,
    ),
}


def eager_coca(model_cfg: dict) -> CoCaModel:
    config = tiny_config(model_cfg)
    config._attn_implementation = "eager"
    return randomized(CoCaModel(config).eval())


@torch.no_grad()
def weights_of(attention, queries, tokens) -> torch.Tensor:
    """Attention weights (batch, queries, tokens) averaged over heads, head by head."""
    query, key = attention.q_proj(queries), attention.k_proj(tokens)
    heads = [
        (q @ k.transpose(1, 2) / attention.head_dim**0.5).softmax(-1)
        for q, k in zip(query.split(attention.head_dim, -1), key.split(attention.head_dim, -1))
    ]
    return sum(heads) / len(heads)


@torch.no_grad()
def explicit_maps(model: CoCaModel, pixel_values: torch.Tensor, input_ids: torch.Tensor, dropped: int | None):
    """The product of both attentions, from the inputs of the modules."""
    tower, queries = model.vision_model, []
    hooks = [
        layer.cross_attn.register_forward_pre_hook(lambda module, args: queries.append(args[0]))
        for layer in model.multimodal_decoder.cross_attention_layers
    ]
    outputs = model(input_ids=input_ids[:, :-1], pixel_values=pixel_values)
    for hook in hooks:
        hook.remove()
    layers = [
        weights_of(layer.cross_attn, query, layer.layer_norm1_kv(outputs.image_hidden_states))
        for layer, query in zip(model.multimodal_decoder.cross_attention_layers, queries, strict=True)
    ]
    weights = sum(layers) / len(layers)
    if dropped is not None:
        tokens = tower.encoder(tower.embed(pixel_values, True))
        if tower.attn_pool_contrastive is not None:
            tokens = tower.post_layernorm(tokens)
        pooler = tower.attn_pool
        query = pooler.layer_norm_q(pooler.query).expand(len(tokens), -1, -1)
        weights = weights @ weights_of(pooler.attention, query, pooler.layer_norm_k(tokens))[:, dropped:]
    patches = weights[..., -9:]
    return patches / patches.sum(-1, keepdim=True)


@pytest.mark.parametrize(("model_cfg", "dropped"), POOLING.values(), ids=POOLING)
def test_caption_attention_is_the_product_of_both_attentions(model_cfg, dropped):
    model = eager_coca(model_cfg)
    inputs = tiny_inputs(model)
    maps = caption_attention(model, **inputs)
    assert maps.shape == (3, 9, 3, 3)
    torch.testing.assert_close(maps.sum((-1, -2)), torch.ones(3, 9))
    expected = explicit_maps(model, **inputs, dropped=dropped)
    torch.testing.assert_close(maps.flatten(-2), expected, rtol=1e-4, atol=1e-6)
    assert maps.std(dim=1).max() > 1e-4  # not the same for every token


def test_caption_attention_of_captions_of_one_image_and_of_another_size():
    model = eager_coca(tiny_coca_cfg())
    inputs = tiny_inputs(model)
    pixel_values, input_ids = torch.randn(2, 3, 16, 40), inputs["input_ids"].repeat(2, 1)[:4]
    maps = caption_attention(model, pixel_values, input_ids, interpolate_pos_encoding=True)
    assert maps.shape == (4, 9, 2, 5)
    for row in range(4):
        alone = caption_attention(model, pixel_values[row // 2, None], input_ids[row, None], True)
        torch.testing.assert_close(maps[row], alone[0])


def test_caption_attention_finds_the_bright_patch():
    model = bright_patch_coca()
    model.set_attn_implementation("eager")
    pixel_values = torch.zeros(3, 3, 24, 40)
    places = [(0, 0), (2, 1), (1, 4)]
    for image, (row, column) in zip(pixel_values, places):
        image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1.0
    input_ids = torch.tensor([[49406, 320, 2368, 49407]] * 3)
    maps = caption_attention(model, pixel_values, input_ids, interpolate_pos_encoding=True)
    for per_token, (row, column) in zip(maps, places):
        assert (per_token[:, row, column] > 0.99).all()


def test_caption_attention_refuses_what_gives_no_weights():
    model = tiny_model("coca")
    with pytest.raises(ValueError, match='attn_implementation="eager"'):
        caption_attention(model, **tiny_inputs(model))
    model.set_attn_implementation("eager")
    assert caption_attention(model, **tiny_inputs(model)).isfinite().all()
    with pytest.raises(ValueError, match="OpenClipModel writes no captions"):
        caption_attention(tiny_model("clip"), **tiny_inputs(tiny_model("clip")))


def test_words_are_made_of_their_tokens():
    tokenizer = OpenClipTokenizer()
    ids = tokenizer("two zzqqxx cats, don't photobomb", padding=False).input_ids
    words = group_words(tokenizer, ids)
    assert [word for word, _ in words] == tokenizer.decode(ids, skip_special_tokens=True).split()
    # Every token but the start and the end of text belongs to one word, in order.
    assert [index for _, indices in words for index in indices] == list(range(1, len(ids) - 1))
    for word, indices in words:
        assert tokenizer.decode([ids[i] for i in indices], skip_special_tokens=True).replace(" ", "") == word
    assert group_words(tokenizer, [49406, 49407, 0, 0]) == []


def test_word_attention_is_the_mean_over_the_tokens_of_a_word():
    model = bright_patch_coca()
    randomized(model)
    model.set_attn_implementation("eager")
    tokenizer = OpenClipTokenizer()
    ids = tokenizer("a zzqqxx cat", return_tensors="pt", padding=False).input_ids
    pixel_values = torch.randn(1, 3, 24, 24)
    maps = caption_attention(model, pixel_values, ids)[0]
    (words,) = word_attention(model, tokenizer, pixel_values, ids)
    grouped = group_words(tokenizer, ids[0].tolist())
    assert [word for word, _ in words] == ["a", "zzqqxx", "cat"]
    assert max(len(indices) for _, indices in grouped) > 1
    for (_, ours), (_, indices) in zip(words, grouped, strict=True):
        torch.testing.assert_close(ours, sum(maps[index - 1] for index in indices) / len(indices))
        assert abs(ours.sum() - 1) < 1e-5


@pytest.mark.parametrize(
    ("model_class", "model_cfg", "last_attention"),
    [
        (OpenClipModel, tiny_clip_cfg(), False),
        (OpenClipModel, tiny_clip_cfg(vision_cfg={"attentional_pool": True}), True),
        (OpenClipSiglipModel, tiny_siglip_cfg(), True),
        (CoCaModel, tiny_coca_cfg(), True),
    ],
    ids=["class_token", "attentional", "siglip_avg", "coca"],
)
def test_patch_similarity_is_the_cosine_of_patches_and_texts(model_class, model_cfg, last_attention):
    model = randomized(model_class(tiny_config(model_cfg)).eval())
    inputs = tiny_inputs(model, batch=2)
    similarity = patch_similarity(model, **inputs)
    with torch.no_grad():
        patches = model.get_patch_features(inputs["pixel_values"], last_attention=last_attention)
        texts = model.get_text_features(inputs["input_ids"]).pooler_output
    assert similarity.shape == (2, 2, 3, 3)
    for image, text, row, column in ((0, 1, 0, 2), (1, 0, 2, 1)):
        expected = F.cosine_similarity(patches[image, row, column], texts[text], dim=0)
        torch.testing.assert_close(similarity[image, text, row, column], expected, rtol=1e-4, atol=1e-5)
