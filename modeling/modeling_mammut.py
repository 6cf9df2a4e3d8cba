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
from .modeling_captioning import CaptioningCache, CaptioningModel
from .modeling_layers import Attention, CrossAttention, ResidualCrossAttentionBlock
from .modeling_mammut_text import MaMMUTTextModel
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
    _can_record_outputs = {
        "attentions": OutputRecorder(Attention, index=1),  # of the text tower
        "cross_attentions": OutputRecorder(CrossAttention, index=1),
    }

    def __init__(self, config: MaMMUTDecoderConfig, image_token_dim: int):
        super().__init__(config)
        self.image_projection = nn.Linear(image_token_dim, config.hidden_size, bias=False)
        self.cross_attention_layers = nn.ModuleList(
            [ResidualCrossAttentionBlock(config, i) for i in range(config.num_hidden_layers)]
        )
        self.post_init()

    @capture_outputs
    def forward(
        self,
        inputs_embeds: torch.Tensor,
        image_hidden_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        cache: CaptioningCache | None = None,
        past_key_values: CaptioningCache | None = None,
        *,
        text_model: MaMMUTTextModel,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Decode tokens with the layers of a text tower, causally.

        Args:
            inputs_embeds: (rows, length, hidden_size), tokens with positions.
            image_hidden_states: (images, tokens, image_token_dim); rows is a multiple of images, those of an image
                side by side. `None` once `cache` holds their keys and values.
            attention_mask: what `create_causal_mask` made for these tokens.
            cache: of the tokens before, to which these are added.
            past_key_values: the name of `cache` before transformers 5.24.
            text_model: the text tower.

        Returns:
            `last_hidden_state` (rows, length, hidden_size), normalised; on request `hidden_states`, `attentions` and
            `cross_attentions`.
        """
        self.check_kwargs(kwargs)
        cache = self.cache_argument(cache, past_key_values)
        self_attention_cache = None if cache is None else cache.self_attention_cache
        if kwargs.get("output_attentions", self.config.output_attentions):
            maybe_install_capturing_hooks(text_model)
        if image_hidden_states is not None and (cache is None or not cache.is_updated.get(0)):
            image_hidden_states = self.image_projection(image_hidden_states)
        cross_attention_layers = dict(
            zip(self.config.cross_attention_layers, self.cross_attention_layers, strict=True)
        )
        hidden_states, layer_inputs = inputs_embeds, []
        for index, layer in enumerate(text_model.encoder.layers):
            layer_inputs.append(hidden_states)
            hidden_states = layer(hidden_states, attention_mask, cache=self_attention_cache, causal=True, **kwargs)
            if index in cross_attention_layers:
                attend_to_image = cross_attention_layers[index]
                hidden_states = attend_to_image(hidden_states, image_hidden_states, cache=cache, **kwargs)
        hidden_states = text_model.final_layer_norm(hidden_states)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states,
            **named_cache(cache),
            hidden_states=select_hidden_states(
                (*layer_inputs, hidden_states), kwargs.get("output_hidden_states", self.config.output_hidden_states)
            ),
        )


class MaMMUTModel(CaptioningModel):
    """MaMMUT (https://arxiv.org/abs/2303.16839): a text tower that is used twice.

    Without cross-attention and causality it embeds texts; with both, its layers predict captions.
    """

    config: MaMMUTConfig
    # Not to be moved from device to device as tensors are that one module hands to another.
    _skip_keys_device_placement = [*(CaptioningModel._skip_keys_device_placement or ()), "text_model"]

    def build_decoder(self) -> MaMMUTDecoderModel:
        return MaMMUTDecoderModel._from_config(
            self.config.multimodal_config, image_token_dim=self.config.vision_config.token_dim
        )

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
        decoder_outputs = self._decode(
            input_ids, image_hidden_states, position_ids, mask, inputs_embeds, cache=None, **kwargs
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
        if position_ids is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
            position_ids = positions.unsqueeze(0) + cache.get_seq_length()
        return None, self._decode(
            input_ids, image_hidden_states, position_ids, attention_mask, inputs_embeds, cache=cache, **kwargs
        )

    def _decode(
        self, input_ids, image_hidden_states, position_ids, attention_mask, inputs_embeds, **kwargs
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        hidden_states = self.text_model.embeddings(input_ids, position_ids, inputs_embeds=inputs_embeds)
        return self.multimodal_decoder(
            hidden_states, image_hidden_states, attention_mask, text_model=self.text_model, **kwargs
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
