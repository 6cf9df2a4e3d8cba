"""CoCa's multimodal decoder (open_clip: `MultimodalTransformer` in `transformer.py`)."""

import torch
from torch import nn
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ..configuration.configuration_coca import CoCaDecoderConfig
from .cache_coca import CoCaCache
from .modeling_layers import (
    Attention,
    CrossAttention,
    ResidualAttentionBlock,
    ResidualCrossAttentionBlock,
    norm_layer,
)
from .modeling_pretrained import OpenClipPreTrainedModel
from .transformers_compat import named_cache


class CoCaDecoderModel(OpenClipPreTrainedModel):
    """Continues the text tower's tokens, attending to the image (https://arxiv.org/abs/2205.01917).

    Layers of causal self-attention alternate with layers of cross-attention, each with an MLP of its own. In the cache
    its layers follow those of the text tower: `cache_offset` is the number of these.
    """

    config: CoCaDecoderConfig
    base_model_prefix = "multimodal_decoder"
    input_modalities = ("text", "image")
    _can_record_outputs = {
        "attentions": OutputRecorder(Attention, index=1),
        "cross_attentions": OutputRecorder(CrossAttention, index=1),
    }

    def __init__(self, config: CoCaDecoderConfig, cache_offset: int = 0):
        super().__init__(config)
        indices = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(
            [ResidualAttentionBlock(config, i, is_causal=True, cache_offset=cache_offset) for i in indices]
        )
        self.cross_attention_layers = nn.ModuleList([ResidualCrossAttentionBlock(config, i) for i in indices])
        self.final_layer_norm = norm_layer(config, config.hidden_size)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        inputs_embeds: torch.Tensor,
        image_hidden_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        cache: CoCaCache | None = None,
        past_key_values: CoCaCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Decodes the text tower's tokens.

        Args:
            inputs_embeds: (rows, length, hidden_size), the text tower's `last_hidden_state`.
            image_hidden_states: (images, tokens, hidden_size); rows is a multiple of images, those of an image side by
                side. `None` once `cache` holds their keys and values.
            attention_mask: what `create_causal_mask` made for these tokens before the text tower saw them; without a
                cache also (rows, length), 0 on padding.
            cache: of the tokens before, to which these are added.
            past_key_values: the name of `cache` before transformers 5.24.

        Returns:
            `last_hidden_state` (rows, length, hidden_size), normalised; on request `hidden_states`, `attentions` and
            `cross_attentions`.
        """
        cache = self.cache_argument(cache, past_key_values)
        self_attention_cache = None
        if cache is None:
            attention_mask = create_causal_mask(
                config=self.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask, **named_cache(None)
            )
        else:
            self_attention_cache = cache.self_attention_cache
        # Not recorded by transformers, which would begin with the input of the first cross-attention.
        hidden_states, layer_inputs = inputs_embeds, []
        for layer, cross_attention_layer in zip(self.layers, self.cross_attention_layers, strict=True):
            layer_inputs.append(hidden_states)
            hidden_states = layer(hidden_states, attention_mask, cache=self_attention_cache, **kwargs)
            hidden_states = cross_attention_layer(hidden_states, image_hidden_states, cache=cache, **kwargs)
        hidden_states = self.final_layer_norm(hidden_states)
        output_hidden_states = kwargs.get("output_hidden_states", self.config.output_hidden_states)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states,
            **named_cache(cache),
            hidden_states=(*layer_inputs, hidden_states) if output_hidden_states else None,
        )
