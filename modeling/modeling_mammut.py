"""MaMMUT, a dual model whose text tower also captions: its cross-attention and the whole.

open_clip: `MaMMUT` in `mammut_model.py` and `MultimodalTransformer` in `transformer.py` of LAION's `open_clip_mammut`.
"""

import torch
from torch import nn
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.output_capturing import OutputRecorder, capture_outputs, maybe_install_capturing_hooks

from ..configuration.configuration_mammut import MaMMUTConfig, MaMMUTDecoderConfig
from ..configuration.configuration_modern_decoder import MaMMUTModernDecoderConfig
from .modeling_captioning import CaptioningCache, CaptioningModel
from .modeling_layers import (
    Attention,
    CrossAttention,
    CrossAttentionBlock,
    ModernCrossAttentionBlock,
    ResidualCrossAttentionBlock,
    rotation_of,
    run_modern_layers,
)
from .modeling_open_clip import OpenClipForImageClassification, OpenClipModel
from .modeling_pretrained import OpenClipPreTrainedModel, positions_of, select_hidden_states
from .transformers_compat import CACHE_NAME, named_cache


class MaMMUTDecoderModel(OpenClipPreTrainedModel):
    """The layers of cross-attention by which MaMMUT's text tower captions, and the projection of image tokens.

    Args:
        config: configuration of the layers.
        image_token_dim: width of the image tokens.
    """

    config: MaMMUTDecoderConfig
    base_model_prefix = "multimodal_decoder"
    input_modalities = ("text", "image")
    block_class: type[CrossAttentionBlock] = ResidualCrossAttentionBlock
    _can_record_outputs = {
        "attentions": OutputRecorder(Attention, index=1),  # of the text tower
        "cross_attentions": OutputRecorder(CrossAttention, index=1),
    }

    def __init__(self, config: MaMMUTDecoderConfig, image_token_dim: int):
        super().__init__(config)
        self.image_projection = nn.Linear(image_token_dim, config.hidden_size, bias=False)
        self.cross_attention_layers = nn.ModuleList(
            [self.block_class(config, i) for i in range(config.num_hidden_layers)]
        )
        self.post_init()

    @property
    def crossings(self) -> dict[int, CrossAttentionBlock]:
        """Index of a layer of the text tower -> the cross-attention behind it, or inside."""
        return dict(zip(self.config.cross_attention_layers, self.cross_attention_layers, strict=True))

    def run_layers(
        self,
        text_model: OpenClipPreTrainedModel,
        input_ids: torch.Tensor,
        inputs_embeds: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        image_hidden_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        cache: CaptioningCache | None,
        **kwargs,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Embed and run the text tower's layers, with the arguments of `forward`; their output, and their inputs."""
        hidden_states = text_model.embeddings(input_ids, position_ids, inputs_embeds=inputs_embeds)
        self_attention_cache = None if cache is None else cache.self_attention_cache
        crossings, layer_inputs = self.crossings, []
        for index, layer in enumerate(text_model.encoder.layers):
            layer_inputs.append(hidden_states)
            hidden_states = layer(hidden_states, attention_mask, cache=self_attention_cache, causal=True, **kwargs)
            if index in crossings:
                hidden_states = crossings[index](hidden_states, image_hidden_states, cache=cache, **kwargs)
        return hidden_states, layer_inputs

    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor,
        image_hidden_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        cache: CaptioningCache | None = None,
        past_key_values: CaptioningCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        *,
        text_model: OpenClipPreTrainedModel,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Decode tokens with the layers of a text tower, causally.

        Args:
            input_ids: (rows, length).
            image_hidden_states: (images, tokens, image_token_dim); rows is a multiple of images, those of an image
                side by side. `None` once `cache` holds their keys and values.
            attention_mask: what `create_causal_mask` made for these tokens.
            cache: of the tokens before, to which these are added.
            past_key_values: the name of `cache` before transformers 5.24.
            inputs_embeds: (rows, length, hidden_size), tokens without positions, instead of what `input_ids` stand
                for.
            position_ids: (rows, length), by default counted from the first token.
            text_model: the text tower.

        Returns:
            `last_hidden_state` (rows, length, hidden_size), normalised; on request `hidden_states`, `attentions` and
            `cross_attentions`.
        """
        self.check_kwargs(kwargs)
        cache = self.cache_argument(cache, past_key_values)
        if kwargs.get("output_attentions", self.config.output_attentions):
            maybe_install_capturing_hooks(text_model)
        if image_hidden_states is not None and (cache is None or not cache.is_updated.get(0)):
            image_hidden_states = self.image_projection(image_hidden_states)
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
            if cache is not None:
                position_ids = position_ids + cache.get_seq_length()
        hidden_states, layer_inputs = self.run_layers(
            text_model, input_ids, inputs_embeds, position_ids, image_hidden_states, attention_mask, cache, **kwargs
        )
        hidden_states = text_model.final_layer_norm(hidden_states)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states,
            **named_cache(cache),
            hidden_states=select_hidden_states(
                (*layer_inputs, hidden_states), kwargs.get("output_hidden_states", self.config.output_hidden_states)
            ),
        )


class MaMMUTModernDecoderModel(MaMMUTDecoderModel):
    """The cross-attention inside the layers of a modern text tower, and the projection of image tokens.

    open_clip 4: `ModernMultimodalDecoder`.
    """

    config: MaMMUTModernDecoderConfig
    block_class = ModernCrossAttentionBlock

    def run_layers(
        self,
        text_model,
        input_ids,
        inputs_embeds,
        position_ids,
        image_hidden_states,
        attention_mask,
        cache,
        **kwargs,
    ):
        hidden_states = text_model.embeddings(input_ids, inputs_embeds)
        return run_modern_layers(
            text_model.encoder.layers,
            self.crossings,
            hidden_states,
            image_hidden_states,
            attention_mask,
            cache,
            rotation_of(text_model.config, position_ids, hidden_states.dtype),
            causal=True,
            **kwargs,
        )


# `model_type` of a decoder's configuration -> its class.
_DECODERS = {model.config_class.model_type: model for model in (MaMMUTDecoderModel, MaMMUTModernDecoderModel)}


class MaMMUTModel(CaptioningModel):
    """MaMMUT (https://arxiv.org/abs/2303.16839): a text tower that is used twice.

    Without cross-attention and causality it embeds texts; with both, its layers predict captions.
    """

    config: MaMMUTConfig
    _tied_weights_keys = {"lm_head.weight": "text_model.embeddings.token_embedding.weight"}
    # Not to be moved from device to device as tensors are that one module hands to another.
    _skip_keys_device_placement = [*(CaptioningModel._skip_keys_device_placement or ()), "text_model"]

    def build_decoder(self) -> MaMMUTDecoderModel:
        config = self.config.multimodal_config
        return _DECODERS[config.model_type]._from_config(config, image_token_dim=self.config.vision_config.token_dim)

    def create_masks_for_generate(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, **kwargs):
        """Make the causal mask of a step over a static cache, which transformers calls by this name.

        Its own function follows the text tower's configuration in early releases, which is that of embedding texts.
        """
        cache = kwargs.get(CACHE_NAME)
        return create_causal_mask(
            config=self.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask, **named_cache(cache)
        )

    def decode_all(self, input_ids, image_hidden_states, position_ids, attention_mask, inputs_embeds, **kwargs):
        text_outputs = self.text_model(
            input_ids if inputs_embeds is None else None,
            attention_mask,
            position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        if position_ids is None and attention_mask is not None:
            position_ids = positions_of(attention_mask)
        # Behind a text there is nothing to predict: only padding before it is hidden.
        mask = self.causal_mask(input_ids, None if attention_mask is None else attention_mask.cumsum(-1) > 0)
        decoder_outputs = self.multimodal_decoder(
            input_ids,
            image_hidden_states,
            mask,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            text_model=self.text_model,
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
        return None, self.multimodal_decoder(
            input_ids,
            image_hidden_states,
            attention_mask,
            cache,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            text_model=self.text_model,
            **kwargs,
        )


class MaMMUTForConditionalGeneration(MaMMUTModel):
    """MaMMUT under the name that captioning classes of transformers have; the same weights and methods."""


class MaMMUTForZeroShotImageClassification(OpenClipModel):
    """MaMMUT's towers without cross-attention, as a dual model: compares any number of images and texts."""

    config: MaMMUTConfig
    _keys_to_ignore_on_load_unexpected = [r"^multimodal_decoder\.", r"^lm_head\."]


class MaMMUTForImageClassification(OpenClipForImageClassification):
    """The vision tower of a MaMMUT with a linear classifier on its embedding."""

    config: MaMMUTConfig


__all__ = [
    "MaMMUTForConditionalGeneration",
    "MaMMUTForImageClassification",
    "MaMMUTForZeroShotImageClassification",
    "MaMMUTModel",
]
