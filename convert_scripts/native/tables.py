"""transformers' own dual models and ours, as data: their common fields and tensor names.

Each `NativePart` is read in both directions. Towards transformers, its requirements are conditions on our model, and
its tables translate it; from there, the requirements are settings of our model.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from transformers import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    MetaClip2Config,
    MetaClip2TextConfig,
    MetaClip2VisionConfig,
    Siglip2Config,
    Siglip2TextConfig,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipTextConfig,
    SiglipVisionConfig,
)
from transformers.configuration_utils import PreTrainedConfig

from ...configuration.configuration_common import height_and_width
from ...configuration.configuration_naflex_vit import NaFlexVitConfig
from ...configuration.configuration_siglip_vit import SiglipVitConfig
from ...configuration.configuration_text import OpenClipTextConfig
from ...configuration.configuration_vit import OpenClipVitConfig
from ..mapping.config import CLIP_VOCAB_SIZE
from ..mapping.config_table import Cfg, ConfigTable
from ..mapping.state_dict import Operation, Rename, SplitQKV, Squeeze, Table, ToSquare, Unsqueeze, under
from ..towers.base import BLOCK_OPTIONS


@dataclass(frozen=True)
class Requirement:
    """A field of our configuration that a model of transformers has no choice of.

    Args:
        field: our field.
        allowed: its values, the first of which is the one that a model of transformers has; or a function of our
            configuration.
        reason: behaviour of the model of transformers.
        needed: `allowed` in words, where it is a function.
    """

    field: str
    allowed: tuple | Callable[[PreTrainedConfig], bool]
    reason: str
    needed: str = ""

    def is_met(self, config: PreTrainedConfig) -> bool:
        if callable(self.allowed):
            return self.allowed(config)
        value = getattr(config, self.field, None)
        return any(value == choice and type(value) is type(choice) for choice in self.allowed)

    def __str__(self) -> str:
        choices = () if callable(self.allowed) else self.allowed
        return f"needed {self.needed or ' or '.join(map(repr, choices))}: {self.reason}"


@dataclass(frozen=True)
class NativePart:
    """A tower of transformers and ours, or the model around the towers.

    Args:
        config_class: transformers' configuration.
        config_table: its fields and ours.
        requirements: further conditions on ours.
        rename_table: from our configuration to transformers' names and ours, of the whole model.
        training_only: fields of ours that transformers lacks and that change nothing but training -> their neutral
            value.
    """

    config_class: type[PreTrainedConfig]
    config_table: ConfigTable
    requirements: tuple[Requirement, ...]
    rename_table: Callable[[PreTrainedConfig], Table]
    training_only: Cfg

    def unmet(self, config: PreTrainedConfig) -> list[Requirement]:
        """The requirements that our `config` does not meet; for another kind of tower, the first alone."""
        kind = self.requirements[0]
        if kind.field == "model_type" and not kind.is_met(config):
            return [kind]
        return [requirement for requirement in self.requirements if not requirement.is_met(config)]

    def our_fields(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Fields of our configuration for transformers' `config`."""
        fixed = {row.field: row.allowed[0] for row in self.requirements if isinstance(row.allowed, tuple)}
        theirs = {name: getattr(config, name) for name in self.config_table.defaults}
        return {**fixed, **self.config_table.translate(theirs)}


@dataclass(frozen=True)
class NativeTarget:
    """A dual model of transformers.

    Args:
        name: its class in transformers.
        vision: its vision tower.
        text: its text tower.
        model: the model around them.
        vision_class: class of the vision tower alone, projection included.
        text_class: class of the text tower alone, projection included.
        processor_class: its processor in transformers.
        image_processor_class: its image processor.
        tokenizer_outputs: outputs of its tokenizer.
        is_siglip: it has a bias, and a temperature, as vectors of one, and no projection of images.
    """

    name: str
    vision: NativePart
    text: NativePart
    model: NativePart
    vision_class: str
    text_class: str
    processor_class: str = "CLIPProcessor"
    image_processor_class: str = "CLIPImageProcessor"
    tokenizer_outputs: tuple[str, ...] = ("input_ids", "attention_mask")
    is_siglip: bool = False


def _defaults(config_class: type[PreTrainedConfig], names: tuple[str, ...]) -> Cfg:
    given = {field.name: field.default for field in fields(config_class)}
    return {name: given[name] for name in names}


_STACK = {
    name: name
    for name in (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
        "layer_norm_eps",
        "attention_dropout",
    )
}
_IMAGE = {name: name for name in ("num_channels", "image_size", "patch_size")}
_TEXT_SIZES = {name: name for name in ("vocab_size", "max_position_embeddings")}

_PLAIN_BLOCK = (
    Requirement("norm_layer", ("layer_norm",), "its layer norms compute in the dtype of their input"),
    Requirement("layer_scale_init_value", (None,), "its layers have no LayerScale"),
)
_NO_BLOCK_OPTIONS = tuple(
    Requirement(name, (False,), "its layers have no such norm or scale") for name in BLOCK_OPTIONS
)


def _is_square(name: str) -> Requirement:
    def is_square(config: PreTrainedConfig) -> bool:
        value = getattr(config, name)
        return isinstance(value, int) or value[0] == value[1]

    return Requirement(name, is_square, "it counts patches along one side", "a square")


def _side(name: str) -> Callable[[PreTrainedConfig], int]:
    return lambda config: value if isinstance(value := getattr(config, name), int) else value[0]


def _part(
    name: str,
    native: type[PreTrainedConfig],
    ours: type[PreTrainedConfig],
    shared: dict[str, str],
    requirements: tuple[Requirement, ...],
    rename_table: Callable[[PreTrainedConfig], Table],
    computed: dict[str, Callable[[Cfg], Any]] | None = None,
    inverse: dict[str, Callable[[PreTrainedConfig], Any]] | None = None,
    training_only: Cfg | None = None,
) -> NativePart:
    names = tuple(dict.fromkeys((*shared.values(), *(inverse or {}))))
    table = ConfigTable(
        name=name,
        config_class=ours,
        defaults=_defaults(native, names),
        fields={**shared, **(computed or {})},
        inverse=inverse or {},
    )
    kind = Requirement("model_type", (ours.model_type,), f"it is built like {ours.__name__[:-6]}Model")
    return NativePart(native, table, (kind, *requirements), rename_table, training_only or {})


# transformers' CLIP and MetaCLIP 2.


def _clip_vision(native: type[PreTrainedConfig]) -> NativePart:
    table: Table = (
        *under(
            "vision_model.",
            "vision_model.",
            (
                Rename("embeddings.class_embedding", "embeddings.class_embedding"),
                Rename("embeddings.patch_embedding.weight", "embeddings.patch_embedding.weight"),
                Rename("embeddings.position_embedding.weight", "embeddings.position_embedding"),
                Rename("pre_layrnorm.{p}", "pre_layernorm.{p}"),  # transformers' spelling
                Rename("encoder.layers.{rest}", "encoder.layers.{rest}"),
                Rename("post_layernorm.{p}", "post_layernorm.{p}"),
            ),
        ),
        Rename("visual_projection.weight", "vision_model.projection.weight"),
    )
    requirements = (
        Requirement("pool_type", ("tok",), "it pools the class token"),
        Requirement("attentional_pool", (False,), "it pools the class token"),
        Requirement("use_pre_layer_norm", (True,), "it has a layer norm before its layers"),
        _is_square("image_size"),
        _is_square("patch_size"),
        *_PLAIN_BLOCK,
        *_NO_BLOCK_OPTIONS,
    )
    return _part(
        "vision_config",
        native,
        OpenClipVitConfig,
        {**_STACK, **_IMAGE, "projection_dim": "projection_dim"},
        requirements,
        lambda config: table,
        inverse={"image_size": _side("image_size"), "patch_size": _side("patch_size")},
        training_only={"patch_dropout": 0.0, "drop_path_rate": 0.0},
    )


def _text_table(projection: Table) -> Table:
    return (
        *under(
            "text_model.",
            "text_model.",
            (
                Rename("embeddings.token_embedding.weight", "embeddings.token_embedding.weight"),
                Rename("embeddings.position_embedding.weight", "embeddings.position_embedding.weight"),
                Rename("encoder.layers.{rest}", "encoder.layers.{rest}"),
                Rename("final_layer_norm.{p}", "final_layer_norm.{p}"),
            ),
        ),
        *projection,
    )


_LINEAR_PROJECTION = (
    Requirement("embed_cls", (False,), "it has no class token behind the text"),
    Requirement("proj_type", ("linear",), "it projects with a matrix"),
)
# The text tower of CLIP pools at the highest id where its `eos_token_id` is 2, as the first configurations had it, and
# at the first `eos_token_id` otherwise.
_POOLS_AT_HIGHEST_ID = 2


def _is_highest_id(eos_token_id: int | list[int] | None, vocab_size: int) -> bool:
    return eos_token_id == vocab_size - 1


def _clip_pool_type(cfg: Cfg) -> str:
    highest = cfg["eos_token_id"] == _POOLS_AT_HIGHEST_ID or _is_highest_id(cfg["eos_token_id"], cfg["vocab_size"])
    return "argmax" if highest else "eos"


def _clip_eos_token_id(config: PreTrainedConfig) -> int:
    if config.pool_type == "argmax" and not _is_highest_id(config.eos_token_id, config.vocab_size):
        return _POOLS_AT_HIGHEST_ID
    return config.eos_token_id


def _clip_pad_token_id(config: PreTrainedConfig) -> int | None:
    # transformers' CLIP tokenizer pads with its end of text, ours with "!"; causal towers do not mind.
    return CLIP_VOCAB_SIZE - 1 if config.vocab_size == CLIP_VOCAB_SIZE else config.pad_token_id


def _clip_text(native: type[PreTrainedConfig], pooling: tuple[Requirement, ...], **ids: tuple) -> NativePart:
    table = _text_table((Rename("text_projection.weight", "text_model.projection.weight"),))
    requirements = (
        *pooling,
        Requirement("is_causal", (True,), "its attention is causal"),
        *_LINEAR_PROJECTION,
        Requirement("proj_bias", (False,), "its projection has no bias"),
        *_PLAIN_BLOCK,
        *_NO_BLOCK_OPTIONS,
    )
    return _part(
        "text_config",
        native,
        OpenClipTextConfig,
        {**_STACK, **_TEXT_SIZES, "projection_dim": "projection_dim", "bos_token_id": "bos_token_id"},
        requirements,
        lambda config: table,
        computed={name: ours for name, (ours, _) in ids.items()},
        inverse={name: theirs for name, (_, theirs) in ids.items() if theirs is not None},
        training_only={"drop_path_rate": 0.0},
    )


_NO_DECODER = Requirement(
    "multimodal_config",
    lambda config: "multimodal_config" not in config.sub_configs,
    "it has no decoder; with tower=... one of the towers can be written alone",
    "None",
)
_NO_LOGIT_BIAS = Requirement("logit_bias_init_value", (None,), "it has no logit bias")


def _clip_model(native: type[PreTrainedConfig]) -> NativePart:
    def table(config: PreTrainedConfig) -> Table:
        return ((Unsqueeze if config.nonscalar_logit_scale else Rename)("logit_scale", "logit_scale"),)

    config_table = ConfigTable(
        name="config",
        defaults=_defaults(native, ("projection_dim", "logit_scale_init_value")),
        fields={"projection_dim": "projection_dim", "logit_scale_init_value": "logit_scale_init_value"},
    )
    return NativePart(native, config_table, (_NO_DECODER, _NO_LOGIT_BIAS), table, {})


def _clip_target(
    name: str, config_class: type[PreTrainedConfig], vision_config: type[PreTrainedConfig], text: NativePart
) -> NativeTarget:
    base = name.removesuffix("Model")
    return NativeTarget(
        name=name,
        vision=_clip_vision(vision_config),
        text=text,
        model=_clip_model(config_class),
        vision_class=f"{base}VisionModelWithProjection",
        text_class=f"{base}TextModelWithProjection",
    )


CLIP = _clip_target(
    "CLIPModel",
    CLIPConfig,
    CLIPVisionConfig,
    _clip_text(
        CLIPTextConfig,
        (
            Requirement("pool_type", ("argmax", "eos"), "it pools at the end of the text"),
            Requirement(
                "eos_token_id",
                lambda config: config.pool_type != "eos" or config.eos_token_id != _POOLS_AT_HIGHEST_ID,
                "with eos_token_id 2 it pools at the highest id instead",
                "another than 2 with pool_type 'eos'",
            ),
        ),
        pool_type=(_clip_pool_type, None),
        eos_token_id=(
            lambda cfg: None if cfg["eos_token_id"] == _POOLS_AT_HIGHEST_ID else cfg["eos_token_id"],
            _clip_eos_token_id,
        ),
        # open_clip's CLIP pads with 0.
        pad_token_id=(
            lambda cfg: 0 if cfg["vocab_size"] == CLIP_VOCAB_SIZE else cfg["pad_token_id"],
            _clip_pad_token_id,
        ),
    ),
)
METACLIP_2 = _clip_target(
    "MetaClip2Model",
    MetaClip2Config,
    MetaClip2VisionConfig,
    _clip_text(
        MetaClip2TextConfig,
        (Requirement("pool_type", ("eos",), "it pools at the first eos_token_id"),),
        eos_token_id=(lambda cfg: cfg["eos_token_id"], lambda config: config.eos_token_id),
        pad_token_id=(lambda cfg: cfg["pad_token_id"], lambda config: config.pad_token_id),
    ),
)

# transformers' SigLIP, and SigLIP 2 with NaFlex towers; with towers of a fixed size, SigLIP 2 is a SigLIP there.

_SIGLIP_LAYERS: Table = (
    Rename("embeddings.patch_embedding.{p}", "embeddings.patch_embedding.{p}"),
    Rename("encoder.layers.{rest}", "encoder.layers.{rest}"),
    Rename("post_layernorm.{p}", "post_layernorm.{p}"),
    Rename("head.probe", "pooler.latent"),
    SplitQKV("head.attention.in_proj_{p}", "pooler.attention.{qkv}_proj.{p}"),
    Rename("head.attention.out_proj.{p}", "pooler.attention.out_proj.{p}"),
    Rename("head.layernorm.{p}", "pooler.layer_norm.{p}"),
    Rename("head.mlp.{rest}", "pooler.mlp.{rest}"),
)
_SIGLIP_TEXT: Table = _text_table((Rename("text_model.head.{p}", "text_model.projection.{p}"),))


def _siglip_scalars(config: PreTrainedConfig) -> Table:
    operation = Rename if config.nonscalar_logit_scale else Squeeze
    return tuple(operation(name, name) for name in ("logit_scale", "logit_bias"))


def _siglip_vision(
    native: type[PreTrainedConfig],
    ours: type[PreTrainedConfig],
    sizes: dict[str, str],
    positions: Operation,
    requirements: tuple[Requirement, ...],
    **tables: dict[str, Callable],
) -> NativePart:
    table = under("vision_model.", "vision_model.", (*_SIGLIP_LAYERS, positions))
    return _part(
        "vision_config",
        native,
        ours,
        {**_STACK, **sizes},
        (
            Requirement("pool_type", ("map",), "it pools with a learned query"),
            Requirement("proj_type", ("none",), "its vision tower has no projection"),
            Requirement("use_class_token", (False,), "it has no class token"),
            Requirement("num_register_tokens", (0,), "it has no register tokens"),
            Requirement("qkv_bias", (True,), "its queries, keys and values have biases"),
            Requirement("qk_norm", (False,), "its layers have no such norm"),
            Requirement("use_fc_norm", (False,), "its last layer norm comes before pooling"),
            *requirements,
            _is_square("patch_size"),
            *_PLAIN_BLOCK,
        ),
        lambda config: table,
        training_only=dict.fromkeys(
            ("patch_dropout", "drop_path_rate", "embedding_dropout", "hidden_dropout", "projection_dropout"), 0.0
        ),
        **tables,
    )


def _siglip_target(
    name: str,
    config_class: type[PreTrainedConfig],
    vision: NativePart,
    text_config: type[PreTrainedConfig],
) -> NativeTarget:
    base = name.removesuffix("Model")
    text = _part(
        "text_config",
        text_config,
        OpenClipTextConfig,
        {
            **_STACK,
            **_TEXT_SIZES,
            **{name: name for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
            "projection_dim": "projection_size",
        },
        (
            Requirement("pool_type", ("last",), "it pools the last token"),
            Requirement("is_causal", (False,), "its tokens see all others"),
            Requirement("use_pad_mask", (False,), "its texts are padded, and padding is attended to"),
            *_LINEAR_PROJECTION,
            Requirement("proj_bias", (True,), "its projection has a bias"),
            *_PLAIN_BLOCK,
            *_NO_BLOCK_OPTIONS,
        ),
        lambda config: _SIGLIP_TEXT,
        training_only={"drop_path_rate": 0.0},
    )
    model = NativePart(
        config_class,
        ConfigTable(name="config", defaults={"initializer_factor": 1.0}),
        (
            _NO_DECODER,
            Requirement(
                "logit_bias_init_value",
                lambda config: config.logit_bias_init_value is not None,
                "it has a logit bias",
                "a number",
            ),
        ),
        _siglip_scalars,
        {},
    )
    return NativeTarget(
        name=name,
        vision=vision,
        text=text,
        model=model,
        vision_class=f"{base}VisionModel",
        text_class=f"{base}TextModel",
        processor_class=f"{base}Processor",
        image_processor_class=f"{base}ImageProcessor",
        tokenizer_outputs=("input_ids",),  # given a mask, its text tower would not attend to padding
        is_siglip=True,
    )


SIGLIP = _siglip_target(
    "SiglipModel",
    SiglipConfig,
    _siglip_vision(
        SiglipVisionConfig,
        SiglipVitConfig,
        _IMAGE,
        Unsqueeze("embeddings.position_embedding.weight", "embeddings.position_embedding"),
        (
            Requirement("use_pre_layer_norm", (False,), "it has no layer norm before its layers"),
            Requirement("block_type", ("pre_norm",), "its layers normalise their inputs"),
            Requirement("ignore_head", (False,), "it pools"),
            Requirement(
                "pooler_hidden_act",
                lambda config: config.pooler_hidden_act == config.hidden_act,
                "its pooler has the activation of its layers",
                "the same as hidden_act",
            ),
            Requirement(
                "select_layer",
                lambda config: config.num_selected_layers == config.num_hidden_layers,
                "it uses all of its layers",
                "-1",
            ),
            _is_square("image_size"),
        ),
        inverse={"image_size": _side("image_size"), "patch_size": _side("patch_size")},
    ),
    SiglipTextConfig,
)
SIGLIP_2 = _siglip_target(
    "Siglip2Model",
    Siglip2Config,
    _siglip_vision(
        Siglip2VisionConfig,
        NaFlexVitConfig,
        {name: name for name in ("num_channels", "patch_size")},
        ToSquare("embeddings.position_embedding.weight", "embeddings.position_embedding"),
        (
            Requirement("block_type", ("mlp",), "its layers have a plain MLP"),
            Requirement("position_interpolation", ("bilinear",), "it resizes positions with a bilinear filter"),
            Requirement("keep_position_aspect_ratio", (False,), "it resizes positions to the grid of each image"),
            Requirement(
                "pooler_intermediate_size",
                lambda config: config.pooler_intermediate_size == config.intermediate_size,
                "its pooler is as wide as its layers",
                "the same as intermediate_size",
            ),
            _is_square("position_grid_size"),
        ),
        computed={"position_grid_size": lambda cfg: math.isqrt(cfg["num_patches"])},
        inverse={
            "num_patches": lambda config: math.prod(height_and_width(config.position_grid_size)),
            "patch_size": _side("patch_size"),
        },
    ),
    Siglip2TextConfig,
)

# The first that fits is written.
NATIVE_TARGETS = (CLIP, METACLIP_2, SIGLIP, SIGLIP_2)
