"""The parts of a tower's conversion: open_clip's fields and defaults (open_clip: `CLIPVisionCfg`, `CLIPTextCfg` in
`model.py`, `MultimodalCfg` in `coca_model.py`), intermediates, and what its transformer stacks have in common
(`Transformer` in `transformer.py`)."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig

from ..common import ConversionError
from ..mapping.config_table import Cfg, ConfigTable
from ..mapping.state_dict import Rename, SplitQKV, Table


BLOCK_OPTIONS = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")

_STACK_DEFAULTS: Cfg = {
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

# Fields that open_clip 4 added.
VISION_DEFAULTS_4: Cfg = {"timm_model_kwargs": None, "image_seq_len": None}
# Those of a text tower with `text_arch: "modern"`, which no other tower reads.
MODERN_DEFAULTS: Cfg = {
    "attention_mode": "causal",
    "pos_embed": "rope",
    "rope_temperature": 10000.0,
    "mlp_type": "swiglu",
    "norm_type": None,
    "norm_eps": 1e-6,
    "attn_gated": False,
    "pre_norm": False,
    "norm_placement": "pre",
    "zero_init_residual": False,
    "reg_tokens": 0,
    "value_residual": False,
    "attention_bias": None,
    "mlp_bias": None,
    "gate_bias": None,
    "freeze_pad_embed": None,
}
TIKTOKEN_DEFAULTS: Cfg = {"tokenizer_type": "", "tiktoken_name": "cl100k_base"}
TEXT_DEFAULTS_4: Cfg = {
    "text_arch": "clip",
    "variable_text": False,
    "bos_id": None,
    "hf_model_config": None,
    **TIKTOKEN_DEFAULTS,
    **MODERN_DEFAULTS,
}

VISION_DEFAULTS: Cfg = {
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
    **TIMM_DEFAULTS,
    **VISION_DEFAULTS_4,
}
TEXT_DEFAULTS: Cfg = {
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
    **TOKENIZER_DEFAULTS,
    **HF_DEFAULTS,
    **TEXT_DEFAULTS_4,
}
MULTIMODAL_DEFAULTS: Cfg = {
    **TEXT_DEFAULTS,
    "mlp_ratio": 4,
    "dim_head": 64,
    "n_queries": 256,
    "attn_pooler_heads": 8,
}

TOKENS_RETURNED = {"output_tokens": "our towers return their tokens beside the pooled output"}
TOKENIZER_FIELDS = {
    **dict.fromkeys({**TOKENIZER_DEFAULTS, **TIKTOKEN_DEFAULTS}, "chooses the tokenizer, not the model"),
    "variable_text": "how texts are batched in training; features are the same",
}
SPECIAL_IDS = dict.fromkeys(("bos_id", "eos_id"), "read by `build_config`, which knows the tokenizer")
MODERN_FIELDS = dict.fromkeys(MODERN_DEFAULTS, "read for modern text towers only")
IMAGE_SEQ_LEN = {"image_seq_len": "read for NaFlex towers only"}
TIMM_MODEL_KWARGS = {
    "timm_model_kwargs": "arguments of timm's model make other layers of it, and this form has none for them"
}

Tensors = dict[str, torch.Tensor]
# Key of a tensor -> how it was changed.
Changes = dict[str, str]


@dataclass(frozen=True)
class Intermediate:
    """A value inside a tower that both libraries compute.

    Args:
        name: its name in reports.
        ours: path of the module, below our tower, that returns it.
        theirs: path of open_clip's module that returns it, below its tower. Like the others, it may hold `{n}` for a
            number, and `{blocks}` for the path of any module that has a number for its own name.
        is_input: the value is the first input of these modules, and not their output.
    """

    name: str
    ours: str
    theirs: str
    is_input: bool = False

    def under(self, part: str, ours: str, theirs: str) -> "Intermediate":
        """This value of a tower that is `part` of a whole model, below these two prefixes."""
        return replace(self, name=f"{part} {self.name}", ours=ours + self.ours, theirs=theirs + self.theirs)


@dataclass(frozen=True)
class TowerConversion:
    """The conversion of a tower from open_clip's form to ours.

    Args:
        config_table: open_clip's fields and ours.
        rename_table: from our configuration to the tower's rename table, for keys below the tower. The configuration
            is asked only where one of our tensors has two forms in open_clip, so that the table can be read backwards.
        fit: changes the tower's tensors as open_clip does when it loads them (`load_checkpoint` in `factory.py`):
            `tensors` in place, whose keys begin with `prefix`, with an entry in `changes` for each.
        adapt: sets in our configuration which form of the tower a checkpoint holds, from its keys, where it may hold
            several.
        intermediates: values inside the tower by which a wrong layer is found; they come to no more than a report.
    """

    config_table: ConfigTable
    rename_table: Callable[[PreTrainedConfig], Table]
    fit: Callable[[Tensors, Changes, str, PreTrainedConfig], None] = lambda tensors, changes, prefix, config: None
    intermediates: tuple[Intermediate, ...] = ()
    adapt: Callable[[PreTrainedConfig, Collection[str]], None] = lambda config, keys: None

    @property
    def model_type(self) -> str:
        """`model_type` of our configuration of the tower."""
        return self.config_table.config_class.model_type


@dataclass(frozen=True)
class DecoderConversion:
    """The conversion of what a captioner has beside its towers.

    Args:
        model_type: of our configuration of the decoder.
        rename_table: from our configuration of a whole model to the rename table of what is in neither tower.
        prefix: where open_clip keeps the modules of `intermediates`.
        intermediates: from our configuration of the decoder to the values inside it.
        fit: changes the tensors of a whole model as open_clip does when it loads them, `tensors` in place, with an
            entry in `changes` for each.
    """

    model_type: str
    rename_table: Callable[[PreTrainedConfig], Table]
    prefix: str
    intermediates: Callable[[PreTrainedConfig], tuple[Intermediate, ...]]
    fit: Callable[[Tensors, Changes, PreTrainedConfig], None] = lambda tensors, changes, config: None


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


STACK_FIELDS: Mapping[str, str | Callable[[Cfg], Any]] = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "intermediate_size": lambda cfg: int(cfg["width"] * cfg["mlp_ratio"]),
    "hidden_act": _hidden_act,
    "layer_norm_eps": _layer_norm_eps,
    "layer_scale_init_value": "ls_init_value",
    **{name: _block_option(name) for name in BLOCK_OPTIONS},
}


def mlp_ratio(config: PreTrainedConfig) -> float:
    """The shortest decimal fraction that gives `intermediate_size`, rounded up: open_clip cuts the product off."""
    exact = config.intermediate_size / config.hidden_size
    rounded = (math.ceil(exact * 10**digits) / 10**digits for digits in range(1, 15))
    return next(
        (ratio for ratio in rounded if int(config.hidden_size * ratio) == config.intermediate_size),
        math.nextafter(exact, math.inf),
    )


STACK_INVERSE: Mapping[str, Callable[[PreTrainedConfig], Any]] = {
    "mlp_ratio": mlp_ratio,
    "act_kwargs": lambda config: {"approximate": "tanh"} if config.hidden_act == "gelu_pytorch_tanh" else None,
    "norm_kwargs": lambda config: None if config.layer_norm_eps == 1e-5 else {"eps": config.layer_norm_eps},
    **{name: (lambda config, name=name: getattr(config, name)) for name in BLOCK_OPTIONS},
}

# open_clip's `ResidualAttentionBlock` and `CustomResidualAttentionBlock`; the second half is there by option only.
ENCODER_LAYER: Table = (
    Rename("ln_1.{p}", "layer_norm1.{p}"),
    SplitQKV("attn.in_proj_{p}", "self_attn.{qkv}_proj.{p}"),
    Rename("attn.out_proj.{p}", "self_attn.out_proj.{p}"),
    Rename("ln_2.{p}", "layer_norm2.{p}"),
    Rename("mlp.c_fc.{p}", "mlp.fc1.{p}"),
    Rename("mlp.c_proj.{p}", "mlp.fc2.{p}"),
    Rename("ls_1.gamma", "layer_scale1.gamma"),
    Rename("ls_2.gamma", "layer_scale2.gamma"),
    Rename("attn.ln_q.{p}", "self_attn.q_norm.{p}"),
    Rename("attn.ln_k.{p}", "self_attn.k_norm.{p}"),
    Rename("attn.logit_scale", "self_attn.logit_scale"),
    Rename("attn.head_scale", "self_attn.head_scale"),
    Rename("attn.ln_inner.{p}", "self_attn.inner_norm.{p}"),
    Rename("ln_attn.{p}", "attn_norm.{p}"),
    Rename("mlp.ln.{p}", "mlp.norm.{p}"),
)


def layer_intermediates(
    ours: str, theirs: str, attention: str = "self_attn", name: str = ""
) -> tuple[Intermediate, ...]:
    """Values inside each layer of a stack, whose layers are at `ours` and `theirs`; `name` goes before "layer"."""
    name = f"{name}layer {{n}}"
    modules = {
        " norm 1": (".layer_norm1", ".ln_1"),
        " attention": (f".{attention}", ".attn"),
        " norm 2": (".layer_norm2", ".ln_2"),
        " MLP": (".mlp", ".mlp"),
        "": ("", ""),
    }
    return tuple(Intermediate(name + part, ours + our, theirs + their) for part, (our, their) in modules.items())


# Of an `Encoder` beside open_clip's `Transformer`.
ENCODER_INTERMEDIATES = layer_intermediates("encoder.layers.{n}", "transformer.resblocks.{n}")
