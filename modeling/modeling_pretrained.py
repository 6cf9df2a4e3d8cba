"""What every model here shares: which back ends it supports and how new weights are initialised."""

from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from .modeling_layers import (
    Attention,
    CustomResidualAttentionBlock,
    ResidualAttentionBlock,
    ResidualCrossAttentionBlock,
)


# Keys of a dual model or CoCa that belong to neither tower: no news to someone who loads a tower from its folder.
COMPOSITE_KEYS = (r"^logit_", r"^multimodal_decoder\.", r"^lm_head\.")


class OpenClipPreTrainedModel(PreTrainedModel):
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

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if hasattr(module, "initialize"):
            module.initialize(self.config.initializer_range)
