"""NaFlex vision transformers: fields, tensor names (open_clip: `TimmModel` in `timm_model.py` around timm's
`NaFlexVit`, of the models named `naflexvit_*` in timm's `naflexvit.py`)."""

from collections.abc import Callable
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from ...configuration.configuration_common import LAYERS, height_and_width
from ...configuration.configuration_naflex_vit import NaFlexVitConfig
from ..common import MAX_NUM_PATCHES, ConversionError, listing, plain
from ..mapping.config_table import FIELD_KINDS, SWITCH, Cfg, ConfigTable, Kind
from ..mapping.state_dict import Rename, SplitGateFirst, SplitQKV, Table, under
from .base import TIMM_DEFAULTS, TOKENS_RETURNED, VISION_DEFAULTS, Changes, Intermediate, Tensors, TowerConversion
from .siglip_vit import (
    BLOCK,
    LAYER_INTERMEDIATES,
    POOLER,
    PROJECTION,
    has_own_projection,
    proj_bias,
    proj_type,
    project_by_classifier,
)


# timm's `NaFlexVitCfg`: fields that can be converted -> defaults.
_DEFAULTS: dict[str, Any] = {
    "patch_size": 16,
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "swiglu_mlp": False,
    "qkv_bias": True,
    "qk_norm": False,
    "init_values": None,
    "class_token": False,
    "reg_tokens": 0,
    "pos_embed_grid_size": [16, 16],
    "pos_embed_interp_mode": "bicubic",
    "pos_embed_ar_preserving": False,
    "fc_norm": None,
    "global_pool": "map",
    "pool_include_prefix": False,
    "attn_pool_mlp_ratio": None,
    "act_layer": None,
    "attn_drop_rate": 0.0,
    "pos_drop_rate": 0.0,
    "proj_drop_rate": 0.0,
}
_KINDS = {
    **dict.fromkeys(("patch_size", "pos_embed_grid_size"), FIELD_KINDS["patch_size"]),
    **dict.fromkeys(("mlp_ratio", "attn_pool_mlp_ratio"), FIELD_KINDS["mlp_ratio"]),
    **dict.fromkeys(("attn_drop_rate", "pos_drop_rate", "proj_drop_rate"), FIELD_KINDS["timm_drop"]),
    **dict.fromkeys(("fc_norm", *(name for name, value in _DEFAULTS.items() if isinstance(value, bool))), SWITCH),
    **{"embed_dim": FIELD_KINDS["embed_dim"], "num_heads": FIELD_KINDS["heads"], "depth": Kind((int,), LAYERS)},
    **{"init_values": FIELD_KINDS["ls_init_value"], "reg_tokens": FIELD_KINDS["reg_tokens"]},
}
_GAP = {"init_values": 1e-5, "global_pool": "avg", "reg_tokens": 4, "fc_norm": True}
_SIGLIP = {"act_layer": "gelu_tanh", "pos_embed_interp_mode": "bilinear"}
_SO150M2 = {"embed_dim": 832, "depth": 21, "num_heads": 13, "mlp_ratio": 34 / 13, "init_values": 1e-5}
_SO150M2 |= {"qkv_bias": False, "reg_tokens": 1}
# timm's name -> the fields of `NaFlexVitCfg` that it stands for.
TIMM_MODELS: dict[str, dict[str, Any]] = {
    "naflexvit_base_patch16_siglip": _SIGLIP,
    "naflexvit_so400m_patch16_siglip": {
        **_SIGLIP,
        **{"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362},
    },
    "naflexvit_base_patch16_gap": _GAP,
    "naflexvit_base_patch16_par_gap": {**_GAP, "pos_embed_ar_preserving": True},
    "naflexvit_base_patch16_map": {"init_values": 1e-5, "reg_tokens": 1},
    "naflexvit_so150m2_patch16_reg1_gap": {**_SO150M2, "global_pool": "avg", "fc_norm": True},
    "naflexvit_so150m2_patch16_reg1_map": _SO150M2,
}
ACTIVATIONS = {None: "gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}
POOLS = ("map", "avg", "token")


def _selects(cfg: Cfg) -> bool:
    return str(cfg.get("timm_model_name") or "").startswith("naflexvit")


def timm_cfg(cfg: Cfg) -> dict[str, Any]:
    """The fields of timm's `NaFlexVitCfg` that open_clip's `vision_cfg` describes.

    Raises:
        ConversionError: a model of timm or arguments of it that the tower has no layers for.
    """
    name, kwargs = cfg["timm_model_name"].split(".")[0], dict(cfg["timm_model_kwargs"] or {})
    if name not in TIMM_MODELS:
        raise ConversionError(
            f"vision_cfg: timm_model_name {name!r} is not one of the NaFlex models that can be converted: "
            f"{', '.join(TIMM_MODELS)}."
        )
    unknown = {key: value for key, value in kwargs.items() if key not in _DEFAULTS}
    if unknown:
        raise ConversionError(
            f"vision_cfg: timm_model_kwargs has arguments that no tower here honours:"
            f"{listing(f'{key} = {value!r}' for key, value in unknown.items())}\n"
            "They make other layers or other values: the model cannot be converted. Those that are honoured are "
            f"{', '.join(_DEFAULTS)}."
        )
    for key in kwargs.keys() & _KINDS.keys():
        if kwargs[key] is not None or _DEFAULTS[key] is not None:
            _KINDS[key].check("vision_cfg: timm_model_kwargs", key, kwargs[key])
    fields = {**_DEFAULTS, **TIMM_MODELS[name], **kwargs}
    # Without a projection of its own, open_clip has timm build the model with its pooling.
    if not has_own_projection(cfg):
        fields["global_pool"] = cfg["timm_pool"] or ""
    return fields


def _of_timm(field: str) -> Callable[[Cfg], Any]:
    return lambda cfg: _side_of_square(timm_cfg(cfg)[field])


def _side_of_square(size: Any) -> Any:
    """One number for a list of two equal ones."""
    return size[0] if isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1] else size


def _pool_type(cfg: Cfg) -> str:
    built, pool = timm_cfg(cfg)["global_pool"], cfg["timm_pool"]
    pool_type = pool or built
    if pool_type not in POOLS:
        raise ConversionError(f"vision_cfg: timm_pool must be one of {', '.join(POOLS)}, got {pool_type!r}.")
    if pool_type == "map" and built != "map":
        raise ConversionError(
            f"vision_cfg: timm_pool 'map' of a model of timm that is built with {built!r} has no attention pooling to "
            "go by; timm cannot build it either."
        )
    return pool_type


def _use_fc_norm(cfg: Cfg) -> bool:
    fields = timm_cfg(cfg)
    return fields["global_pool"] == "avg" if fields["fc_norm"] is None else fields["fc_norm"]


def _act(cfg: Cfg) -> str:
    act = timm_cfg(cfg)["act_layer"]
    if act not in ACTIVATIONS:
        known = ", ".join(repr(name) for name in ACTIVATIONS)
        raise ConversionError(f"vision_cfg: timm_model_kwargs: act_layer must be one of {known}, got {act!r}.")
    return ACTIVATIONS[act]


def _width(ratio: str) -> Callable[[Cfg], int]:
    def width(cfg: Cfg) -> int:
        fields = timm_cfg(cfg)
        return int(fields["embed_dim"] * (fields[ratio] or fields["mlp_ratio"]))

    return width


_SAME = {
    "patch_size": "patch_size",
    "hidden_size": "embed_dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "qkv_bias": "qkv_bias",
    "qk_norm": "qk_norm",
    "layer_scale_init_value": "init_values",
    "use_class_token": "class_token",
    "num_register_tokens": "reg_tokens",
    "position_grid_size": "pos_embed_grid_size",
    "position_interpolation": "pos_embed_interp_mode",
    "keep_position_aspect_ratio": "pos_embed_ar_preserving",
    "pool_include_prefix": "pool_include_prefix",
    "attention_dropout": "attn_drop_rate",
    "embedding_dropout": "pos_drop_rate",
    "hidden_dropout": "proj_drop_rate",
}


def _timm_arguments(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of timm's `NaFlexVitCfg` of our `config`, but those about pooling."""
    ratio = _ratio(config.intermediate_size, config.hidden_size)
    pooler_ratio = _ratio(config.pooler_intermediate_size, config.hidden_size)
    return {
        **{theirs: plain(getattr(config, ours)) for ours, theirs in _SAME.items()},
        "pos_embed_grid_size": list(height_and_width(config.position_grid_size)),
        "patch_size": plain(_side_of_square(config.patch_size)),
        "mlp_ratio": ratio,
        "attn_pool_mlp_ratio": None if pooler_ratio == ratio or config.pool_type != "map" else pooler_ratio,
        "swiglu_mlp": config.block_type == "swiglu",
        "act_layer": next((theirs for theirs, ours in ACTIVATIONS.items() if ours == config.hidden_act), None),
        "fc_norm": config.use_fc_norm,
    }


def _ratio(size: int, hidden_size: int) -> float:
    """The number that open_clip's configuration files state, or the nearest, for which timm makes a width."""
    known = [model.get("mlp_ratio", _DEFAULTS["mlp_ratio"]) for model in TIMM_MODELS.values()]
    exact = size / hidden_size
    rounded = (round(exact, digits) for digits in range(1, 16))
    candidates = (*known, *rounded, exact, exact + 1 / (2 * hidden_size))
    return next(ratio for ratio in candidates if int(hidden_size * ratio) == size)


def _as_timm_model(config: PreTrainedConfig) -> tuple[str, dict[str, Any] | None]:
    """timm's model that is nearest to our `config`, and the arguments that make it that."""
    wanted = _timm_arguments(config)
    best: tuple[str, dict[str, Any]] | None = None
    for name, model in TIMM_MODELS.items():
        fields = {**_DEFAULTS, **model}
        # The norm's place follows from the pooling that timm builds the model with.
        built = fields["global_pool"] if config.proj_type in ("linear", "mlp") else config.pool_type
        if config.pool_type == "map" and built != "map":
            continue
        own = {**fields, "fc_norm": built == "avg" if fields["fc_norm"] is None else fields["fc_norm"]}
        if own["act_layer"] is None:
            own["act_layer"] = next(iter(ACTIVATIONS))
        kwargs = {key: value for key, value in wanted.items() if plain(value) != plain(own[key])}
        if best is None or len(kwargs) < len(best[1]):
            best = name, kwargs
    name, kwargs = best if best is not None else (next(iter(TIMM_MODELS)), wanted)
    return name, kwargs or None


_CONFIG = ConfigTable(
    name="vision_cfg",
    config_class=NaFlexVitConfig,
    selects=_selects,
    defaults=VISION_DEFAULTS,
    fields={
        **{ours: _of_timm(theirs) for ours, theirs in _SAME.items()},
        "intermediate_size": _width("mlp_ratio"),
        "pooler_intermediate_size": _width("attn_pool_mlp_ratio"),
        "hidden_act": _act,
        "block_type": lambda cfg: "swiglu" if timm_cfg(cfg)["swiglu_mlp"] else "mlp",
        "pool_type": _pool_type,
        "use_fc_norm": _use_fc_norm,
        "image_size": "image_size",
        "max_num_patches": lambda cfg: cfg["image_seq_len"] or MAX_NUM_PATCHES,
        "projection_dim": "embed_dim",
        "proj_type": proj_type,
        "proj_bias": proj_bias,
        "patch_dropout": "patch_dropout",
        "projection_dropout": lambda cfg: cfg["timm_drop"] if has_own_projection(cfg) else 0.0,
        "drop_path_rate": lambda cfg: cfg["timm_drop_path"] or 0.0,
    },
    without_effect={
        **dict.fromkeys(
            VISION_DEFAULTS.keys()
            - TIMM_DEFAULTS.keys()
            - {"image_size", "patch_dropout", "image_seq_len", "timm_model_kwargs"},
            "open_clip does not hand it to timm's model",
        ),
        **TOKENS_RETURNED,
        "timm_model_pretrained": "all weights come from the checkpoint",
    },
    inverse={
        "timm_model_name": lambda config: _as_timm_model(config)[0],
        "timm_model_kwargs": lambda config: _as_timm_model(config)[1],
        "image_seq_len": lambda config: config.max_num_patches,
        "timm_pool": lambda config: config.pool_type,
        "timm_proj": lambda config: config.proj_type,
        "timm_proj_bias": lambda config: config.proj_bias,
        "timm_drop": lambda config: config.projection_dropout,
        "timm_drop_path": lambda config: config.drop_path_rate or None,
    },
)

# timm's `EvaBlock`, with a gated MLP; its keys have no bias.
_GATED_BLOCK: Table = (
    Rename("norm1.{p}", "layer_norm1.{p}"),
    SplitQKV("attn.qkv.weight", "self_attn.{qkv}_proj.weight"),
    Rename("attn.q_bias", "self_attn.q_proj.bias"),
    Rename("attn.v_bias", "self_attn.v_proj.bias"),
    Rename("attn.q_norm.{p}", "self_attn.q_norm.{p}"),
    Rename("attn.k_norm.{p}", "self_attn.k_norm.{p}"),
    Rename("attn.proj.{p}", "self_attn.out_proj.{p}"),
    Rename("gamma_1", "layer_scale1.gamma"),
    Rename("norm2.{p}", "layer_norm2.{p}"),
    SplitGateFirst("mlp.fc1.{p}", "mlp.{gated}.{p}"),
    Rename("mlp.fc2.{p}", "mlp.fc2.{p}"),
    Rename("gamma_2", "layer_scale2.gamma"),
)
_BLOCKS = {"mlp": BLOCK, "swiglu": _GATED_BLOCK}


def _rename_table(config: PreTrainedConfig) -> Table:
    trunk = (
        Rename("embeds.cls_token", "embeddings.class_embedding"),
        Rename("embeds.reg_token", "embeddings.register_embedding"),
        Rename("embeds.pos_embed", "embeddings.position_embedding"),
        Rename("embeds.proj.{p}", "embeddings.patch_embedding.{p}"),
        *under("blocks.{n}.", "encoder.layers.{n}.", _BLOCKS[config.block_type]),
        Rename("norm.{p}", "post_layernorm.{p}"),
        *under("attn_pool.", "pooler.", POOLER),
        Rename("fc_norm.{p}", "fc_norm.{p}"),
    )
    return (*under("trunk.", "", trunk), *PROJECTION)


def _fit(tensors: Tensors, changes: Changes, prefix: str, config: PreTrainedConfig):
    project_by_classifier(tensors, changes, prefix)


_INTERMEDIATES = (
    Intermediate("patches", "embeddings.patch_embedding", "trunk.embeds.proj"),
    Intermediate("embeddings", "embeddings", "trunk.embeds"),
    *LAYER_INTERMEDIATES,
)

NAFLEX_VIT = TowerConversion(_CONFIG, _rename_table, _fit, _INTERMEDIATES)
