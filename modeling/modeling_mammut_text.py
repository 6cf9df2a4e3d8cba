"""MaMMUT's text tower (open_clip: `MultimodalTransformer` of LAION's `open_clip_mammut`, without an image)."""

import torch

from ..configuration.configuration_mammut_text import MaMMUTTextConfig
from .modeling_layers import Encoder
from .modeling_text import OpenClipTextModel


class MaMMUTTextModel(OpenClipTextModel):
    """The text tower of MaMMUT (https://arxiv.org/abs/2303.16839): bidirectional, and pooled by a mean.

    Keys of open_clip's `text.`, with separate attention projections.
    """

    config: MaMMUTTextConfig

    @staticmethod
    def build_encoder(config: MaMMUTTextConfig) -> Encoder:
        return Encoder(config, is_causal=False, attention_only_layers=config.attention_only_layers)

    @property
    def ignores_padding(self) -> bool:
        return self.config.use_pad_mask and self.config.pool_type == "avg"

    def pool(
        self, hidden_states: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(batch, length, hidden_size) -> (batch, hidden_size); left padding never counts."""
        is_text = input_ids != self.config.pad_token_id if self.config.pool_type == "avg" else input_ids >= 0
        if attention_mask is not None:
            is_text = is_text & (attention_mask.cumsum(-1) > 0)
        is_text[:, 0] |= ~is_text.any(dim=1)  # as open_clip does for a text of nothing but padding
        weights = is_text.to(hidden_states).unsqueeze(-1)
        return (hidden_states * weights).sum(dim=1) / weights.sum(dim=1)


__all__ = ["MaMMUTTextModel"]
