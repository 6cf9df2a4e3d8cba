"""Every field of open_clip's configurations with its default (open_clip: `CLIPVisionCfg`, `CLIPTextCfg` in `model.py`,
`MultimodalCfg` in `coca_model.py`)."""

from .mapping.config_table import Cfg


BLOCK_OPTIONS = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")

_STACK: Cfg = {
    "layers": 12,
    "mlp_ratio": 4.0,
    "ls_init_value": None,
    "act_kwargs": None,
    "norm_kwargs": None,
    "block_type": None,
    **dict.fromkeys(BLOCK_OPTIONS, False),
}

TIMM_DEFAULTS: Cfg = {
    "timm_model_name": None,
    "timm_model_pretrained": False,
    "timm_pool": "avg",
    "timm_proj": "linear",
    "timm_proj_bias": False,
    "timm_drop": 0.0,
    "timm_drop_path": None,
}
HF_DEFAULTS: Cfg = {
    "hf_model_name": None,
    "hf_model_pretrained": True,
    "hf_proj_type": "mlp",
    "hf_pooler_type": "mean_pooler",
}
TOKENIZER_DEFAULTS: Cfg = {"hf_tokenizer_name": None, "tokenizer_mode": None, "tokenizer_kwargs": None}

VISION_DEFAULTS: Cfg = {
    **_STACK,
    "width": 768,
    "head_width": 64,
    "patch_size": 16,
    "image_size": 224,
    "patch_dropout": 0.0,
    "attentional_pool": False,
    "attn_pooler_queries": 256,
    "attn_pooler_heads": 8,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "final_ln_after_pool": False,
    "pool_type": "tok",
    "output_tokens": False,
    **TIMM_DEFAULTS,
}
TEXT_DEFAULTS: Cfg = {
    **_STACK,
    "width": 512,
    "heads": 8,
    "context_length": 77,
    "vocab_size": 49408,
    "embed_cls": False,
    "pad_id": 0,
    "eos_id": 2,
    "no_causal_mask": False,
    "use_pad_mask": False,
    "correct_cls_mask": False,
    "final_ln_after_pool": False,
    "pool_type": "argmax",
    "proj_type": "linear",
    "proj_bias": False,
    "output_tokens": False,
    **TOKENIZER_DEFAULTS,
    **HF_DEFAULTS,
}
MULTIMODAL_DEFAULTS: Cfg = {
    **TEXT_DEFAULTS,
    "mlp_ratio": 4,
    "dim_head": 64,
    "n_queries": 256,
    "attn_pooler_heads": 8,
}

TOKENS_RETURNED = {"output_tokens": "our towers return their tokens beside the pooled output"}
TOKENIZER_FIELDS = dict.fromkeys(TOKENIZER_DEFAULTS, "chooses the tokenizer, not the model")
EOS_ID = {"eos_id": "read by `build_config`, which knows the tokenizer"}
