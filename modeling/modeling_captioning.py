"""Common parts of dual models that also caption: their cache, their output, and a model without its decoder.

open_clip: `CoCa` in `coca_model.py`, `MaMMUT` in `mammut_model.py`.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache, StaticCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPooling,
    CausalLMOutputWithCrossAttentions,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging

from ..configuration.configuration_captioning import CaptioningConfig
from .generation_captioning import CaptioningGenerationMixin
from .modeling_open_clip import OpenClipDualModel
from .modeling_pretrained import (
    OpenClipPreTrainedModel,
    check_indices,
    check_one_given,
    check_tensor,
    ids_of_embeddings,
    positions_of,
)
from .transformers_compat import named_cache


logger = logging.get_logger(__name__)


class CaptioningCache(EncoderDecoderCache):
    """Keys and values of the causal stack, a row per sequence, and of cross-attention, a row per *image*.

    Beams and samples share the rows of their image, so that these are never copied or reordered.
    """

    def reorder_cache(self, beam_idx: torch.Tensor):
        """Reorder the sequences by `beam_idx` (rows,); beams never leave their image."""
        if not self.is_compileable:
            self.self_attention_cache.reorder_cache(beam_idx)
            return
        # transformers puts new tensors in place of these, which CUDA graphs know by their addresses.
        on_cpu = beam_idx.device.type == "cpu"
        moved = torch.arange(len(beam_idx), device=beam_idx.device)
        if on_cpu:  # rows and places that stay need no copy; a GPU would have to be waited for
            moved = moved[beam_idx != moved]
        for layer in self.self_attention_cache.layers:
            length = int(layer.get_seq_length()) if on_cpu else layer.max_cache_len
            for states in (layer.keys[:, :, :length], layer.values[:, :, :length]):
                to, source = moved.to(states.device), beam_idx[moved].to(states.device)
                states.index_copy_(0, to, states.index_select(0, source))

    def batch_repeat_interleave(self, repeats: int):
        """Repeat each sequence `repeats` times."""
        self.self_attention_cache.batch_repeat_interleave(repeats)


@dataclass
class CaptioningOutput(CausalLMOutputWithCrossAttentions):
    """Output of [`CaptioningModel`]: transformers' own for captioners, and what a dual model adds.

    Args:
        loss: scalar: the caption loss with `labels`, the contrastive loss with `return_loss=True`, their weighted sum
            with both.
        logits: (rows, length, vocab_size), prediction of the token behind each input token.
        cache: the cache, with `use_cache`; called `past_key_values` before transformers 5.24. A caller's own itself.
        hidden_states: per decoder layer (rows, length, hidden_size), its input first, on request.
        attentions: per decoder layer (rows, heads, length, past + length), on request.
        cross_attentions: per decoder layer (rows, heads, length, image tokens), on request.
        logits_per_image: (images, texts), cosine similarities scaled by `logit_scale.exp()`, plus `logit_bias`.
        logits_per_text: (texts, images), its transpose.
        image_embeds: (images, projection_dim), of length 1; `None` where `image_hidden_states` were passed.
        text_embeds: (texts, projection_dim), of length 1; `None` with a cache.
        image_hidden_states: (images, tokens, hidden_size), what the decoder attends to.
        text_model_output: output of the text tower.
        vision_model_output: output of the vision tower.
    """

    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_hidden_states: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    @property
    def image_outputs(self) -> BaseModelOutputWithPooling | None:
        """`vision_model_output`, by the name that captioners of transformers give it."""
        return self.vision_model_output

    def to_tuple(self) -> tuple:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class CaptioningModel(CaptioningGenerationMixin, OpenClipDualModel):
    """Base of the dual models that also caption: contrastive embeddings and captions from one call.

    A subclass says what its decoder is, and how tokens go through its causal stack. Departure from open_clip: logits
    are given for every input token, also the last.
    """

    config: CaptioningConfig
    # The losses are divided by `num_items_in_batch`, the tokens of a training step, of which a call sees a part.
    accepts_loss_kwargs = True
    _can_compile_fullgraph = True
    _has_seen_labels = False

    def __init__(self, config: CaptioningConfig):
        super().__init__(config)
        self.multimodal_decoder = self.build_decoder()
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # The loss of `labels`, which transformers would otherwise guess from the name of the class.
        self.loss_type = "ForConditionalGeneration"
        # Trainer's label smoothing shifts the labels of classes that it finds here; Auto classes read other entries.
        name = type(self).__name__
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[f"{config.model_type}/{name}"] = name
        self.post_init()
        self.generation_config = self.default_generation_config()

    def build_decoder(self) -> OpenClipPreTrainedModel:
        """The decoder, with new weights, that stands beside the towers."""
        raise NotImplementedError

    def decode_all(
        self,
        input_ids: torch.Tensor,
        image_hidden_states: torch.Tensor,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        **kwargs,
    ) -> tuple[BaseModelOutputWithPooling, BaseModelOutputWithPastAndCrossAttentions]:
        """Embed whole texts and decode them, without a cache; the arguments are those of `forward`.

        Returns:
            The text tower's output, and the decoder's.
        """
        raise NotImplementedError

    def decode_next(
        self,
        input_ids: torch.Tensor,
        image_hidden_states: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        text_attention_mask: torch.Tensor | None,
        cache: CaptioningCache,
        **kwargs,
    ) -> tuple[BaseModelOutputWithPooling | None, BaseModelOutputWithPastAndCrossAttentions]:
        """Decode the tokens behind those of `cache`.

        Args:
            attention_mask: what `create_causal_mask` made for the causal stack.
            text_attention_mask: the same for the text tower's layers, where it differs.

        Returns:
            The text tower's output, if it has one of its own, and the decoder's.
        """
        raise NotImplementedError

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module):
        self.lm_head = value

    def get_submodule(self, target: str) -> nn.Module:
        # PEFT's soft prompts look for token embeddings under BERT's name for them, and else in the first tower alone.
        return self.get_input_embeddings() if target == "embeddings.word_embeddings" else super().get_submodule(target)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_loss: bool | None = None,
        image_hidden_states: torch.Tensor | None = None,
        cache: Cache | None = None,
        text_attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        interpolate_pos_encoding: bool = False,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CaptioningOutput:
        """Embed images and texts and predict each text's next tokens.

        Args:
            input_ids: (rows, length), by default the start of text for each image. Rows is a multiple of the number of
                images, those of an image side by side.
            pixel_values: (images, channels, height, width), normalised as the image processor does.
            attention_mask: (rows, length), 0 on left padding; padding behind a text follows the text tower's own rule.
                With `cache`, (rows, past + length) of the tokens that may be attended to.
            position_ids: (rows, length), by default 0, 1, ... from the first token that is no left padding.
            labels: (rows, length), the ids to predict, -100 where there is nothing to learn: usually `input_ids` with
                -100 for padding; they are shifted here. Padding that `attention_mask` shows is left out anyway, but
                Trainer, which counts labels, weighs the batches of a step by their tokens only where it is -100.
            return_loss: compute the contrastive loss; images and texts must then be pairs.
            image_hidden_states: (images, tokens, hidden_size) instead of `pixel_values`.
            cache: of the tokens before `input_ids`.
            text_attention_mask: the mask of the text tower's layers where it differs from the decoder's; only with
                `cache`, and made by `generate`.
            use_cache: make a cache where none is given, and skip the text embeddings; without effect where the text
                tower is bidirectional.
            logits_to_keep: compute the logits of that many last tokens, or of those indices; 0 for all.
            interpolate_pos_encoding: accept other image sizes than the model's.
            past_key_values: the name of `cache` before transformers 5.24.
            inputs_embeds: (rows, length, width of the text tower) instead of `input_ids`, soft prompts for example:
                what `get_input_embeddings()` makes of ids, without positions. None of them is taken for padding, but
                where `attention_mask` says so.
            kwargs: those of transformers, such as `output_attentions`; among them `shift_labels` (rows, length), which
                replaces `labels` where texts are divided among devices: the id behind each of `input_ids`, or -100.

        Returns:
            [`CaptioningOutput`].

        Raises:
            TypeError: a `cache` of another class than those of transformers.
            ValueError: no image where one is needed, or images and `image_hidden_states` at once, a text that is too
                long, images of another size, `return_loss` with unequal counts, `labels` of another shape than the
                logits, ids and embeddings at once, a cache of other sizes, under two names or under one that is not
                known, or where the text tower is bidirectional or gradient checkpointing would fill it twice.
        """
        # No argument by name, as Trainer expects all of those that have "label" in it in a batch.
        shift_labels = kwargs.pop("shift_labels", None)
        self.check_kwargs(kwargs)
        cache = self.cache_argument(cache, past_key_values)
        vision_outputs = image_embeds = None
        if pixel_values is not None:
            check_one_given(pixel_values=pixel_values, image_hidden_states=image_hidden_states)
            vision_outputs = self.get_image_features(
                pixel_values, interpolate_pos_encoding, return_dict=True, **kwargs
            )
            image_hidden_states = vision_outputs.last_hidden_state
            image_embeds = F.normalize(vision_outputs.pooler_output, dim=-1)
        if inputs_embeds is not None:
            check_one_given(input_ids=input_ids, inputs_embeds=inputs_embeds)
            text_config = self.config.text_config
            input_ids = ids_of_embeddings(inputs_embeds, text_config.token_dim, text_config.pad_token_id)
        given_cache = cache
        cache = self._prepare_cache(cache, use_cache, image_hidden_states)
        input_ids = self._check_inputs(input_ids, image_hidden_states, cache, text_attention_mask)
        if cache is not None and text_attention_mask is None and _is_empty(cache):
            text_attention_mask = self.text_attention_mask(input_ids, attention_mask, cache, input_ids.shape[1])
        inputs = (input_ids, image_hidden_states, position_ids, attention_mask, inputs_embeds)
        if cache is None:
            text_outputs, decoder_outputs = self.decode_all(*inputs, **kwargs)
        else:
            text_outputs, decoder_outputs = self._decode_next(*inputs, text_attention_mask, cache, **kwargs)

        if shift_labels is None and labels is not None:
            shift_labels = _shifted(self.labels_to_learn(labels, attention_mask))
            if (num_items := kwargs.get("num_items_in_batch")) is not None:
                # Trainer counts every label of a step, those of padding too: this batch stands for their share.
                learned, counted = ((each != -100).sum().clamp(min=1) for each in (shift_labels, _shifted(labels)))
                kwargs["num_items_in_batch"] = num_items * (learned / counted)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(decoder_outputs.last_hidden_state[:, kept])
        text_embeds = logits_per_image = None
        if text_outputs is not None and text_outputs.pooler_output is not None:
            text_embeds = F.normalize(text_outputs.pooler_output, dim=-1)
        if image_embeds is not None and text_embeds is not None:
            logits_per_image = self.compute_logits(image_embeds, text_embeds)
        elif return_loss:
            raise ValueError("return_loss=True compares embeddings: pass pixel_values, and no cache.")
        return CaptioningOutput(
            **named_cache(cache if given_cache is None else given_cache),
            loss=self._loss(logits, shift_labels, logits_per_image if return_loss else None, **kwargs),
            logits=logits,
            logits_per_image=logits_per_image,
            logits_per_text=None if logits_per_image is None else logits_per_image.transpose(0, -1),
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            image_hidden_states=image_hidden_states,
            hidden_states=decoder_outputs.hidden_states,
            attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )

    def wrap_cache(self, cache: Cache, image_hidden_states: torch.Tensor | None) -> CaptioningCache:
        """Put a cache for the causal stack, dynamic, static or offloaded, together with one for the images.

        The images' is static where the other one is. Of a caller's `EncoderDecoderCache` both parts are used.

        Raises:
            ValueError: the text tower is bidirectional or has register tokens, or layers or tokens of images do not
                fit in the cache.
        """
        if isinstance(cache, CaptioningCache):
            return cache
        self._check_cache(cache, image_hidden_states)
        if isinstance(cache, EncoderDecoderCache):
            together = CaptioningCache(cache.self_attention_cache, cache.cross_attention_cache)
            together.is_updated = cache.is_updated
            return together
        if image_hidden_states is None or not cache.is_compileable:
            return CaptioningCache(cache, DynamicCache())
        tokens = image_hidden_states.shape[1]
        return CaptioningCache(cache, StaticCache(config=self.multimodal_decoder.config, max_cache_len=tokens))

    def _check_cache(self, cache: Cache, image_hidden_states: torch.Tensor | None):
        if not self.config.can_cache:
            raise ValueError(
                f"The text tower of this model {self.config.cache_obstacle}, and the states of its tokens cannot be "
                "kept: pass all tokens at once, without a cache."
            )
        is_pair = isinstance(cache, EncoderDecoderCache)
        causal_stack, layers = cache.self_attention_cache if is_pair else cache, self.config.num_hidden_layers
        # Without a configuration, a cache makes its layers when it needs them.
        if causal_stack.layer_class_to_replicate is None and len(causal_stack.layers) < layers:
            raise ValueError(
                f"The cache has {len(causal_stack.layers)} layers, and the text tower and the decoder have {layers}: "
                "make it with config=model.config."
            )
        for index, layer in enumerate(causal_stack.layers[:layers] if causal_stack.get_seq_length() else ()):
            config = self.config.layer_config(index)
            heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
            if layer.keys is not None and (layer.keys.shape[1], layer.keys.shape[3]) != (heads, width):
                raise ValueError(
                    f"Layer {index} of the cache has {layer.keys.shape[1]} heads of width {layer.keys.shape[3]}, and "
                    f"this model {heads} of width {width}: pass a cache that this model filled."
                )
        if image_hidden_states is None or not (is_pair and cache.cross_attention_cache.is_compileable):
            return
        tokens = image_hidden_states.shape[1]
        lengths = {layer.max_cache_len for layer in cache.cross_attention_cache.layers}
        if lengths != {tokens}:
            raise ValueError(
                f"The static cache for images has max_cache_len={', '.join(map(str, lengths))}; expected {tokens}, "
                "the tokens of an image, as nothing hides places that stay empty."
            )

    def _check_lengths(self, cache: CaptioningCache, input_ids: torch.Tensor, *masks: torch.Tensor | None):
        """Raise `ValueError` where the cache and the tokens are of other texts or too many, or `masks` of others."""
        if cache.is_compileable:  # whose masks cover places that are still empty
            return
        for layer in cache.self_attention_cache.layers[:1]:
            keys = getattr(layer, "keys", None)
            if keys is not None and keys.ndim == 4 and len(keys) != len(input_ids):
                raise ValueError(
                    f"Got {len(input_ids)} texts, and the cache is of {len(keys)}: pass tokens of each of these."
                )
        length = input_ids.shape[1]
        past, limit = cache.get_seq_length(), self.config.text_config.max_position_embeddings
        if past + length > limit:
            raise ValueError(
                f"Got {length} tokens behind {past} in the cache, and the model takes at most {limit} in all."
            )
        for mask in masks:
            if mask is not None and mask.shape[-1] != past + length:
                raise ValueError(
                    f"The attention_mask is of {mask.shape[-1]} tokens, expected one of {past + length}: {past} in "
                    f"the cache and the {length} given."
                )

    def text_attention_mask(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: CaptioningCache,
        query_length: int,
    ) -> torch.Tensor | None:
        """Make the mask of the text tower's layers for a step with a cache.

        Args:
            input_ids: (rows, past + length), all tokens so far.
            attention_mask: (rows, past + length), 0 on left padding.
            cache: of the past tokens.
            query_length: number of new tokens.

        Returns:
            A mask as transformers' mask functions make it; `None` where the decoder's serves the text tower too.
        """
        return None

    def whole_text_mask(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The `attention_mask` (rows, length) of a step of `generate` without a cache.

        Args:
            input_ids: (rows, length), all tokens so far.
            attention_mask: (rows, length), 0 on left padding.
        """
        return attention_mask

    def _prepare_cache(
        self, cache: Cache | None, use_cache: bool | None, image_hidden_states: torch.Tensor | None
    ) -> CaptioningCache | None:
        if cache is None and use_cache and self.config.can_cache:
            if self.is_checkpointing:
                logger.warning_once("Gradient checkpointing computes layers twice: no cache is made.")
                return None
            cache = DynamicCache(config=self.config)
        return None if cache is None else self.wrap_cache(cache, image_hidden_states)

    def _check_inputs(self, input_ids, image_hidden_states, cache, text_attention_mask) -> torch.Tensor:
        if cache is None and text_attention_mask is not None:
            raise ValueError("text_attention_mask is only read with a cache: pass attention_mask.")
        if image_hidden_states is None:
            if cache is None or not cache.is_updated:
                raise ValueError(
                    f"{type(self).__name__} needs pixel_values or image_hidden_states, got neither: get_text_features "
                    "embeds texts alone. Of caches only an EncoderDecoderCache, such as use_cache=True makes, keeps "
                    "keys and values of images too."
                )
            return input_ids
        check_tensor("image_hidden_states", image_hidden_states)
        shape, width = tuple(image_hidden_states.shape), self.config.vision_config.token_dim
        if len(shape) != 3 or shape[2] != width or 0 in shape:
            raise ValueError(
                f"image_hidden_states have shape {shape}, the model expects (images, tokens, {width}), the "
                "last_hidden_state that get_image_features gives."
            )
        images = shape[0]
        if input_ids is None:
            return torch.full((images, 1), self.config.bos_token_id, device=image_hidden_states.device)
        check_tensor("input_ids", input_ids)
        if input_ids.shape[0] % images:
            raise ValueError(
                f"{type(self).__name__} predicts each text's tokens from its image: {input_ids.shape[0]} texts cannot "
                f"be shared out to {images} images. To compare any number of both, load the folder with "
                "AutoModelForZeroShotImageClassification, or use get_image_features and get_text_features."
            )
        return input_ids

    def causal_mask(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache | None = None
    ) -> torch.Tensor | None:
        """Make the mask of the causal stack's layers, before any of them adds to `cache`."""
        return create_causal_mask(
            config=self.config,
            # On the device of the ids: that of offloaded weights is "meta".
            inputs_embeds=torch.empty((*input_ids.shape, 0), dtype=self.dtype, device=input_ids.device),
            attention_mask=attention_mask,
            **named_cache(cache),
        )

    def _decode_next(
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
        self._check_lengths(cache, input_ids, attention_mask, text_attention_mask)
        decoder_mask = self.causal_mask(input_ids, attention_mask, cache.self_attention_cache)
        if position_ids is None and attention_mask is not None:
            position_ids = positions_of(attention_mask)[:, -input_ids.shape[1] :]
        return self.decode_next(
            input_ids,
            image_hidden_states,
            position_ids,
            decoder_mask,
            inputs_embeds,
            text_attention_mask,
            cache,
            **kwargs,
        )

    def labels_to_learn(self, labels, attention_mask) -> torch.Tensor | None:
        """`labels` with -100 for padding, and for the first token of a text, which left padding cannot predict."""
        if labels is None:
            return None
        self._warn_of_endless(labels)
        if attention_mask is None:
            return labels
        is_predicted = (attention_mask != 0) & (attention_mask.cumsum(-1) > 1)
        return labels.masked_fill(~is_predicted[:, -labels.shape[1] :], -100)

    def _warn_of_endless(self, labels: torch.Tensor):
        # Once, as looking at values waits for the device.
        if not self.training or self._has_seen_labels or torch.compiler.is_compiling():
            return
        self._has_seen_labels = True
        eos_token_id = self.config.eos_token_id
        if eos_token_id is not None and not torch.isin(labels, labels.new_tensor(eos_token_id)).any(dim=1).all():
            logger.warning_once(
                f"There are labels without an end-of-text token (id {eos_token_id}): a model that learns from them "
                "does not learn where captions end. processor(images=..., text=captions, return_labels=True) makes "
                "labels of whole captions, where text beside images is else a prompt to continue."
            )

    def _loss(self, logits, shift_labels, logits_per_image, num_items_in_batch=None, **kwargs) -> torch.Tensor | None:
        losses, share = [], 1
        if shift_labels is not None:
            if shift_labels.shape != logits.shape[:2]:
                raise ValueError(
                    f"labels have shape {tuple(shift_labels.shape)}, the logits are for {tuple(logits.shape[:2])} "
                    "tokens: pass input_ids of the shape of labels, whose tokens those predict, and no logits_to_keep."
                )
            check_indices("labels", shift_labels.masked_fill(shift_labels == -100, 0), self.config.vocab_size)
            kwargs |= {"vocab_size": self.config.vocab_size, "num_items_in_batch": num_items_in_batch}
            caption_loss = self.loss_function(logits, None, shift_labels=shift_labels.contiguous(), **kwargs)
            losses.append((self.config.caption_loss_weight, caption_loss))
            if num_items_in_batch is not None:
                # Of the step's captions, as the sum over tokens that the caption loss is.
                share = (shift_labels != -100).sum() / num_items_in_batch
        elif num_items_in_batch is not None and logits_per_image is not None:
            logger.warning_once(
                "Trainer computes the caption loss itself, from label_smoothing_factor or compute_loss_func: label "
                "smoothing leaves out the contrastive loss of return_loss=True. Train with one of the two."
            )
        if logits_per_image is not None:
            contrastive_loss = share * self.contrastive_loss(logits_per_image)
            losses.append((self.config.contrastive_loss_weight, contrastive_loss))
        if len(losses) == 2:
            return sum(weight * loss for weight, loss in losses)
        return losses[0][1] if losses else None


def _shifted(labels: torch.Tensor) -> torch.Tensor:
    """`labels` (rows, length) of the tokens themselves, as those of the tokens before."""
    return F.pad(labels[:, 1:], (0, 1), value=-100)


def _is_empty(cache: CaptioningCache) -> bool:
    # Compiled steps are given their mask: that a static cache is empty, only its values tell.
    return not torch.compiler.is_compiling() and bool(cache.get_seq_length() == 0)
