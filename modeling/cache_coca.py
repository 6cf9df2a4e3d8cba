"""The key-value cache of CoCa's causal stack and of its cross-attention."""

import torch
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache


class CoCaCache(EncoderDecoderCache):
    """Self-attention of the whole causal stack, one row per sequence; cross-attention, one row per *image*.

    Beams and samples share the rows of their image, so that these are never copied or reordered.
    """

    def reorder_cache(self, beam_idx: torch.Tensor):
        """Reorders the sequences by `beam_idx` (rows,); beams never leave their image."""
        if not self.is_compileable:
            self.self_attention_cache.reorder_cache(beam_idx)
            return
        # transformers puts new tensors in place of these, which CUDA graphs know by their addresses.
        for layer in self.self_attention_cache.layers:
            layer.keys.copy_(layer.keys.index_select(0, beam_idx.to(layer.keys.device)))
            layer.values.copy_(layer.values.index_select(0, beam_idx.to(layer.values.device)))

    def batch_repeat_interleave(self, repeats: int):
        """Repeats each sequence `repeats` times."""
        self.self_attention_cache.batch_repeat_interleave(repeats)

    @classmethod
    def wrap(cls, self_attention_cache: Cache, cross_attention_cache: Cache | None = None) -> "CoCaCache":
        """A cache around one for the causal stack, which may be dynamic, static or offloaded.

        Args:
            cross_attention_cache: the one for the images, by default dynamic.
        """
        if isinstance(self_attention_cache, cls):
            return self_attention_cache
        return cls(self_attention_cache, cross_attention_cache or DynamicCache())
