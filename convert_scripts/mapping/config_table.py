"""Tables of fields: one part of open_clip's `model_cfg` and our configuration of it, read in both directions.

A `ConfigTable` holds open_clip's fields with their defaults, and each of our fields with where it comes from. Read
backwards, a plain name needs nothing more; a function has its counterpart in `inverse`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from reprlib import repr as brief
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from ...configuration.configuration_common import (
    COUNT,
    FIELD_RANGES,
    LAYERS,
    PIXELS,
    PROBABILITY,
    WIDTH,
    Range,
    check_range,
)
from ..common import ConversionError, listing


Cfg = Mapping[str, Any]
# Types of a JSON value -> their names in messages.
_TYPE_NAMES = {
    **{bool: "true or false", int: "a whole number", float: "a number"},
    **{str: "a string", list: "a list", dict: "a JSON object"},
}
_NUMBER = (int, float)


@dataclass(frozen=True)
class Kind:
    """The values that a field of open_clip may have.

    Args:
        types: of `bool`, `int`, `float`, `str`, `list` and `dict`.
        numbers: range of a number, or of those in a list.
        null: whether null means something else than the default.
    """

    types: tuple[type, ...]
    numbers: Range | None = None
    null: bool = False

    def check(self, owner: str, name: str, value: Any):
        """Raise `ConversionError` where `value` of field `name` is of another kind."""
        # What Python callers may give for lists and objects.
        types = (*self.types, *((tuple,) if list in self.types else ()), *((Mapping,) if dict in self.types else ()))
        if value is None and self.null:
            return
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            expected = " or ".join(_TYPE_NAMES[kind] for kind in self.types)
            raise ConversionError(f"{owner}: {name} must be {expected}, got {brief(value)}.")
        try:
            check_range(owner, name, value, self.numbers)
        except ValueError as error:
            raise ConversionError(error) from error


# What fields may be whose default is false or true: anything else would count as true, "false" too.
SWITCH = Kind((bool, int), Range(0, 1), null=True)
# Field of open_clip -> what it may be where it is stated. Those that are not here are switches, or choices that the
# fields of our configurations check.
FIELD_KINDS = {
    **dict.fromkeys(("vision_cfg", "text_cfg", "multimodal_cfg"), Kind((dict,))),
    **dict.fromkeys(("act_kwargs", "norm_kwargs", "tokenizer_kwargs", "hf_model_config"), Kind((dict,))),
    "timm_model_kwargs": Kind((dict,)),
    "image_seq_len": Kind((int,), FIELD_RANGES["max_num_patches"]),
    **dict.fromkeys(("embed_dim", "width", "head_width", "dim_head"), Kind((int,), WIDTH)),
    **dict.fromkeys(("heads", "attn_pooler_heads", "attn_pooler_queries", "n_queries"), Kind((int,), COUNT)),
    "cross_attn_ratio": Kind((int,), COUNT),
    "layers": Kind((int, list), LAYERS),
    **dict.fromkeys(("image_size", "patch_size"), Kind((int, list), PIXELS)),
    **{
        theirs: Kind((int,), FIELD_RANGES[ours])
        for theirs, ours in {"context_length": "max_position_embeddings", "vocab_size": "vocab_size"}.items()
    },
    "mlp_ratio": Kind(_NUMBER, Range(0, 2**8)),
    **dict.fromkeys(("patch_dropout", "timm_drop", "timm_drop_path"), Kind(_NUMBER, PROBABILITY)),
    **dict.fromkeys(("ls_init_value", "init_logit_scale", "init_logit_bias"), Kind(_NUMBER)),
    **dict.fromkeys(("pad_id", "eos_id", "bos_id"), Kind((int,), Range(0, FIELD_RANGES["vocab_size"].high))),
    **dict.fromkeys(("attention_bias", "mlp_bias", "gate_bias", "freeze_pad_embed"), SWITCH),
    "reg_tokens": Kind((int,), Range(0, COUNT.high)),
    "norm_eps": Kind(_NUMBER, FIELD_RANGES["layer_norm_eps"]),
    "rope_temperature": Kind(_NUMBER, FIELD_RANGES["rope_theta"]),
    **dict.fromkeys(("text_arch", "attention_mode", "pos_embed", "mlp_type", "norm_placement"), Kind((str,))),
    "norm_type": Kind((str,), null=True),
    **dict.fromkeys(("tokenizer_type", "tiktoken_name"), Kind((str,))),
    **dict.fromkeys(("pool_type", "pos_embed_type", "block_type"), Kind((str,))),
    **dict.fromkeys(("hf_model_name", "hf_tokenizer_name", "tokenizer_mode"), Kind((str,))),
    "timm_model_name": Kind((str,)),
    "attentional_pool": Kind((bool, str), null=True),
    **dict.fromkeys(("timm_pool", "timm_proj", "hf_pooler_type", "hf_proj_type"), Kind((str,), null=True)),
}


def text_fields_of(model_cfg: Cfg) -> dict[str, Any]:
    """The part of a `model_cfg` that describes its texts: `text_cfg`, or where there is none `multimodal_cfg`, in
    which open_clip 4 has both of a MaMMUT."""
    text_cfg = model_cfg.get("text_cfg")
    return (model_cfg.get("multimodal_cfg") or {}) if text_cfg is None else text_cfg


REQUIRED = object()
# Fields that open_clip's own files state even where they are the defaults.
_STATED = {"image_size", "patch_size", "context_length", "vocab_size", "width", "heads", "layers"}


@dataclass(frozen=True)
class ConfigTable:
    """One part of open_clip's `model_cfg` and our configuration of it.

    Args:
        name: its name in messages.
        config_class: our configuration class; `None` for a part that is not supported yet.
        selects: whether an open_clip configuration is one of this part.
        defaults: every field that open_clip knows -> its default, or `REQUIRED`.
        fields: our field -> open_clip's field of the same meaning, or a function of all of its fields.
        without_effect: fields of open_clip that `fields` does not read -> why.
        refused: fields of open_clip that change the model and that we have no form of -> why; a configuration may hold
            them at their defaults, or null.
        inverse: open_clip's field -> a function of our configuration, for those that `fields` reads in functions.
    """

    name: str
    config_class: type[PreTrainedConfig] | None = None
    selects: Callable[[Cfg], Any] = lambda cfg: True
    defaults: Cfg = field(default_factory=dict)
    fields: Mapping[str, str | Callable[[Cfg], Any]] = field(default_factory=dict)
    without_effect: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    inverse: Mapping[str, Callable[[PreTrainedConfig], Any]] = field(default_factory=dict)

    def complete(self, cfg: Cfg) -> Cfg:
        """Complete `cfg` with open_clip's defaults. Raise `ConversionError` on unknown, refused or missing fields."""
        if not self.defaults:
            raise ConversionError(f"{self.name} is not supported yet: this checkpoint cannot be converted.")
        if not isinstance(cfg, Mapping):
            raise ConversionError(f"{self.name} must be a JSON object, got {cfg!r}.")
        unknown = sorted(map(str, cfg.keys() - self.defaults.keys()))
        if unknown:
            known = sorted(self.defaults.keys() - self.refused.keys())
            raise ConversionError(
                f"{self.name} has fields that are not known:{listing(unknown)}\n"
                "Correct those that are misspelt. A field of an open_clip that is newer than 4.2 may be a part of the "
                f"model, which without it would be another one. Known are {', '.join(known)}."
            )
        for key, reason in self.refused.items():
            if cfg.get(key) not in (None, self.defaults[key]):
                raise ConversionError(f"{self.name}: {key} = {brief(cfg[key])} cannot be honoured: {reason}.")
        missing = sorted(key for key, default in self.defaults.items() if default is REQUIRED and key not in cfg)
        if missing:
            raise ConversionError(f"{self.name} lacks {', '.join(missing)}.")
        for key, value in cfg.items():
            # Fields may be null where that is the default, or where nobody reads them.
            is_null = value is None and (self.defaults[key] is None or key in self.without_effect)
            kind = FIELD_KINDS.get(key, SWITCH if isinstance(self.defaults[key], bool) else None)
            if kind is not None and not is_null:
                kind.check(self.name, key, value)
        return {**self.defaults, **cfg}

    def translate(self, cfg: Cfg, **handed_down: Any) -> dict[str, Any]:
        """Translate `cfg` to our fields; `handed_down` holds fields of the whole model that the part is built with."""
        cfg = {**self.complete(cfg), **handed_down}
        return {ours: cfg[theirs] if isinstance(theirs, str) else theirs(cfg) for ours, theirs in self.fields.items()}

    def invert(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Translate our `config` to open_clip's fields, without those at their defaults.

        Settings that open_clip has no field for are lost: `build_model_cfg` finds them by translating back.
        """
        same = {
            theirs: getattr(config, ours)
            for ours, theirs in self.fields.items()
            if isinstance(theirs, str) and theirs in self.defaults
        }
        cfg = {**same, **{theirs: make(config) for theirs, make in self.inverse.items()}}
        return {key: value for key, value in cfg.items() if key in _STATED or value != self.defaults[key]}
