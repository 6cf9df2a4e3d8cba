"""What every model here shares: which back ends it supports and how new weights are initialised."""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from ..configuration.configuration_common import AutoClassMixin
from .freed_memory import keep_freed_memory
from .fusible import FusibleMixin
from .modeling_layers import (
    Attention,
    CustomResidualAttentionBlock,
    ResidualAttentionBlock,
    ResidualCrossAttentionBlock,
)


# Keys of a dual model or CoCa that belong to neither tower: no news to someone who loads a tower from its folder.
COMPOSITE_KEYS = (r"^logit_", r"^multimodal_decoder\.", r"^lm_head\.")


class OpenClipPreTrainedModel(AutoClassMixin, PreTrainedModel):
    """Base of all models here."""

    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = [
        ResidualAttentionBlock.__name__,
        CustomResidualAttentionBlock.__name__,
        ResidualCrossAttentionBlock.__name__,
    ]
    _can_record_outputs: dict[str, Any] = {"hidden_states": ResidualAttentionBlock, "attentions": Attention}

    def __init__(self, config: PreTrainedConfig, *inputs, **kwargs):
        super().__init__(config, *inputs, **kwargs)
        keep_freed_memory()

    @torch.no_grad()
    def fuse(self):
        """Makes inference faster, with a second copy of the weights of linear layers and of a ResNet's convolutions.

        Weights as loaded lie in their file, and on Linux the memory of those that were copied goes back to the system:
        what needs them reads them from there again. Other weights stay in memory beside the copy, and so do all where
        a repository brought its code along. Fuse for batches: for one or two rows, those of a single caption, the copy
        is slower.

        The projections of queries, keys and values become one product, and on x86 processors all weights are laid out
        as the kernel wants them; those of convolutions are scaled as the batch norm behind them does, and copied once
        for single images and once for several. The layers themselves stay where they are, for PEFT and quantisers, and
        hooks see their calls. One that was replaced, moved, cast, loaded or trained since computes with its own
        weights, and so do passes with gradients, with autocast, and within `torch.compile` on a GPU, convolutions
        within every `torch.compile`. What is changed in place through `weight.data` cannot be seen: call `unfuse`
        before that.

        Returns:
            The model.
        """
        fusible = [module for module in self.modules() if isinstance(module, FusibleMixin)]
        # Those of several layers come first: a layer in one needs no copy of its own.
        fused: set[nn.Module] = set()
        for module in sorted(fusible, key=lambda module: -len(module.layers_to_fuse())):
            layers = module.layers_to_fuse()
            if fused.intersection(layers):
                module.unfuse()
            elif module.fused is None or not module.fused.is_current(*layers):
                module.unfuse()
                module.fuse()
            if module.fused is not None:
                fused.update(layers)
        return self

    def unfuse(self):
        """Drops what `fuse` made.

        Returns:
            The model.
        """
        for module in self.modules():
            if isinstance(module, FusibleMixin):
                module.unfuse()
        return self

    @property
    def is_checkpointing(self) -> bool:
        """Whether a pass now would compute layers again on its way back."""
        if not (self.training and torch.is_grad_enabled()):
            return False
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def cache_argument(self, cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
        """The key-value cache of a call, which may be given under either of its names.

        Raises:
            TypeError: it is none of transformers' caches.
            ValueError: it is given under both names, or while layers are computed twice.
        """
        if cache is not None and past_key_values is not None:
            raise ValueError("Got `cache` and `past_key_values`, two names of one argument: pass `cache` alone.")
        cache = past_key_values if cache is None else cache
        if cache is None:
            return None
        if not isinstance(cache, Cache):
            raise TypeError(f"Expected a cache of transformers, such as DynamicCache(), got {type(cache).__name__}.")
        if self.is_checkpointing:
            raise ValueError(
                "Gradient checkpointing computes layers twice, and would add to the cache twice: leave out the cache, "
                "or call gradient_checkpointing_disable()."
            )
        return cache

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if hasattr(module, "initialize"):
            module.initialize(self.config.initializer_range)
