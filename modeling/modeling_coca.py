"""CoCa, a dual model that also captions: its decoder and the whole.

open_clip: `CoCa` in `coca_model.py`, `MultimodalTransformer` in `transformer.py`.
"""

import torch
from torch import nn
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ..configuration.configuration_coca import CoCaConfig, CoCaDecoderConfig
from ..configuration.configuration_modern_decoder import CoCaModernDecoderConfig
from .modeling_captioning import CaptioningCache, CaptioningModel
from .modeling_layers import (
    Attention,
    CrossAttention,
    ModernBlock,
    ModernCrossAttentionBlock,
    ResidualAttentionBlock,
    ResidualCrossAttentionBlock,
    norm_layer,
    rotation_of,
    run_modern_layers,
)
from .modeling_open_clip import OpenClipForImageClassification, OpenClipModel
from .modeling_pretrained import OpenClipPreTrainedModel, positions_of, select_hidden_states
from .transformers_compat import named_cache


class CoCaDecoderModel(OpenClipPreTrainedModel):
    """CoCa's multimodal decoder: continues the text tower's tokens, attending to the image.

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
        self.layers, self.cross_attention_layers = self.build_layers(config, cache_offset)
        self.final_layer_norm = norm_layer(config, config.hidden_size)
        self.post_init()

    @staticmethod
    def build_layers(config: CoCaDecoderConfig, cache_offset: int) -> tuple[nn.ModuleList, nn.ModuleList]:
        """The layers of self-attention, and those of cross-attention."""
        indices = range(config.num_hidden_layers)
        layers = [ResidualAttentionBlock(config, i, is_causal=True, cache_offset=cache_offset) for i in indices]
        return nn.ModuleList(layers), nn.ModuleList([ResidualCrossAttentionBlock(config, i) for i in indices])

    def run_layers(
        self,
        hidden_states: torch.Tensor,
        image_hidden_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        cache: CaptioningCache | None,
        position_ids: torch.Tensor | None,
        **kwargs,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run the layers, with the arguments of `forward`; their output, and their inputs."""
        # Not recorded by transformers, which would begin with the input of the first cross-attention.
        layer_inputs = []
        self_attention_cache = None if cache is None else cache.self_attention_cache
        for layer, cross_attention_layer in zip(self.layers, self.cross_attention_layers, strict=True):
            layer_inputs.append(hidden_states)
            hidden_states = layer(hidden_states, attention_mask, cache=self_attention_cache, **kwargs)
            hidden_states = cross_attention_layer(hidden_states, image_hidden_states, cache=cache, **kwargs)
        return hidden_states, layer_inputs

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        inputs_embeds: torch.Tensor,
        image_hidden_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        cache: CaptioningCache | None = None,
        past_key_values: CaptioningCache | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Decode the text tower's tokens.

        Args:
            inputs_embeds: (rows, length, hidden_size), the text tower's `last_hidden_state`.
            image_hidden_states: (images, tokens, hidden_size); rows is a multiple of images, those of an image side by
                side. `None` once `cache` holds their keys and values.
            attention_mask: what `create_causal_mask` made for these tokens before the text tower saw them; without a
                cache also (rows, length), 0 on padding.
            cache: of the tokens before, to which these are added.
            past_key_values: the name of `cache` before transformers 5.24.
            position_ids: (rows, length), by default counted from the first token; for layers with rotary positions,
                as other tokens have theirs from the text tower.

        Returns:
            `last_hidden_state` (rows, length, hidden_size), normalised; on request `hidden_states`, `attentions` and
            `cross_attentions`.
        """
        self.check_kwargs(kwargs)
        cache = self.cache_argument(cache, past_key_values)
        if cache is None:
            attention_mask = create_causal_mask(
                config=self.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask, **named_cache(None)
            )
        hidden_states, layer_inputs = self.run_layers(
            inputs_embeds, image_hidden_states, attention_mask, cache, position_ids, **kwargs
        )
        hidden_states = self.final_layer_norm(hidden_states)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states,
            **named_cache(cache),
            hidden_states=select_hidden_states(
                (*layer_inputs, hidden_states), kwargs.get("output_hidden_states", self.config.output_hidden_states)
            ),
        )


class CoCaModernDecoderModel(CoCaDecoderModel):
    """CoCa's multimodal decoder with the layers of modern text towers, some of which attend to the image inside.

    open_clip 4: `ModernMultimodalTransformer`.
    """

    config: CoCaModernDecoderConfig

    @staticmethod
    def build_layers(config: CoCaModernDecoderConfig, cache_offset: int) -> tuple[nn.ModuleList, nn.ModuleList]:
        layers = [
            ModernBlock(config, i, is_causal=True, cache_offset=cache_offset) for i in range(config.num_hidden_layers)
        ]
        crossings = [ModernCrossAttentionBlock(config, i) for i, _ in enumerate(config.cross_attention_layers or ())]
        return nn.ModuleList(layers), nn.ModuleList(crossings)

    def run_layers(self, hidden_states, image_hidden_states, attention_mask, cache, position_ids, **kwargs):
        if position_ids is None:
            position_ids = torch.arange(hidden_states.shape[1], device=hidden_states.device).unsqueeze(0)
            if cache is not None:  # whose first layers, the text tower's, have these tokens already
                position_ids = position_ids + cache.get_seq_length(self.layers[0].self_attn.layer_idx)
        return run_modern_layers(
            self.layers,
            dict(zip(self.config.cross_attention_layers or (), self.cross_attention_layers, strict=True)),
            hidden_states,
            image_hidden_states,
            attention_mask,
            cache,
            rotation_of(self.config, position_ids, hidden_states.dtype),
            **kwargs,
        )


# `model_type` of a decoder's configuration -> its class.
_DECODERS = {model.config_class.model_type: model for model in (CoCaDecoderModel, CoCaModernDecoderModel)}


class CoCaModel(CaptioningModel):
    """CoCa (https://arxiv.org/abs/2205.01917): contrastive embeddings and captions from one pass.

    The causal stack is the text tower's layers followed by the multimodal decoder's. Departure from open_clip: logits
    are given for every input token, also the last.
    """

    config: CoCaConfig

    def build_decoder(self) -> CoCaDecoderModel:
        config = self.config.multimodal_config
        return _DECODERS[config.model_type]._from_config(
            config, cache_offset=self.config.text_config.num_hidden_layers
        )

    def text_attention_mask(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: CaptioningCache,
        query_length: int,
    ) -> torch.Tensor | None:
        # open_clip's text tower hides the token behind each padding id, also behind one that was generated: a step
        # that only sees the newest token cannot know. Steps that are compiled always have this mask, which then is
        # the same graph for all, and nothing to wait for.
        if not getattr(self.config.text_config, "embed_cls", False):
            return None
        # Ids on the meta device have no values to look at.
        is_pad = input_ids == self.config.text_config.pad_token_id
        if not cache.is_compileable and (input_ids.is_meta or not is_pad.any()):
            return None
        visible = self.text_model.key_mask(input_ids, attention_mask)[:, : input_ids.shape[1]]
        return create_causal_mask(
            config=self.config,
            inputs_embeds=torch.empty((len(input_ids), query_length, 0), dtype=self.dtype, device=input_ids.device),
            attention_mask=visible,
            **named_cache(cache.self_attention_cache),
        )

    def whole_text_mask(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        text_config = self.config.text_config
        if text_config.model_type != "open_clip_modern_text" or text_config.is_causal:
            return attention_mask
        # This tower takes for padding what the mask says; open_clip, while it captions, what the id says.
        return attention_mask * (input_ids != text_config.pad_token_id)

    def decode_all(self, input_ids, image_hidden_states, position_ids, attention_mask, inputs_embeds, **kwargs):
        text_outputs = self.text_model(
            input_ids if inputs_embeds is None else None,
            attention_mask,
            position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        # open_clip's decoder has no padding mask: behind a text there is nothing to predict.
        decoder_mask = None if attention_mask is None else attention_mask.cumsum(-1) > 0
        if position_ids is None and attention_mask is not None:
            position_ids = positions_of(attention_mask)
        decoder_outputs = self.multimodal_decoder(
            text_outputs.last_hidden_state,
            image_hidden_states,
            attention_mask=decoder_mask,
            position_ids=position_ids,
            **kwargs,
        )
        return text_outputs, decoder_outputs

    def decode_next(
        self,
        input_ids,
        image_hidden_states,
        position_ids,
        attention_mask,
        inputs_embeds,
        text_attention_mask,
        cache,
        **kwargs,
    ):
        text_outputs = self.text_model(
            input_ids if inputs_embeds is None else None,
            attention_mask if text_attention_mask is None else text_attention_mask,
            position_ids,
            inputs_embeds=inputs_embeds,
            cache=cache.self_attention_cache,
            **kwargs,
        )
        decoder_outputs = self.multimodal_decoder(
            text_outputs.last_hidden_state,
            image_hidden_states,
            attention_mask=attention_mask,
            cache=cache,
            position_ids=position_ids,
            **kwargs,
        )
        return text_outputs, decoder_outputs


class CoCaForConditionalGeneration(CoCaModel):
    """CoCa under the name that captioning classes of transformers have; the same weights and methods."""


class CoCaForZeroShotImageClassification(OpenClipModel):
    """CoCa's towers without its decoder, as a dual model: compares any number of images and texts."""

    config: CoCaConfig
    _keys_to_ignore_on_load_unexpected = [r"^multimodal_decoder\.", r"^lm_head\."]


class CoCaForImageClassification(OpenClipForImageClassification):
    """The vision tower of a CoCa with a linear classifier on its embedding."""

    config: CoCaConfig


__all__ = [
    "CoCaForConditionalGeneration",
    "CoCaForImageClassification",
    "CoCaForZeroShotImageClassification",
    "CoCaModel",
]
