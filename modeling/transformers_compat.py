"""Names that differ between the supported versions of transformers."""

from dataclasses import fields

from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast


# The key-value cache in outputs, in mask functions and between `generate` and a model: `cache` from 5.24 on,
# `past_key_values` before. Here it is `cache` everywhere, and has this name where transformers reads it.
CACHE_NAME = next(field.name for field in fields(BaseModelOutputWithPast) if "Cache" in str(field.type))


def named_cache(cache: Cache | None) -> dict[str, Cache | None]:
    """The keyword argument by which the installed transformers takes `cache`."""
    return {CACHE_NAME: cache}
