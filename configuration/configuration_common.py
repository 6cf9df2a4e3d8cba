"""Base classes of the configurations: checked field names, and the options of a transformer stack.

Mirrors the part of open_clip's `CLIPVisionCfg` / `CLIPTextCfg` (`model.py`) that describes `transformer.Transformer`.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from reprlib import repr as brief
from typing import Any, TypeVar

from huggingface_hub import dataclasses as hub_dataclasses
from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError
from transformers import GenerationConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging


logger = logging.get_logger(__name__)

T = TypeVar("T")

NORM_LAYERS = ("layer_norm", "layer_norm_fp32", "rms_norm")


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, with or without the end; `str()` of it is for messages."""

    low: float
    high: float
    with_end: bool = True

    def __contains__(self, value) -> bool:
        # Not a number compares as false.
        return self.low <= value <= self.high and (self.with_end or value != self.high)

    def __str__(self) -> str:
        low, high = (f"{end:g}" if isinstance(end, float) else f"{end}" for end in (self.low, self.high))
        return f"[{low}, {high}{']' if self.with_end else ')'}"


# Sizes that no model reaches and that no memory holds are mistakes, or damage, and refused before anything is built.
WIDTH, LAYERS, PIXELS, COUNT = Range(1, 2**18), Range(1, 2**10), Range(1, 2**15), Range(1, 2**16)
PROBABILITY = Range(0, 1, with_end=False)
FINITE = Range(-(2.0**63), 2.0**63)
# Field of a configuration, of a tower of timm or of an encoder of transformers -> its numbers; all others are finite.
FIELD_RANGES = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "projection_dim", "embedding_size", "token_dim"), WIDTH),
    "pooler_intermediate_size": WIDTH,
    **dict.fromkeys(
        ("embed_dim", "embed_dims", "dims", "head_dim", "d_model", "d_ff", "d_kv", "encoder_ffn_dim"), WIDTH
    ),
    **dict.fromkeys(("num_hidden_layers", "depths", "depth", "layers", "num_layers", "encoder_layers"), LAYERS),
    **dict.fromkeys(("image_size", "patch_size", "input_size", "img_size", "window_size"), PIXELS),
    **dict.fromkeys(("num_attention_heads", "attn_pooler_heads", "num_heads", "encoder_attention_heads"), COUNT),
    **dict.fromkeys(("num_channels", "attn_pooler_queries", "max_num_patches", "position_grid_size"), COUNT),
    **dict.fromkeys(("num_register_tokens", "reg_tokens", "num_recomputing_layers"), Range(0, COUNT.high)),
    "vocab_size": Range(1, 2**24),
    "max_position_embeddings": Range(1, 2**20),
    "type_vocab_size": Range(0, 2**16),
    "select_layer": Range(-LAYERS.high, LAYERS.high),
    **dict.fromkeys(("attention_dropout", "drop_path_rate", "patch_dropout", "proj_dropout"), PROBABILITY),
    **dict.fromkeys(("embedding_dropout", "hidden_dropout", "projection_dropout"), PROBABILITY),
    **dict.fromkeys(
        ("drop_rate", "attn_drop_rate", "patch_drop_rate", "pos_drop_rate", "proj_drop_rate"), PROBABILITY
    ),
    **dict.fromkeys(("layer_norm_eps", "norm_eps"), Range(0, 1)),
    "rope_theta": Range(1, 2**29),
    "initializer_range": Range(0, 1e3),
}
# More patches than fit in any memory with their attention.
MAX_PATCHES = 2**20

# Names of dtypes that weights may have.
_FLOATING = re.compile(r"half|float|double|bfloat16|float(16|32|64|8_\w+)")

# Keys that choose code for a model to run, which may be a kernel on the Hub: the caller's to say, never a file's.
_CODE_KEYS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_internal",
        "_experts_implementation",
        "_experts_implementation_internal",
        "attn_implementation",
        "experts_implementation",
    }
)
# Keys that transformers itself passes to, or stores in, every configuration without declaring a field for them.
_UPSTREAM_KEYS = frozenset(
    {
        "_attn_implementation_internal",
        "_commit_hash",
        "_experts_implementation_internal",
        "_name_or_path",
        "attn_implementation",
        "auto_map",
        "custom_pipelines",
        "experts_implementation",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "per_layer_config",
        "quantization_config",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


# A Hub repository has a copy of this file.
IS_BUNDLED = __name__.startswith("transformers_modules")


class AutoClassMixin:
    """Keep the package's source files out of what is saved.

    transformers calls `register_for_auto_class` on each class that a Hub repository names, and from then on
    `save_pretrained` copies the file of the class beside the weights, as it should with bundled files. Those of the
    package, whose classes a repository gives where the package is newer, would not work there.
    """

    @classmethod
    def register_for_auto_class(cls, *args, **kwargs):
        """Have `save_pretrained` copy the code of this class, if it is a Hub repository's."""
        if IS_BUNDLED:
            super().register_for_auto_class(*args, **kwargs)


class ConfigurationError(StrictDataclassError, ValueError):
    """A field of a configuration, or an argument, holds what nothing can be built or made of."""


def strict(cls: type[T]) -> type[T]:
    """Have a configuration check the types of its fields; huggingface_hub's `strict`, with errors for users."""
    cls = hub_dataclasses.strict(cls)
    for name in ("__setattr__", "validate"):
        setattr(cls, name, with_value_errors(getattr(cls, name)))
    return cls


def with_value_errors(method: Callable) -> Callable:
    """`method`, with a `ValueError` where huggingface_hub refuses the type of a field or an argument."""

    @wraps(method)
    def checked(self, *args, **kwargs):
        try:
            return method(self, *args, **kwargs)
        except ConfigurationError:
            raise
        except StrictDataclassError as error:
            # Other checks name the class themselves.
            owner = f"{type(self).__name__}: " if isinstance(error, StrictDataclassFieldValidationError) else ""
            raise ConfigurationError(f"{owner}{error.__cause__}") from error.__cause__

    return checked


@strict
class OpenClipPreTrainedConfig(AutoClassMixin, PreTrainedConfig):
    r"""Base of all configurations here: leaves out field names that it does not know, and warns about them.

    transformers would set whatever it is given as an attribute, in silence: a misspelt field, or what the file of a
    stranger says.

    Raises:
        ValueError: a field has a value of another type or beyond its range, or fields do not fit together.
    """

    def __setattr__(self, name: str, value: Any):
        # At once, not once all fields are there: some are made of others.
        if name in type(self).__dataclass_fields__:
            check_range(type(self).__name__, name, value)
        super().__setattr__(name, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """The configuration that a file's contents describe; see [`~PreTrainedConfig.from_dict`]."""
        _check_dtypes(cls.__name__, config_dict)
        return super().from_dict(_without_code_keys(config_dict), **kwargs)

    def __post_init__(self, **kwargs):
        known = {field.name for field in fields(self)} | _UPSTREAM_KEYS
        known |= GenerationConfig().to_dict().keys()
        unknown = sorted(kwargs.keys() - known)
        # A head may be loaded from the folder of another model, whose configuration has other fields.
        if unknown and kwargs.get("model_type", self.model_type) == self.model_type:
            logger.warning(
                f"{type(self).__name__} has no field named {', '.join(unknown)}: left out. Check the spelling."
            )
        for name in unknown:
            del kwargs[name]
        # What a Hub repository says of the code beside it is for users without our package, in its copy of this file.
        # Here it would make transformers ask for `trust_remote_code`, and name code that saving does not copy.
        if not IS_BUNDLED:
            for name in ("auto_map", "custom_pipelines"):
                kwargs.pop(name, None)
        super().__post_init__(**kwargs)


def _check_dtypes(owner: str, content):
    """Raise `ValueError` where the contents of a file state a dtype, at any depth, that weights cannot have."""
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        is_dtype = key in ("dtype", "torch_dtype") and value is not None
        if is_dtype and not _FLOATING.fullmatch(str(value).removeprefix("torch.")):
            raise ValueError(f'{owner}: {key} must be a floating dtype such as "float32", got {brief(value)}.')
        _check_dtypes(owner, value)


def _without_code_keys(content):
    """The contents of a file, without `_CODE_KEYS` at any depth."""
    if isinstance(content, dict):
        return {key: _without_code_keys(value) for key, value in content.items() if key not in _CODE_KEYS}
    return [_without_code_keys(value) for value in content] if isinstance(content, list) else content


@strict
class OpenClipTransformerConfig(OpenClipPreTrainedConfig):
    r"""Fields of one transformer stack (open_clip: `Transformer` in `transformer.py`).

    Args:
        hidden_size: width of the residual stream; open_clip: `width`.
        intermediate_size: width inside the MLP; open_clip: `int(width * mlp_ratio)`.
        num_hidden_layers: number of layers; open_clip: `layers`.
        num_attention_heads: attention heads, divides `hidden_size`; open_clip: `heads`, or `width // head_width`.
        hidden_act: activation of the MLP, `"gelu"`, `"quick_gelu"` or `"gelu_pytorch_tanh"`; open_clip: `quick_gelu`,
            `act_kwargs={"approximate": "tanh"}`.
        norm_layer: `"layer_norm"` computes in the input's dtype, `"layer_norm_fp32"` in fp32 and casts back;
            open_clip: `LayerNorm`, `LayerNormFp32`. `"rms_norm"` (https://arxiv.org/abs/1910.07467) does not centre.
        layer_norm_eps: epsilon of the layer norms; open_clip: `norm_kwargs={"eps": ...}`.
        attention_dropout: dropout probability of the attention weights in training, in [0, 1).
        layer_scale_init_value: initial LayerScale (https://arxiv.org/abs/2103.17239), `None` for no LayerScale;
            open_clip: `ls_init_value`.
        drop_path_rate: stochastic depth (https://arxiv.org/abs/1603.09382): probability of dropping a residual branch
            of the last layer in training, growing linearly from 0 at the first, in [0, 1); open_clip has none here.
        initializer_range: standard deviation of the normal initialisation of new weights.
    """

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    hidden_act: str = "gelu"
    norm_layer: str = "layer_norm"
    layer_norm_eps: float = 1e-5
    attention_dropout: float | int = 0.0
    layer_scale_init_value: float | int | None = None
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02

    def validate_architecture(self):
        """Raise `ValueError` where the fields describe a stack that cannot be built."""
        check_choice(self, "norm_layer", NORM_LAYERS)
        check_activation(self, "hidden_act")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"{type(self).__name__}: hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})."
            )


@strict
class OpenClipTowerConfig(OpenClipTransformerConfig):
    r"""Fields of a tower's stack (open_clip: `Transformer` with the options of `CustomResidualAttentionBlock`).

    Takes the fields of [`OpenClipTransformerConfig`] and these.

    Args:
        qk_norm: layer norm on queries and keys, per head (https://arxiv.org/abs/2302.05442).
        scaled_cosine_attn: cosine similarity with a learned temperature per head instead of the scaled dot product
            (https://arxiv.org/abs/2111.09883).
        scale_heads: learned scale per head on the attention output (https://arxiv.org/abs/2110.09456).
        scale_attn_inner: layer norm before the output projection (https://arxiv.org/abs/2210.06423).
        scale_attn: layer norm after the attention block (https://arxiv.org/abs/2110.09456).
        scale_fc: layer norm inside the MLP (https://arxiv.org/abs/2110.09456).
    """

    qk_norm: bool = False
    scaled_cosine_attn: bool = False
    scale_heads: bool = False
    scale_attn_inner: bool = False
    scale_attn: bool = False
    scale_fc: bool = False

    def validate_architecture(self):
        super().validate_architecture()
        if self.qk_norm and self.scaled_cosine_attn:
            raise ValueError(f"{type(self).__name__}: qk_norm and scaled_cosine_attn exclude each other; set one.")


def check_choice(config: PreTrainedConfig, name: str, choices: tuple):
    """Raise `ValueError` unless field `name` of `config` holds one of `choices`."""
    value = getattr(config, name)
    # True == 1 in Python: compare types too, so that 1 is not taken for True.
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        expected = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{type(config).__name__}: {name} must be one of {expected}, got {value!r}.")


def check_activation(config: PreTrainedConfig, name: str):
    """Raise `ValueError` unless field `name` of `config` names an activation of transformers."""
    value = getattr(config, name)
    if not isinstance(value, str) or value not in ACT2FN:
        raise ValueError(
            f"{type(config).__name__}: {name} must be an activation that transformers knows, such as 'gelu', "
            f"'quick_gelu' or 'gelu_pytorch_tanh', got {value!r}."
        )


def check_layers(config: PreTrainedConfig, name: str, num_layers: int):
    """Raise `ValueError` unless field `name` of `config` holds indices of `num_layers` layers, in order."""
    indices = getattr(config, name)
    if indices != sorted(set(indices)) or not all(0 <= index < num_layers for index in indices):
        raise ValueError(
            f"{type(config).__name__}: {name} must hold indices of the {num_layers} layers in order, got {indices}."
        )


def check_number_of_layers(config: PreTrainedConfig):
    """Raise `ValueError` unless `num_hidden_layers` of `config` is the number of its `cross_attention_layers`."""
    if len(config.cross_attention_layers) != config.num_hidden_layers:
        raise ValueError(
            f"{type(config).__name__}: num_hidden_layers is {config.num_hidden_layers}, and cross_attention_layers "
            f"has {len(config.cross_attention_layers)} entries: {config.cross_attention_layers}."
        )


def check_range(owner: str, name: str, value: Any, numbers: Range | None = None):
    """Raise `ValueError` where a number, or one in a list, is not in its field's range; other values pass.

    Args:
        owner: the class, or the part of a file, that has the field; for the message.
        name: the field.
        value: its value.
        numbers: the range, by default that of `FIELD_RANGES`.
    """
    numbers = FIELD_RANGES.get(name, FINITE) if numbers is None else numbers
    values = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(number, int | float) and number not in numbers for number in values):
        raise ValueError(f"{owner}: {name} must lie in {numbers}, got {brief(value)}.")


def check_switches(owner: str, switches: dict[str, Any]):
    """Raise `ValueError` where one of `switches` is neither true nor false: a file's "false" would count as true."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(f"{owner}: {name} must be true or false, got {brief(value)}.")


def check_patches(config: PreTrainedConfig):
    """Raise `ValueError` unless `config`, with a `grid_size`, has sizes of one or two sides that give patches."""
    owner = type(config).__name__
    for name in ("image_size", "patch_size"):
        size = getattr(config, name)
        if not isinstance(size, int) and len(size) != 2:
            raise ValueError(f"{owner}: {name} must be one number or [height, width], got {size}.")
    if 0 in config.grid_size:
        raise ValueError(f"{owner}: image_size {config.image_size} holds no patch of patch_size {config.patch_size}.")
    if math.prod(config.grid_size) > MAX_PATCHES:
        raise ValueError(
            f"{owner}: image_size {config.image_size} holds more than {MAX_PATCHES} patches of patch_size "
            f"{config.patch_size}."
        )


def height_and_width(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """`(height, width)` in pixels of a size given as one side of a square or as both."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
