"""From open_clip's configurations to ours: every field, every trap, every refusal."""

from dataclasses import MISSING, asdict, fields

import pytest
from tiny_configs import (
    tiny_clip_cfg,
    tiny_coca_cfg,
    tiny_mammut_4_cfg,
    tiny_modern_coca_cfg,
    tiny_modern_mammut_cfg,
    tiny_siglip_cfg,
)

from open_clip_transformers.configuration.configuration_modern_text import ModernTextConfig
from open_clip_transformers.configuration.configuration_naflex_vit import NaFlexVitConfig
from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.mapping.config import (
    MODEL,
    OTHER_MODELS,
    TokenIds,
    build_config,
    build_model_cfg,
    check_model_cfg,
)
from open_clip_transformers.convert_scripts.mapping.config_table import REQUIRED
from open_clip_transformers.convert_scripts.towers.base import TEXT_DEFAULTS_4, VISION_DEFAULTS_4
from open_clip_transformers.convert_scripts.towers.coca_decoder import DECODER, MODERN_DECODER
from open_clip_transformers.convert_scripts.towers.mammut_text import MODERN as MODERN_MAMMUT
from open_clip_transformers.convert_scripts.towers.tables import TEXT_TOWERS, VISION_TOWERS


TABLES = {
    **{tower.model_type: tower.config_table for tower in (*VISION_TOWERS, *TEXT_TOWERS)},
    "decoder": DECODER,
    "modern_decoder": MODERN_DECODER,
    "modern_mammut": MODERN_MAMMUT.text,
    "model": MODEL,
}
VIT, TEXT = VISION_TOWERS[-1].config_table, TEXT_TOWERS[-1].config_table


MODERN = {"text_arch": "modern", "pool_type": "mean"}


class ReadFields(dict):
    """A dictionary that remembers what was read from it."""

    def __init__(self, *args):
        super().__init__(*args)
        self.read = set()

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_every_open_clip_field_is_translated_or_said_to_be_without_effect(table):
    is_naflex = table.config_class is NaFlexVitConfig
    timm_model_name = "naflexvit_base_patch16_siglip" if is_naflex else "vit_base_patch16_siglip_224"
    towers = {"hf_model_name": "roberta-base", "timm_model_name": timm_model_name}
    given = {"quick_gelu": False, "embed_dim": 3, "eos_id": 3, **towers}
    cfg = ReadFields(table.defaults | given)
    for ours in table.fields.values():
        cfg[ours] if isinstance(ours, str) else ours(cfg)
    handed_down = {"quick_gelu", "embed_dim"} - table.defaults.keys()
    translated = cfg.read - handed_down
    if table.config_class is ModernTextConfig:
        translated -= {"eos_id"}  # looked at to refuse a pooling
    assert translated | table.without_effect.keys() | table.refused.keys() == table.defaults.keys()
    assert not translated & (table.without_effect.keys() | table.refused.keys())
    assert not table.without_effect.keys() & table.refused.keys()


@pytest.mark.parametrize("part", ["vision", "text", "decoder"])
def test_defaults_are_those_of_open_clip(part):
    from open_clip.coca_model import MultimodalCfg
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    reference = asdict({"vision": CLIPVisionCfg, "text": CLIPTextCfg, "decoder": MultimodalCfg}[part]())
    ours = dict({"vision": VIT, "text": TEXT, "decoder": DECODER}[part].defaults)
    # Arguments of open_clip's `TextTransformer` that its configuration cannot set in 3.3.0.
    for field in ("use_pad_mask", "correct_cls_mask"):
        assert ours.pop(field, False) is False
    for field, default in (VISION_DEFAULTS_4 if part == "vision" else TEXT_DEFAULTS_4).items():
        assert ours.pop(field) == default
    assert ours == reference


def test_model_defaults_are_those_of_open_clip():
    import inspect

    from open_clip.coca_model import CoCa
    from open_clip.model import CustomTextCLIP

    known = inspect.signature(CustomTextCLIP).parameters | inspect.signature(CoCa).parameters
    assert known.keys() | {"custom_text"} == MODEL.defaults.keys() - OTHER_MODELS.keys()
    for name, parameter in known.items():
        if parameter.default is not inspect.Parameter.empty:
            assert MODEL.defaults[name] == pytest.approx(parameter.default), name
    assert [name for name, default in MODEL.defaults.items() if default is REQUIRED] == [
        "embed_dim",
        "vision_cfg",
    ]
    # open_clip 4 has MaMMUT, whose text tower may be described elsewhere.
    with pytest.raises(ConversionError, match="model_cfg lacks text_cfg"):
        check_model_cfg({"embed_dim": 28, "vision_cfg": {}})


@pytest.mark.parametrize("table", [VIT, TEXT, DECODER], ids=["vision", "text", "decoder"])
def test_fields_are_those_of_our_configuration(table):
    ours = {field.name: field for field in fields(table.config_class)}
    assert table.fields.keys() <= ours.keys()
    assert all(field.default is not MISSING for field in ours.values())


@pytest.mark.parametrize(
    ("model_cfg", "model_type"),
    [(tiny_clip_cfg(), "open_clip"), (tiny_siglip_cfg(), "open_clip_siglip"), (tiny_coca_cfg(), "open_clip_coca")],
    ids=["clip", "siglip", "coca"],
)
def test_build_config_chooses_the_model(model_cfg, model_type):
    config = build_config(model_cfg)
    assert config.model_type == model_type
    assert config.projection_dim == config.vision_config.projection_dim == model_cfg["embed_dim"]


def test_build_config_keeps_a_siglip_coca_a_coca():
    config = build_config(tiny_coca_cfg(init_logit_bias=-3.0))
    assert (config.model_type, config.logit_bias_init_value) == ("open_clip_coca", -3.0)


VISION_CASES = {
    "heads-from-head-width": ({}, {"num_attention_heads": 2, "hidden_size": 40}),
    "mlp-ratio-rounds-down": ({"mlp_ratio": 4.3637}, {"intermediate_size": int(40 * 4.3637)}),
    "no-ln-pre": ({"no_ln_pre": True}, {"use_pre_layer_norm": False}),
    "epsilon": ({"norm_kwargs": {"eps": 1e-6}}, {"layer_norm_eps": 1e-6}),
    "no-norm-kwargs": ({"norm_kwargs": {}}, {"layer_norm_eps": 1e-5}),
    "tanh": ({"act_kwargs": {"approximate": "tanh"}}, {"hidden_act": "gelu_pytorch_tanh"}),
    "exact-gelu": ({"act_kwargs": {"approximate": "none"}}, {"hidden_act": "gelu"}),
    "block-option": ({"qk_norm": True}, {"qk_norm": True}),
    "block-option-custom": ({"scale_fc": True, "block_type": "custom"}, {"scale_fc": True}),
    "block-option-of-plain-block": ({"scale_fc": True, "block_type": "default"}, {"scale_fc": False}),
    "two-sides": ({"image_size": [24, 32]}, {"image_size": [24, 32], "grid_size": (3, 4)}),
    "output-tokens": ({"output_tokens": True}, {"pool_type": "tok"}),
    "empty-timm-name": ({"timm_model_name": ""}, {"hidden_size": 40}),
    "sin-cos": ({"pos_embed_type": "sin_cos_2d"}, {"position_embedding_type": "sin_cos_2d"}),
    "empty-pooler-name": ({"attentional_pool": ""}, {"attentional_pool": False}),
}


@pytest.mark.parametrize(("changes", "expected"), VISION_CASES.values(), ids=VISION_CASES.keys())
def test_vision_fields(changes, expected):
    config = build_config(tiny_clip_cfg(vision_cfg=changes)).vision_config
    assert {name: getattr(config, name) for name in expected} == expected


TEXT_CASES = {
    "context-length": ({}, {"max_position_embeddings": 11, "vocab_size": 97, "num_attention_heads": 3}),
    "eos-pooling": ({"pool_type": "eos", "eos_id": 5}, {"pool_type": "eos", "eos_token_id": 5}),
    "eos-pooling-default": ({"pool_type": "eos"}, {"eos_token_id": 2}),
    "eos-id-not-read": ({"eos_id": 5}, {"eos_token_id": None}),
    "bidirectional": ({"no_causal_mask": True}, {"is_causal": False}),
    "padding": ({"pad_id": 7}, {"pad_token_id": 7}),
    "biased-projection": ({"proj_bias": True}, {"proj_type": "linear", "proj_bias": True}),
    "other-projection-is-linear": ({"proj_type": "anything"}, {"proj_type": "linear"}),
    "final-ln-after-pool-not-read": ({"final_ln_after_pool": True}, {"pool_type": "argmax"}),
    "tokenizer": ({"hf_tokenizer_name": "org/name", "tokenizer_kwargs": {"clean": "lower"}}, {"vocab_size": 97}),
}


@pytest.mark.parametrize(("changes", "expected"), TEXT_CASES.values(), ids=TEXT_CASES.keys())
def test_text_fields(changes, expected):
    config = build_config(tiny_clip_cfg(text_cfg=changes)).text_config
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    "ignored",
    [
        {"mlp_ratio": 2},
        {"norm_kwargs": {"eps": 1e-3}},
        {"act_kwargs": {"approximate": "tanh"}},
        {"qk_norm": True},
        {"vocab_size": 5},
        {"dim_head": 3, "n_queries": 4, "attn_pooler_heads": 5},
    ],
    ids=["mlp-ratio", "norm-kwargs", "act-kwargs", "block-option", "vocab-size", "pooler"],
)
def test_decoder_ignores_what_open_clip_ignores(ignored):
    assert build_config(tiny_coca_cfg(multimodal_cfg=ignored)).to_dict() == build_config(tiny_coca_cfg()).to_dict()


def test_decoder_takes_its_vocabulary_from_the_text_tower():
    config = build_config(tiny_coca_cfg(text_cfg={"vocab_size": 91}))
    assert config.multimodal_config.vocab_size == 91


def test_quick_gelu_applies_to_every_tower():
    config = build_config(tiny_coca_cfg(quick_gelu=True))
    parts = (config.vision_config, config.text_config, config.multimodal_config)
    assert [part.hidden_act for part in parts] == ["quick_gelu"] * 3


@pytest.mark.parametrize(
    ("vocab_size", "hf_tokenizer_name", "ids"),
    [(49408, None, (49406, 49407, 0)), (64000, None, (49406, 49407, 0)), (97, None, (None, None, 0))],
    ids=["clip", "larger", "smaller"],
)
def test_token_ids_are_clips_where_its_tokenizer_fits(vocab_size, hf_tokenizer_name, ids):
    text_cfg = {"vocab_size": vocab_size, "hf_tokenizer_name": hf_tokenizer_name}
    config = build_config(tiny_coca_cfg(text_cfg=text_cfg))
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == ids
    assert (config.text_config.bos_token_id, config.text_config.eos_token_id) == ids[:2]


def test_token_ids_are_unknown_for_an_unread_tokenizer():
    config = build_config(tiny_coca_cfg(text_cfg={"vocab_size": 49408, "hf_tokenizer_name": "org/name"}))
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, None, 0)


def test_token_ids_of_a_tokenizer_are_taken():
    config = build_config(tiny_coca_cfg(), TokenIds(bos=1, eos=2, pad=3))
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 3)
    # The text tower's mask follows its own pad_id.
    assert config.text_config.pad_token_id == 0


def test_pad_id_of_the_model_wins_over_the_tokenizer():
    assert build_config(tiny_coca_cfg(pad_id=6), TokenIds(bos=1, eos=2, pad=3)).pad_token_id == 6


REFUSALS = {
    "kwargs-of-timm": (
        {"vision_cfg": {"timm_model_name": "convnext_base", "timm_model_kwargs": {"depths": [1, 1, 1, 1]}}},
        r"vision_cfg: timm_model_kwargs = \{'depths'.*cannot be honoured: arguments of timm's model make other layers",
    ),
    "kwargs-of-timm-in-siglip": (
        {"vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224", "timm_model_kwargs": {"depth": 2}}},
        "timm_model_kwargs.*cannot be honoured",
    ),
    "naflex": (
        {"vision_cfg": {"timm_model_name": "naflexvit_base_patch16_parfac_gap", "image_seq_len": 256}},
        "naflexvit_base_patch16_parfac_gap.*is not one of the NaFlex models that can be converted",
    ),
    "audio": (
        {"audio_cfg": {"model_type": "HTSAT"}},
        "audio_cfg.*the model is a CLAP, which compares audio",
    ),
    "genlip": ({"genlip_cfg": {"width": 64}}, "genlip_cfg.*the model is a GenLIP"),
    "genlap": ({"genlap_cfg": {"width": 64}}, "genlap_cfg.*the model is a GenLAP"),
    "text-arch": ({"text_cfg": {"text_arch": "modernist"}}, 'text_arch = .modernist. cannot be honoured: .*"modern"'),
    "modern-encoder": (
        {"text_cfg": {"text_arch": "modern", "hf_model_name": "roberta-base"}},
        "text_arch = 'modern' cannot be honoured: with an hf_model_name",
    ),
    "modern-mlp": (
        {"text_cfg": {**MODERN, "mlp_type": "geglu"}},
        "mlp_type of a modern.*'swiglu', 'mlp', 'relu2'",
    ),
    "modern-norm": (
        {"text_cfg": {**MODERN, "norm_type": "batch"}},
        "norm_type of a modern.*'rmsnorm', 'layernorm'",
    ),
    "modern-pool": ({"text_cfg": {**MODERN, "pool_type": "last"}}, "pool_type of a modern.*'argmax', 'eos', 'mean'"),
    "modern-end": ({"text_cfg": {"text_arch": "modern"}}, '"eos" of a modern text tower needs an eos_id'),
    "modern-switch": ({"text_cfg": {**MODERN, "mlp_bias": "no"}}, "mlp_bias must be true or false"),
    "encoder-fields": (
        {"text_cfg": {"hf_model_name": "roberta-base", "hf_model_config": {"auto_map": {}}}},
        "hf_model_config may hold fields of a roberta encoder, got auto_map",
    ),
    "encoder-values": (
        {"text_cfg": {"hf_model_name": "roberta-base", "hf_model_config": {"hidden_size": "wide"}}},
        "hf_model_config does not describe a roberta encoder",
    ),
    "unknown-model-field": (
        {"foo": 1},
        r"model_cfg has fields that are not known:\n  foo\nCorrect those that are misspelt.*another one",
    ),
    "unknown-vision-field": ({"vision_cfg": {"foo": 1, "bar": 2}}, r"vision_cfg.*not known:\n  bar\n  foo"),
    "unknown-text-field": ({"text_cfg": {"foo": 1}}, r"text_cfg.*not known:\n  foo"),
    "norm-kwargs": ({"text_cfg": {"norm_kwargs": {"bias": False}}}, 'norm_kwargs must hold "eps" alone'),
    "act-kwargs": ({"vision_cfg": {"act_kwargs": {"inplace": True}}}, "act_kwargs must be .* got"),
    "act-kwargs-value": ({"vision_cfg": {"act_kwargs": {"approximate": "erf"}}}, "act_kwargs must be"),
    "quick-gelu-act-kwargs": (
        {"quick_gelu": True, "vision_cfg": {"act_kwargs": {"approximate": "tanh"}}},
        "quick_gelu takes no act_kwargs",
    ),
    "cls-without-custom-text": ({"text_cfg": {"embed_cls": True}}, "embed_cls.*custom_text"),
    "decoder-without-custom-text": ({"multimodal_cfg": {"width": 36}}, "multimodal_cfg.*custom_text"),
    "pool-type": ({"text_cfg": {"pool_type": "max"}}, "pool_type must be one of .*got 'max'"),
    "heads": ({"text_cfg": {"heads": 5}}, r"hidden_size \(36\) must be a multiple of num_attention_heads \(5\)"),
    "type": ({"vision_cfg": {"width": "wide"}}, "vision_cfg: width must be a whole number, got 'wide'"),
    "not-an-object": ({"vision_cfg": 3}, "vision_cfg must be a JSON object, got 3"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_build_config_refuses(changes, message):
    with pytest.raises(ConversionError, match=message):
        build_config(tiny_clip_cfg(**changes))


MODERN_REFUSALS = {
    "registers": ({"reg_tokens": 2}, "reg_tokens = 2 cannot be honoured: a text tower that captions too"),
    "pool": ({"pool_type": "avg_all"}, "pool_type of a modern text tower must be one of 'avg', 'argmax', 'mean'"),
    "end": ({"pool_type": "argmax"}, '"eos" of a modern text tower needs an eos_id'),
    "ratio": ({"cross_attn_ratio": 5}, "cross_attn_ratio 5 must be at most the number of layers, 4"),
    "width": ({"proj_type": "none"}, "without a projection, projection_dim .28. must equal hidden_size .36."),
    "norm": ({"norm_type": "batchnorm"}, "norm_type of a modern text tower must be one of 'rmsnorm', 'layernorm'"),
    "unknown": ({"cross_attn_gate": True}, "fields that are not known:\n  cross_attn_gate"),
}


@pytest.mark.parametrize(("changes", "message"), MODERN_REFUSALS.values(), ids=MODERN_REFUSALS)
def test_build_config_refuses_modern_mammuts(changes, message):
    with pytest.raises(ConversionError, match=message):
        build_config(tiny_modern_mammut_cfg(multimodal_cfg=changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multimodal_cfg": {"cross_attn_ratio": 4}}, "cross_attn_ratio 4 must be at most the number of layers, 3"),
        ({"multimodal_cfg": {"mlp_type": "glu"}}, "mlp_type of a modern text tower must be one of 'swiglu'"),
        ({"multimodal_cfg": {"width": 30}}, "hidden_size = 30"),
        ({"text_cfg": {"pool_type": "eos"}}, '"eos" of a modern text tower needs an eos_id'),
    ],
    ids=["ratio", "mlp", "width", "end"],
)
def test_build_config_refuses_modern_cocas(changes, message):
    with pytest.raises(ConversionError, match=message):
        build_config(tiny_modern_coca_cfg(**changes))


def test_modern_captioners_read_what_open_clip_reads():
    """open_clip's modern decoders take none of the other fields of text towers."""
    unread = {"reg_tokens": 2, "pre_norm": True, "pool_type": "eos", "tie_lm_head": True, "vocab_size": 7, "pad_id": 3}
    for changes in ({"multimodal_cfg": unread}, {"custom_text": False}):
        assert (
            build_config(tiny_modern_coca_cfg(**changes)).to_dict() == build_config(tiny_modern_coca_cfg()).to_dict()
        )
    unread = {"attention_mode": "causal", "use_pad_mask": False, "freeze_pad_embed": True}
    given = build_config(tiny_modern_mammut_cfg(multimodal_cfg=unread))
    assert given.to_dict() == build_config(tiny_modern_mammut_cfg()).to_dict()
    # Those of MaMMUT, too, which only modern layers read.
    assert not build_config(tiny_mammut_4_cfg(multimodal_cfg={"tie_lm_head": True})).tie_word_embeddings


def test_build_model_cfg_names_what_modern_captioners_cannot_have():
    config = build_config(tiny_modern_mammut_cfg())
    config.multimodal_config.qk_norm = False
    with pytest.raises(ConversionError, match=r"multimodal_config\.qk_norm = False"):
        build_model_cfg(config)
    config = build_config(tiny_mammut_4_cfg())
    config.tie_word_embeddings = True
    with pytest.raises(ConversionError, match="tie_word_embeddings = True"):
        build_model_cfg(config)


def test_build_config_names_missing_fields():
    model_cfg = tiny_clip_cfg()
    del model_cfg["text_cfg"]
    with pytest.raises(ConversionError, match="model_cfg lacks text_cfg"):
        build_config(model_cfg)


def test_towers_end_with_the_default():
    assert VIT.selects({}) and TEXT.selects({})
