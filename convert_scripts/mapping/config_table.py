"""Tables of fields: one part of open_clip's `model_cfg` and our configuration of it, read in both directions.

A `ConfigTable` holds open_clip's fields with their defaults, and each of our fields with where it comes from. Read
backwards, a plain name needs nothing more; a function has its counterpart in `inverse`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from ..common import ConversionError, listing


Cfg = Mapping[str, Any]
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
        inverse: open_clip's field -> a function of our configuration, for those that `fields` reads in functions.
    """

    name: str
    config_class: type[PreTrainedConfig] | None = None
    selects: Callable[[Cfg], Any] = lambda cfg: True
    defaults: Cfg = field(default_factory=dict)
    fields: Mapping[str, str | Callable[[Cfg], Any]] = field(default_factory=dict)
    without_effect: Mapping[str, str] = field(default_factory=dict)
    inverse: Mapping[str, Callable[[PreTrainedConfig], Any]] = field(default_factory=dict)

    def complete(self, cfg: Cfg) -> Cfg:
        """Complete `cfg` with open_clip's defaults. Raise `ConversionError` on unknown or missing fields."""
        if not self.defaults:
            raise ConversionError(f"{self.name} is not supported yet: this checkpoint cannot be converted.")
        if not isinstance(cfg, Mapping):
            raise ConversionError(f"{self.name} must be a JSON object, got {cfg!r}.")
        unknown = sorted(cfg.keys() - self.defaults.keys())
        if unknown:
            raise ConversionError(
                f"{self.name} has fields that are not known:{listing(unknown)}\n"
                f"Correct or remove them; known are {', '.join(sorted(self.defaults))}."
            )
        missing = sorted(key for key, default in self.defaults.items() if default is REQUIRED and key not in cfg)
        if missing:
            raise ConversionError(f"{self.name} lacks {', '.join(missing)}.")
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
