"""How the fields of open_clip's configurations become ours, as data.

A `ConfigTable` holds open_clip's fields with their defaults, and each of our fields with where it comes from. A new
tower is one more table in `VISION_TOWERS` or `TEXT_TOWERS`, where the first whose `selects` is true is taken. Mirrors
`CLIPVisionCfg` and `CLIPTextCfg` (open_clip: `model.py`), `MultimodalCfg` (`coca_model.py`) and their use there.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from ..configuration.configuration_coca import CoCaDecoderConfig
from ..configuration.configuration_text import OpenClipTextConfig
from ..configuration.configuration_vit import OpenClipVitConfig
from .errors import ConversionError, listing


Cfg = Mapping[str, Any]
REQUIRED = object()


@dataclass(frozen=True)
class ConfigTable:
    """One part of open_clip's `model_cfg` and our configuration of it.

    Args:
        name: what the part is called in messages.
        config_class: our configuration class; `None` for a part that is not supported yet.
        selects: whether an open_clip configuration is one of this part.
        defaults: every field that open_clip knows -> its default, or `REQUIRED`.
        fields: our field -> open_clip's field of the same meaning, or a function of all of its fields.
        without_effect: fields of open_clip that `fields` does not read -> why.
    """

    name: str
    config_class: type[PreTrainedConfig] | None = None
    selects: Callable[[Cfg], Any] = lambda cfg: True
    defaults: Cfg = field(default_factory=dict)
    fields: Mapping[str, str | Callable[[Cfg], Any]] = field(default_factory=dict)
    without_effect: Mapping[str, str] = field(default_factory=dict)

    def complete(self, cfg: Cfg) -> Cfg:
        """`cfg` with open_clip's defaults. Raises `ConversionError` on unknown, missing and unsupported fields."""
        if not self.defaults:
            raise ConversionError(f"{self.name} is not supported yet: this checkpoint cannot be converted.")
        if not isinstance(cfg, Mapping):
            raise ConversionError(f"{self.name} must be a JSON object, got {cfg!r}.")
        unknown = sorted(cfg.keys() - self.defaults.keys())
        if unknown:
            raise ConversionError(
                f"{self.name} has fields that are not known:{listing(unknown)}\n"
                f"Correct or remove them; known are {', '.join(sorted(self.defaults))}."
            )
        missing = sorted(key for key, default in self.defaults.items() if default is REQUIRED and key not in cfg)
        if missing:
            raise ConversionError(f"{self.name} lacks {', '.join(missing)}.")
        return {**self.defaults, **cfg}

    def translate(self, cfg: Cfg, **handed_down: Any) -> dict[str, Any]:
        """Our fields for `cfg`; `handed_down` holds fields of the whole model that the part is built with."""
        cfg = {**self.complete(cfg), **handed_down}
        return {ours: cfg[theirs] if isinstance(theirs, str) else theirs(cfg) for ours, theirs in self.fields.items()}


def _hidden_act(cfg: Cfg) -> str:
    act_kwargs = cfg["act_kwargs"] or {}
    if cfg["quick_gelu"]:
        if act_kwargs:
            raise ConversionError(
                f"quick_gelu takes no act_kwargs, got {act_kwargs}; open_clip cannot build it either."
            )
        return "quick_gelu"
    acts = {"none": "gelu", "tanh": "gelu_pytorch_tanh"}
    act = acts.get(act_kwargs.get("approximate", "none"))
    if act is None or act_kwargs.keys() - {"approximate"}:
        raise ConversionError(
            f'act_kwargs must be {{"approximate": "none"}} or {{"approximate": "tanh"}}, got {act_kwargs}.'
        )
    return act


def _layer_norm_eps(cfg: Cfg) -> float:
    norm_kwargs = cfg["norm_kwargs"] or {}
    if norm_kwargs.keys() - {"eps"}:
        raise ConversionError(f'norm_kwargs must hold "eps" alone, got {norm_kwargs}.')
    return norm_kwargs.get("eps", 1e-5)


def _block_option(name: str) -> Callable[[Cfg], bool]:
    # Any block_type but "custom" makes open_clip's plain block, which has none of the options.
    return lambda cfg: cfg["block_type"] in (None, "custom") and bool(cfg[name])


_BLOCK_OPTIONS = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")

_STACK_DEFAULTS: Cfg = {
    "layers": 12,
    "mlp_ratio": 4.0,
    "ls_init_value": None,
    "act_kwargs": None,
    "norm_kwargs": None,
    "block_type": None,
    **dict.fromkeys(_BLOCK_OPTIONS, False),
}
_STACK_FIELDS: Mapping[str, str | Callable[[Cfg], Any]] = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "intermediate_size": lambda cfg: int(cfg["width"] * cfg["mlp_ratio"]),
    "hidden_act": _hidden_act,
    "layer_norm_eps": _layer_norm_eps,
    "layer_scale_init_value": "ls_init_value",
    **{name: _block_option(name) for name in _BLOCK_OPTIONS},
}

_TIMM_DEFAULTS: Cfg = {
    "timm_model_name": None,
    "timm_model_pretrained": False,
    "timm_pool": "avg",
    "timm_proj": "linear",
    "timm_proj_bias": False,
    "timm_drop": 0.0,
    "timm_drop_path": None,
}
_HF_DEFAULTS: Cfg = {
    "hf_model_name": None,
    "hf_model_pretrained": True,
    "hf_proj_type": "mlp",
    "hf_pooler_type": "mean_pooler",
}
_TOKENIZER_DEFAULTS: Cfg = {"hf_tokenizer_name": None, "tokenizer_mode": None, "tokenizer_kwargs": None}
_TOKENS_RETURNED = {"output_tokens": "our towers return their tokens beside the pooled output"}

VIT = ConfigTable(
    name="vision_cfg",
    config_class=OpenClipVitConfig,
    defaults={
        **_STACK_DEFAULTS,
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
        **_TIMM_DEFAULTS,
    },
    fields={
        **_STACK_FIELDS,
        "projection_dim": "embed_dim",
        "num_attention_heads": lambda cfg: cfg["width"] // cfg["head_width"],
        "image_size": "image_size",
        "patch_size": "patch_size",
        "patch_dropout": "patch_dropout",
        "use_pre_layer_norm": lambda cfg: not cfg["no_ln_pre"],
        "position_embedding_type": "pos_embed_type",
        "pool_type": "pool_type",
        "final_ln_after_pool": "final_ln_after_pool",
        "attentional_pool": lambda cfg: cfg["attentional_pool"] or False,
        "attn_pooler_queries": "attn_pooler_queries",
        "attn_pooler_heads": "attn_pooler_heads",
    },
    without_effect={**_TOKENS_RETURNED, **dict.fromkeys(_TIMM_DEFAULTS, "read for timm towers only")},
)

TEXT = ConfigTable(
    name="text_cfg",
    config_class=OpenClipTextConfig,
    defaults={
        **_STACK_DEFAULTS,
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
        **_TOKENIZER_DEFAULTS,
        **_HF_DEFAULTS,
    },
    fields={
        **_STACK_FIELDS,
        "projection_dim": "embed_dim",
        "num_attention_heads": "heads",
        "vocab_size": "vocab_size",
        "max_position_embeddings": "context_length",
        # open_clip takes every value but "none" for "linear".
        "proj_type": lambda cfg: "none" if cfg["proj_type"] == "none" else "linear",
        "proj_bias": "proj_bias",
        "is_causal": lambda cfg: not cfg["no_causal_mask"],
        "use_pad_mask": "use_pad_mask",
        "embed_cls": "embed_cls",
        "correct_cls_mask": "correct_cls_mask",
        "pool_type": "pool_type",
        "pad_token_id": "pad_id",
    },
    without_effect={
        **_TOKENS_RETURNED,
        "final_ln_after_pool": "open_clip does not hand it to its text tower",
        "eos_id": "read by `build_config`, which knows the tokenizer",
        **dict.fromkeys(_TOKENIZER_DEFAULTS, "chooses the tokenizer, not the model"),
        **dict.fromkeys(_HF_DEFAULTS, "read for Hugging Face towers only"),
    },
)

# open_clip builds the decoder from these fields alone; its MLP ratio and epsilon are always the defaults.
DECODER = ConfigTable(
    name="multimodal_cfg",
    config_class=CoCaDecoderConfig,
    defaults={**TEXT.defaults, "mlp_ratio": 4, "dim_head": 64, "n_queries": 256, "attn_pooler_heads": 8},
    fields={
        "hidden_size": "width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "intermediate_size": lambda cfg: 4 * cfg["width"],
        "hidden_act": lambda cfg: "quick_gelu" if cfg["quick_gelu"] else "gelu",
        "layer_scale_init_value": "ls_init_value",
        "max_position_embeddings": "context_length",
    },
    without_effect=dict.fromkeys(
        TEXT.defaults.keys() - {"width", "layers", "heads", "ls_init_value", "context_length"}
        | {"mlp_ratio", "dim_head", "n_queries", "attn_pooler_heads"},
        "open_clip does not hand it to its decoder",
    ),
)

MODEL = ConfigTable(
    name="model_cfg",
    defaults={
        "embed_dim": REQUIRED,
        "vision_cfg": REQUIRED,
        "text_cfg": REQUIRED,
        "multimodal_cfg": None,
        "custom_text": False,
        "quick_gelu": False,
        "init_logit_scale": math.log(1 / 0.07),
        "init_logit_bias": None,
        "nonscalar_logit_scale": False,
        "pad_id": 0,
        "cast_dtype": None,
        "output_dict": False,
    },
    fields={
        "projection_dim": "embed_dim",
        "logit_scale_init_value": "init_logit_scale",
        "logit_bias_init_value": "init_logit_bias",
        "nonscalar_logit_scale": "nonscalar_logit_scale",
    },
    without_effect={
        **dict.fromkeys(
            ("vision_cfg", "text_cfg", "multimodal_cfg", "custom_text", "pad_id"), "read by `build_config`"
        ),
        "quick_gelu": "handed down to the towers",
        "cast_dtype": "dtype at load time",
        "output_dict": "our models return output objects",
    },
)

VISION_TOWERS = (
    ConfigTable("A timm image tower (vision_cfg.timm_model_name)", selects=lambda cfg: cfg.get("timm_model_name")),
    ConfigTable(
        "A ResNet image tower (a list of vision_cfg.layers)",
        selects=lambda cfg: isinstance(cfg.get("layers"), list | tuple),
    ),
    VIT,
)
TEXT_TOWERS = (
    ConfigTable("A Hugging Face text tower (text_cfg.hf_model_name)", selects=lambda cfg: cfg.get("hf_model_name")),
    TEXT,
)
