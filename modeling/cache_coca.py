"""The key-value cache of CoCa's causal stack and of its cross-attention."""

import torch
from transformers.cache_utils import EncoderDecoderCache


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
