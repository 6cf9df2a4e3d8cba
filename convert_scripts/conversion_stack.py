"""What open_clip's transformer stacks have in common: fields and tensor names (open_clip: `Transformer`)."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from .common import ConversionError
from .mapping.config_table import Cfg
from .mapping.state_dict import Rename, SplitQKV, Table
from .open_clip_cfg import BLOCK_OPTIONS
from .towers.base import Intermediate


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


def _mlp_ratio(config: PreTrainedConfig) -> float:
    """The shortest decimal fraction that gives `intermediate_size`, rounded up: open_clip cuts the product off."""
    exact = config.intermediate_size / config.hidden_size
    rounded = (math.ceil(exact * 10**digits) / 10**digits for digits in range(1, 15))
    return next(
        (ratio for ratio in rounded if int(config.hidden_size * ratio) == config.intermediate_size),
        math.nextafter(exact, math.inf),
    )


STACK_INVERSE: Mapping[str, Callable[[PreTrainedConfig], Any]] = {
    "mlp_ratio": _mlp_ratio,
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
