"""Towers that timm builds: fields, tensor names, resizing (open_clip: `CLIPVisionCfg`, `TimmModel`)."""

from collections.abc import Collection

from transformers.configuration_utils import PreTrainedConfig

from ...configuration.configuration_common import height_and_width
from ...configuration.configuration_timm_vision import TimmVisionConfig
from ...modeling.modeling_timm_factory import TimmArchitecture, describe_architecture, fuse_tensors, resize_to_input
from ..common import ConversionError, argument
from ..mapping.config_table import Cfg, ConfigTable
from ..mapping.state_dict import Rename, Table
from .base import (
    IMAGE_SEQ_LEN,
    TIMM_MODEL_KWARGS,
    TOKENS_RETURNED,
    VISION_DEFAULTS,
    Changes,
    Intermediate,
    Tensors,
    TowerConversion,
)


_READ = {"image_size", "patch_dropout", *(name for name in VISION_DEFAULTS if name.startswith("timm_"))}


def _architecture(cfg: Cfg) -> TimmArchitecture:
    try:
        return describe_architecture(cfg["timm_model_name"])
    except ImportError as error:
        raise ConversionError(
            f"The image tower {cfg['timm_model_name']} is a model of timm, which is not installed: `pip install timm`."
        ) from error


def _model_args(cfg: Cfg) -> dict:
    # open_clip passes a rate of stochastic depth of 0 on, and not a patch dropout of 0.
    args = {"drop_path_rate": cfg["timm_drop_path"], "patch_drop_rate": cfg["patch_dropout"] or None}
    return {name: value for name, value in args.items() if value is not None}


def _input_size(cfg: Cfg) -> int | list[int] | None:
    """`image_size` where timm's model is made for another size and has to be told.

    open_clip does so for `force_image_size` alone, and otherwise has a model that fails on its own images.
    """
    architecture = _architecture(cfg)
    is_own = height_and_width(cfg["image_size"]) == architecture.input_size
    return None if is_own or not architecture.fixed_input_size else cfg["image_size"]


_CONFIG = ConfigTable(
    name="vision_cfg",
    config_class=TimmVisionConfig,
    selects=lambda cfg: cfg.get("timm_model_name"),
    defaults=VISION_DEFAULTS,
    fields={
        "architecture": "timm_model_name",
        "model_args": _model_args,
        "hidden_size": lambda cfg: _architecture(cfg).hidden_size,
        "image_size": "image_size",
        "input_size": _input_size,
        "projection_dim": "embed_dim",
        "pool_type": "timm_pool",
        "proj_type": lambda cfg: cfg["timm_proj"] or None,
        "proj_bias": "timm_proj_bias",
        "proj_dropout": "timm_drop",
    },
    without_effect={
        **TOKENS_RETURNED,
        **IMAGE_SEQ_LEN,
        "timm_model_pretrained": "the weights are the checkpoint's",
        **dict.fromkeys(VISION_DEFAULTS.keys() - _READ, "read for open_clip's own towers only"),
    },
    refused=TIMM_MODEL_KWARGS,
    inverse={
        "timm_drop_path": lambda config: (config.model_args or {}).get("drop_path_rate"),
        "patch_dropout": lambda config: (config.model_args or {}).get("patch_drop_rate", 0.0),
        "timm_proj": lambda config: config.proj_type,
    },
)

_TIMM: Table = (Rename("trunk.{rest}", "timm_model.{rest}"), Rename("head.{rest}", "head.{rest}"))


def is_fused(keys: Collection[str]) -> bool:
    """Whether the branches of a checkpoint were fused for inference."""
    return any(".reparam_conv." in key for key in keys)


def set_reparameterized(config: PreTrainedConfig):
    """Ask for the fused form of the image tower of a dual model. Raise `ConversionError` where it is not timm's."""
    if config.vision_config.model_type != TimmVisionConfig.model_type:
        raise ConversionError(
            f"{argument('reparameterize')} fuses the branches of image towers of timm, such as MobileCLIP's; this "
            f"image tower is a {config.vision_config.model_type}, which has none. Leave it out."
        )
    config.vision_config.reparameterized = True


def _adapt(config: PreTrainedConfig, keys: Collection[str]):
    config.reparameterized = config.reparameterized or is_fused(keys)


def _fit(tensors: Tensors, changes: Changes, prefix: str, config: PreTrainedConfig):
    trunk = f"{prefix}trunk."
    own = {key.removeprefix(trunk): tensor for key, tensor in tensors.items() if key.startswith(trunk)}
    for name, tensor in resize_to_input(config, own).items():
        changes[trunk + name] = f"resized from {tuple(own[name].shape)} to {tuple(tensor.shape)}"
        own[name] = tensors[trunk + name] = tensor
    if config.reparameterized and not is_fused(tensors):
        try:
            fused = fuse_tensors(config, own)
        except ValueError as error:
            raise ConversionError(str(error)) from error
        for name in own.keys() - fused.keys():
            del tensors[trunk + name]
        tensors |= {trunk + name: tensor for name, tensor in fused.items()}
        changes[f"{trunk}*"] = f"{len(own)} tensors fused to {len(fused)} for inference"


# timm's names of the parts of its models, in the order in which they are computed.
_PARTS = ("stem", "patch_embed", "norm_pre", "blocks.{n}", "layers.{n}", "stages.{n}", "norm", "attn_pool", "fc_norm")
_INTERMEDIATES = (
    *(Intermediate(part.replace(".", " "), f"timm_model.{part}", f"trunk.{part}") for part in _PARTS),
    Intermediate("head", "head", "head"),
)

TIMM_VISION = TowerConversion(_CONFIG, lambda config: _TIMM, _fit, _INTERMEDIATES, _adapt)
