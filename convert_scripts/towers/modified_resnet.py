"""CLIP's ResNet: fields and tensor names (open_clip: `CLIPVisionCfg`, `ModifiedResNet` in `modified_resnet.py`)."""

from transformers.configuration_utils import PreTrainedConfig

from ...configuration.configuration_modified_resnet import ModifiedResNetConfig
from ..common import ConversionError
from ..mapping.config_table import Cfg, ConfigTable
from ..mapping.state_dict import Rename, Table, under
from .base import (
    IMAGE_SEQ_LEN,
    TIMM_DEFAULTS,
    TOKENS_RETURNED,
    VISION_DEFAULTS,
    Changes,
    Intermediate,
    Tensors,
    TowerConversion,
)


def _image_size(cfg: Cfg) -> int:
    if not isinstance(cfg["image_size"], int):
        raise ConversionError(
            f"image_size must be one number for a ResNet, got {cfg['image_size']}; open_clip cannot build it either."
        )
    return cfg["image_size"]


_OF_TRANSFORMERS = VISION_DEFAULTS.keys() - {"image_size", "width", "layers", "head_width"}

_CONFIG = ConfigTable(
    name="vision_cfg",
    config_class=ModifiedResNetConfig,
    selects=lambda cfg: not cfg.get("timm_model_name") and isinstance(cfg.get("layers"), list | tuple),
    defaults=VISION_DEFAULTS,
    fields={
        "projection_dim": "embed_dim",
        "image_size": _image_size,
        "embedding_size": "width",
        "depths": "layers",
        "num_attention_heads": lambda cfg: cfg["width"] * 32 // cfg["head_width"],
    },
    without_effect={
        **dict.fromkeys(_OF_TRANSFORMERS, "read for vision transformers only: this tower is built of ReLUs"),
        **TOKENS_RETURNED,
        **IMAGE_SEQ_LEN,
        **dict.fromkeys((*TIMM_DEFAULTS, "timm_model_kwargs"), "read for timm towers only"),
    },
    inverse={
        "image_size": lambda config: config.image_size,
        "head_width": lambda config: config.token_dim // config.num_attention_heads,
    },
)


def _conv_layer(number: int) -> Table:
    """A convolution and its batch norm, whose numbers of batches and running statistics go along."""
    return (
        Rename(f"conv{number}.weight", f"conv{number}.convolution.weight"),
        Rename(f"bn{number}.{{rest}}", f"conv{number}.normalization.{{rest}}"),
    )


_BOTTLENECK: Table = (
    *_conv_layer(1),
    *_conv_layer(2),
    Rename("conv3.weight", "conv3.weight"),
    Rename("bn3.{rest}", "normalization.{rest}"),
    Rename("downsample.0.weight", "shortcut.convolution.weight"),
    Rename("downsample.1.{rest}", "shortcut.normalization.{rest}"),
)

_STAGES = [under(f"layer{i + 1}.{{n}}.", f"encoder.stages.{i}.layers.{{n}}.", _BOTTLENECK) for i in range(4)]

_RESNET: Table = (
    *under("", "embeddings.", (*_conv_layer(1), *_conv_layer(2), *_conv_layer(3))),
    *sum(_STAGES, ()),
    Rename("attnpool.positional_embedding", "attn_pool.position_embedding"),
    *(Rename(f"attnpool.{x}_proj.{{p}}", f"attn_pool.attention.{x}_proj.{{p}}") for x in "qkv"),
    Rename("attnpool.c_proj.{p}", "attn_pool.attention.out_proj.{p}"),
)


def _fit(tensors: Tensors, changes: Changes, prefix: str, config: PreTrainedConfig):
    # open_clip resizes the positions of its vision transformers alone (`resize_pos_embed` in `model.py`).
    key, (height, width) = f"{prefix}attnpool.positional_embedding", config.grid_size
    if key in tensors and tensors[key].ndim == 2 and len(tensors[key]) != 1 + height * width:
        side = round((len(tensors[key]) - 1) ** 0.5)
        raise ConversionError(
            f"{key} has {len(tensors[key]) - 1} positions, the configuration has {height} x {width} (image_size "
            f"{config.image_size}), and open_clip does not resize those of a ResNet. Correct image_size, to "
            f"{32 * side} for this checkpoint; other sizes of images are taken by the converted model with "
            "interpolate_pos_encoding=True."
        )


_INTERMEDIATES = (
    Intermediate("embeddings", "embeddings", "avgpool"),
    *(
        Intermediate(f"stage {i} layer {{n}}", f"encoder.stages.{i}.layers.{{n}}", f"layer{i + 1}.{{n}}")
        for i in range(4)
    ),
)

MODIFIED_RESNET = TowerConversion(_CONFIG, lambda config: _RESNET, _fit, _INTERMEDIATES)
