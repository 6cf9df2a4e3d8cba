"""SigLIP's vision transformer: fields, tensor names, resizing (open_clip: `TimmModel` in `timm_model.py` around timm's
`VisionTransformer`, of the models named `vit_*_siglip_*` in timm's `vision_transformer.py`)."""

import math
from collections.abc import Callable
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from ...configuration.configuration_common import height_and_width
from ...configuration.configuration_siglip_vit import SiglipVitConfig
from ...modeling.modeling_siglip_vit import resize_position_embedding
from ..common import ConversionError
from ..mapping.config_table import Cfg, ConfigTable
from ..mapping.state_dict import Rename, SplitKV, SplitQKV, Table, under
from .base import (
    IMAGE_SEQ_LEN,
    TIMM_DEFAULTS,
    TIMM_MODEL_KWARGS,
    TOKENS_RETURNED,
    VISION_DEFAULTS,
    Changes,
    Intermediate,
    Tensors,
    TowerConversion,
)


_SIZES = {
    "base": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    "so400m": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16},
    "giantopt": {"hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 40, "num_attention_heads": 16},
}
# Size, patch size, activation, image sizes, and those of models with average pooling alone.
_VARIANTS = (
    ("base", 32, "gelu_pytorch_tanh", (256,), ()),
    ("base", 16, "gelu", (224, 256, 384, 512), ()),
    ("large", 16, "gelu", (256, 384), ()),
    ("large", 16, "gelu_pytorch_tanh", (512,), ()),
    ("so400m", 14, "gelu", (224, 378, 384), (448, 896)),
    ("so400m", 16, "gelu_pytorch_tanh", (256, 384, 512), ()),
    ("giantopt", 16, "gelu_pytorch_tanh", (256, 384), ()),
)
# timm's name -> the fields that it stands for; `pool_type` is the model's default.
TIMM_MODELS: dict[str, dict[str, Any]] = {
    f"vit_{size}_patch{patch_size}_siglip_{gap}{image_size}": {
        **_SIZES[size],
        "patch_size": patch_size,
        "hidden_act": act,
        "image_size": image_size,
        "pool_type": "avg" if gap else "map",
    }
    for size, patch_size, act, image_sizes, gap_sizes in _VARIANTS
    for gap, sizes in (("", image_sizes), ("gap_", image_sizes + gap_sizes))
    for image_size in sizes
}
_POOLS = {"map": "map", "avg": "avg", "": "none"}


def _timm_model(name: str | None) -> dict[str, Any]:
    """The fields of timm's model; a name may end in the tag of its weights, as in `"...siglip_224.webli"`."""
    return TIMM_MODELS.get((name or "").split(".")[0], {})


def _selects(cfg: Cfg) -> bool:
    pool = cfg.get("timm_pool", TIMM_DEFAULTS["timm_pool"]) or ""
    return bool(_timm_model(cfg.get("timm_model_name"))) and pool in _POOLS


def _of_timm(field: str) -> Callable[[Cfg], Any]:
    return lambda cfg: _timm_model(cfg["timm_model_name"]).get(field)


def has_own_projection(cfg: Cfg) -> bool:
    """Whether open_clip projects behind timm's model, which then keeps its norm where it was built."""
    return cfg["timm_proj"] in ("linear", "mlp")


def _pool_type(cfg: Cfg) -> str:
    if has_own_projection(cfg) and not cfg["timm_pool"]:
        return _of_timm("pool_type")(cfg)
    return _POOLS[cfg["timm_pool"] or ""]


def _use_fc_norm(cfg: Cfg) -> bool:
    built_for_avg = _of_timm("pool_type")(cfg) == "avg"
    return _pool_type(cfg) == "avg" and not built_for_avg and not has_own_projection(cfg)


def proj_type(cfg: Cfg) -> str:
    # Without a value, timm's classifier is the projection.
    return cfg["timm_proj"] or "linear"


def proj_bias(cfg: Cfg) -> bool:
    return not cfg["timm_proj"] or (has_own_projection(cfg) and cfg["timm_proj_bias"])


_CONFIG = ConfigTable(
    name="vision_cfg",
    config_class=SiglipVitConfig,
    selects=_selects,
    defaults=VISION_DEFAULTS,
    fields={
        **{field: _of_timm(field) for field in (*_SIZES["base"], "patch_size", "hidden_act")},
        "projection_dim": "embed_dim",
        "image_size": "image_size",
        "pool_type": _pool_type,
        "use_fc_norm": _use_fc_norm,
        "proj_type": proj_type,
        "proj_bias": proj_bias,
        "patch_dropout": "patch_dropout",
        "projection_dropout": lambda cfg: cfg["timm_drop"] if has_own_projection(cfg) else 0.0,
        "drop_path_rate": lambda cfg: cfg["timm_drop_path"] or 0.0,
    },
    without_effect={
        **dict.fromkeys(
            VISION_DEFAULTS.keys() - TIMM_DEFAULTS.keys() - {"image_size", "patch_dropout", "timm_model_kwargs"},
            "open_clip does not hand it to timm's model",
        ),
        **TOKENS_RETURNED,
        **IMAGE_SEQ_LEN,
        "timm_model_pretrained": "all weights come from the checkpoint",
    },
    refused=TIMM_MODEL_KWARGS,
    inverse={
        "timm_model_name": lambda config: _timm_name(config),
        "timm_pool": lambda config: next((p for p, name in _POOLS.items() if name == config.pool_type), None),
        "timm_proj": lambda config: config.proj_type,
        "timm_proj_bias": lambda config: config.proj_bias,
        "timm_drop": lambda config: config.projection_dropout,
        "timm_drop_path": lambda config: config.drop_path_rate or None,
    },
)


def _timm_name(config: PreTrainedConfig) -> str:
    """timm's name of the model that `config` describes."""
    # timm's models have no norm behind the mean, but those without "gap" in their names, asked for a mean.
    built_for = "avg" if config.pool_type == "avg" and not config.use_fc_norm else "map"
    image_size = height_and_width(config.image_size)
    for name, fields in TIMM_MODELS.items():
        same = {
            **{field: getattr(config, field) for field in fields},
            "pool_type": built_for,
            "patch_size": config.patch_size if isinstance(config.patch_size, int) else None,
            "image_size": image_size[0] if image_size[0] == image_size[1] else None,
        }
        if fields == same:
            return name
    raise ConversionError(
        f"timm has no SigLIP model of hidden_size {config.hidden_size}, {config.num_hidden_layers} layers, patch_size "
        f"{config.patch_size}, hidden_act {config.hidden_act!r} and image_size {config.image_size}, so that open_clip "
        "cannot name the vision tower."
    )


# timm's `Block`.
BLOCK: Table = (
    Rename("norm1.{p}", "layer_norm1.{p}"),
    SplitQKV("attn.qkv.{p}", "self_attn.{qkv}_proj.{p}"),
    Rename("attn.q_norm.{p}", "self_attn.q_norm.{p}"),
    Rename("attn.k_norm.{p}", "self_attn.k_norm.{p}"),
    Rename("attn.proj.{p}", "self_attn.out_proj.{p}"),
    Rename("ls1.gamma", "layer_scale1.gamma"),
    Rename("norm2.{p}", "layer_norm2.{p}"),
    Rename("mlp.fc1.{p}", "mlp.fc1.{p}"),
    Rename("mlp.fc2.{p}", "mlp.fc2.{p}"),
    Rename("ls2.gamma", "layer_scale2.gamma"),
)
# timm's `AttentionPoolLatent`.
POOLER: Table = (
    Rename("latent", "latent"),
    Rename("q.{p}", "attention.q_proj.{p}"),
    SplitKV("kv.{p}", "attention.{kv}_proj.{p}"),
    Rename("proj.{p}", "attention.out_proj.{p}"),
    Rename("norm.{p}", "layer_norm.{p}"),
    Rename("mlp.fc1.{p}", "mlp.fc1.{p}"),
    Rename("mlp.fc2.{p}", "mlp.fc2.{p}"),
)
# timm's `VisionTransformer` without a classifier.
TIMM_VIT: Table = (
    Rename("cls_token", "embeddings.class_embedding"),
    Rename("reg_token", "embeddings.register_embedding"),
    Rename("pos_embed", "embeddings.position_embedding"),
    Rename("patch_embed.proj.{p}", "embeddings.patch_embedding.{p}"),
    Rename("norm_pre.{p}", "pre_layernorm.{p}"),
    *under("blocks.{n}.", "encoder.layers.{n}.", BLOCK),
    Rename("norm.{p}", "post_layernorm.{p}"),
    *under("attn_pool.", "pooler.", POOLER),
    Rename("fc_norm.{p}", "fc_norm.{p}"),
)
# The head of open_clip's `TimmModel`.
PROJECTION: Table = (
    Rename("head.proj.{p}", "projection.{p}"),
    Rename("head.mlp.fc1.{p}", "projection.fc1.{p}"),
    Rename("head.mlp.fc2.{p}", "projection.fc2.{p}"),
)
_SIGLIP: Table = (*under("trunk.", "", TIMM_VIT), *PROJECTION)


def project_by_classifier(tensors: Tensors, changes: Changes, prefix: str):
    """Rename timm's classifier, where there is one, to the projection that it stands for."""
    for name in ("weight", "bias"):
        classifier, projection = f"{prefix}trunk.head.{name}", f"{prefix}head.proj.{name}"
        if classifier in tensors:
            tensors[projection] = tensors.pop(classifier)
            changes[projection] = f"was {classifier}, timm's classifier as the projection"


def _fit(tensors: Tensors, changes: Changes, prefix: str, config: PreTrainedConfig):
    project_by_classifier(tensors, changes, prefix)
    key, new_grid = f"{prefix}trunk.pos_embed", config.grid_size
    table = tensors.get(key)
    if table is None or table.ndim != 3:
        return
    positions = table.shape[1]
    # All of timm's SigLIP models have square grids. `set_input_size`, which open_clip calls with `force_image_size`,
    # resizes to another grid of as many patches too.
    old_grid = (math.isqrt(positions),) * 2
    if old_grid == new_grid or (math.prod(old_grid) != positions and math.prod(new_grid) == positions):
        return
    if math.prod(old_grid) != positions:
        raise ConversionError(
            f"{key} has {positions} positions, the model has {new_grid[0]} x {new_grid[1]}, and only square grids can "
            "be resized: correct image_size in the configuration."
        )
    tensors[key] = resize_position_embedding(table.float(), old_grid, new_grid, num_prefix_tokens=0)
    changes[key] = f"resized from a grid of {old_grid[0]} x {old_grid[1]} patches to {new_grid[0]} x {new_grid[1]}"


_LAYER_PARTS = {
    " norm 1": ("layer_norm1", "norm1"),
    " attention": ("self_attn", "attn"),
    " norm 2": ("layer_norm2", "norm2"),
    " MLP": ("mlp", "mlp"),
}
# Of timm's layers, and behind them.
LAYER_INTERMEDIATES = (
    *(
        Intermediate(f"layer {{n}}{part}", f"encoder.layers.{{n}}.{ours}", f"trunk.blocks.{{n}}.{theirs}")
        for part, (ours, theirs) in _LAYER_PARTS.items()
    ),
    Intermediate("layer {n}", "encoder.layers.{n}", "trunk.blocks.{n}"),
    Intermediate("post-norm", "post_layernorm", "trunk.norm"),
    Intermediate("attention pooler", "pooler", "trunk.attn_pool"),
    Intermediate("norm behind the mean", "fc_norm", "trunk.fc_norm"),
)
_INTERMEDIATES = (
    Intermediate("patches", "embeddings.patch_embedding", "trunk.patch_embed.proj"),
    Intermediate("embeddings", "patch_dropout", "trunk.patch_drop"),
    *LAYER_INTERMEDIATES,
)

SIGLIP_VIT = TowerConversion(_CONFIG, lambda config: _SIGLIP, _fit, _INTERMEDIATES)
