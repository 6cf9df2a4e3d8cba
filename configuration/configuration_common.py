"""Base classes of the configurations: checked field names, and the options of a transformer stack.

Mirrors the part of open_clip's `CLIPVisionCfg` / `CLIPTextCfg` (`model.py`) that describes `transformer.Transformer`.
"""

from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging


logger = logging.get_logger(__name__)

NORM_LAYERS = ("layer_norm", "layer_norm_fp32")

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


@strict
class OpenClipPreTrainedConfig(AutoClassMixin, PreTrainedConfig):
    r"""Base of all configurations here: leaves out field names that it does not know, and warns about them.

    transformers would set whatever it is given as an attribute, in silence: a misspelt field, or what the file of a
    stranger says.
    """

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """The configuration that a file's contents describe; see [`~PreTrainedConfig.from_dict`]."""
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
            open_clip: `LayerNorm`, `LayerNormFp32`.
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
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"{type(self).__name__}: hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})."
            )
        for name in ("attention_dropout", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{type(self).__name__}: {name} must lie in [0, 1), got {getattr(self, name)}.")


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


def height_and_width(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """`(height, width)` in pixels of a size given as one side of a square or as both."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
