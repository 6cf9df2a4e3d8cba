"""The key-value cache of CoCa's causal stack and of its cross-attention."""

import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache


class CoCaCache(EncoderDecoderCache):
    """Self-attention of the whole causal stack, one row per sequence; cross-attention, one row per *image*.

    Beams and samples share the rows of their image, so that these are never copied or reordered.
    """

    def reorder_cache(self, beam_idx: torch.Tensor):
        """Reorders the sequences by `beam_idx` (rows,); beams never leave their image."""
        self.self_attention_cache.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int):
        """Repeats each sequence `repeats` times."""
        self.self_attention_cache.batch_repeat_interleave(repeats)

    @classmethod
    def wrap(cls, self_attention_cache) -> "CoCaCache":
        """A cache around one for the causal stack, which may be dynamic, static or offloaded."""
        if isinstance(self_attention_cache, cls):
            return self_attention_cache
        return cls(self_attention_cache, DynamicCache())
