"""Text transformer tower (open_clip: `TextTransformer` in `transformer.py`)."""

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import is_flash_attention_requested, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..configuration.configuration_text import OpenClipTextConfig
from .modeling_layers import Encoder, norm_layer
from .modeling_pretrained import (
    COMPOSITE_KEYS,
    OpenClipPreTrainedModel,
    check_ids,
    check_indices,
    check_input_ids,
    check_one_given,
    ids_of_embeddings,
    positions_of,
)
from .transformers_compat import named_cache


def resize_text_position_embedding(position_embedding: torch.Tensor, num_positions: int) -> torch.Tensor:
    """Resize a table (positions, hidden_size) linearly to `num_positions` (open_clip: `resize_text_pos_embed`)."""
    resized = nn.functional.interpolate(
        position_embedding.float().T.unsqueeze(0), size=num_positions, mode="linear", align_corners=False
    )
    return resized[0].T.to(position_embedding.dtype)


class OpenClipTextEmbeddings(nn.Module):
    """Tokens with positions, and CoCa's class token behind them."""

    def __init__(self, config: OpenClipTextConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        num_positions = config.max_position_embeddings + config.embed_cls
        self.position_embedding = nn.Embedding(num_positions, config.hidden_size)
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size)) if config.embed_cls else None

    def initialize(self, std: float):
        if self.class_embedding is not None:
            init.normal_(self.class_embedding, std=std)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        append_class_token: bool = False,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(batch, length) of ids -> (batch, length, hidden_size), one token longer with the class token.

        With `inputs_embeds`, tokens that are already embedded, the ids are only counted.
        """
        if inputs_embeds is None:
            check_ids(input_ids, self.token_embedding, self.config.vocab_size)
        hidden_states = self.token_embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is not None:
            check_indices("position_ids", position_ids, self.config.max_position_embeddings)
        else:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        if append_class_token:
            class_token = self.class_embedding.to(hidden_states.dtype).expand(input_ids.shape[0], 1, -1)
            hidden_states = torch.cat([hidden_states, class_token], dim=1)
            position_ids = torch.cat([position_ids, position_ids[:, -1:] + 1], dim=1)
        return hidden_states + self.position_embedding(position_ids)


class OpenClipTextModel(OpenClipPreTrainedModel):
    """The text transformer of CLIP and CoCa (https://arxiv.org/abs/2103.00020, https://arxiv.org/abs/2205.01917).

    Reads as four steps: embed, encode, pool, project. Keys of open_clip's `text.`, with separate attention
    projections. A tower that hides padding (CoCa's) runs `sdpa` where FlashAttention is asked for.
    """

    config: OpenClipTextConfig
    base_model_prefix = "text_model"
    input_modalities = ("text",)
    _input_embed_layer = "token_embedding"
    _no_split_modules = [*OpenClipPreTrainedModel._no_split_modules, OpenClipTextEmbeddings.__name__]
    _keys_to_ignore_on_load_unexpected = [r"^vision_model\.", *COMPOSITE_KEYS]

    def __init__(self, config: OpenClipTextConfig):
        super().__init__(config)
        self.embeddings = OpenClipTextEmbeddings(config)
        self.encoder = self.build_encoder(config)
        self.final_layer_norm = norm_layer(config, config.hidden_size)
        if config.proj_type == "none":
            self.projection = nn.Identity()
        else:
            self.projection = nn.Linear(config.hidden_size, config.projection_dim, bias=config.proj_bias)
        self.post_init()

    @staticmethod
    def build_encoder(config: OpenClipTextConfig) -> Encoder:
        """The layers of the tower."""
        return Encoder(config, is_causal=config.is_causal)

    def set_input_embeddings(self, value: nn.Module):
        # Tokens added behind the end of text, once the last of the vocabulary, have higher ids than it.
        config, last_id = self.config, self.config.vocab_size - 1
        grows = getattr(value, "num_embeddings", 0) > config.vocab_size
        if grows and config.pool_type == "argmax" and config.eos_token_id in (None, last_id):
            config.pool_type, config.eos_token_id = "eos", last_id
        super().set_input_embeddings(value)

    def _without_flash(self, attn_implementation: str | None) -> str | None:
        # FlashAttention drops the queries of hidden tokens. Here these are needed: the class token itself is hidden
        # behind padding, and so is each token behind a padding id inside a text.
        is_flash = is_flash_attention_requested(requested_attention_implementation=attn_implementation)
        return "sdpa" if is_flash and self.hides_padding else attn_implementation

    def _check_and_adjust_attn_implementation(self, attn_implementation, *args, **kwargs) -> str:
        return super()._check_and_adjust_attn_implementation(self._without_flash(attn_implementation), *args, **kwargs)

    def get_correct_attn_implementation(self, requested_attention, *args, **kwargs) -> str:
        return super().get_correct_attn_implementation(self._without_flash(requested_attention), *args, **kwargs)

    @property
    def hides_padding(self) -> bool:
        """Whether padding, known by its id, is hidden from the other tokens."""
        return self.config.embed_cls or (self.config.use_pad_mask and not self.config.is_causal)

    @property
    def ignores_padding(self) -> bool:
        """Whether the `pooler_output` of a text is the same however much padding follows it."""
        config = self.config
        is_seen = not (config.is_causal or config.use_pad_mask)
        return not is_seen and not config.embed_cls and config.pool_type in ("first", "argmax", "eos")

    def key_mask(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """The tokens that others may attend to, by open_clip's rules (`_build_additive_mask`).

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length), 0 on left padding. Padding behind a text follows the tower's own rule,
                from `pad_token_id`.

        Returns:
            (batch, length), or (batch, length + 1) with a class token, bool, `True` for visible; `None` for all.
        """
        left_padding = None if attention_mask is None else attention_mask.cumsum(-1) == 0
        if not self.hides_padding:
            return None if left_padding is None else ~left_padding
        visible = input_ids != self.config.pad_token_id
        if left_padding is not None:
            visible = visible | left_padding
        if self.config.embed_cls:
            always = visible.new_ones(visible.shape[0], 1)
            # The mask of open_clip's released CoCa weights has the class token's entry in front, although the token
            # itself stands behind: each token is hidden where the one before it is padding.
            visible = torch.cat([visible, always] if self.config.correct_cls_mask else [always, visible], dim=1)
        if left_padding is not None:
            visible[:, : input_ids.shape[1]] &= ~left_padding
        return visible

    def _encode(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache | None = None, **kwargs
    ) -> torch.Tensor:
        create_mask = create_causal_mask if self.config.is_causal else create_bidirectional_mask
        attention_mask = create_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            **named_cache(cache),
        )
        return self.encoder(hidden_states, attention_mask, cache, **kwargs)

    def pool(
        self, hidden_states: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(batch, length, hidden_size) -> (batch, hidden_size), or all tokens with `pool_type="none"`."""
        rows = torch.arange(input_ids.shape[0], device=hidden_states.device)
        first: int | torch.Tensor = 0
        if attention_mask is not None:
            left_padding = attention_mask.cumsum(-1) == 0
            first, input_ids = left_padding.sum(-1), input_ids.masked_fill(left_padding, -1)
        match self.config.pool_type:
            case "first":
                return hidden_states[rows, first]
            case "last":
                return hidden_states[:, -1]
            case "argmax":
                return hidden_states[rows, input_ids.argmax(dim=-1)]
            case "eos":
                ends = (input_ids == self.config.eos_token_id).int() - (input_ids < 0).int()
                return hidden_states[rows, ends.argmax(dim=-1)]
        return hidden_states

    def _decode(
        self, input_ids, attention_mask, position_ids, cache, inputs_embeds, **kwargs
    ) -> BaseModelOutputWithPooling:
        if position_ids is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
            position_ids = positions.unsqueeze(0) + cache.get_seq_length()
        hidden_states = self.embeddings(input_ids, position_ids, inputs_embeds=inputs_embeds)
        hidden_states = self._encode(hidden_states, attention_mask, cache, **kwargs)
        if not self.config.embed_cls:
            hidden_states = self.final_layer_norm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode texts.

        Args:
            input_ids: (batch, length), length at most `max_position_embeddings`.
            attention_mask: (batch, length), 0 on left padding, 1 elsewhere; padding behind a text follows the tower's
                own rule. With `cache`, (batch, past + length) of tokens that may be attended to, or what a
                mask function of transformers made of it.
            position_ids: (batch, length), by default 0, 1, ... from the first token that is no left padding.
            cache: of the tokens before `input_ids`, to which theirs are added (causal towers only).
            past_key_values: the name of `cache` before transformers 5.24.
            inputs_embeds: (batch, length, hidden_size) instead of `input_ids`, without positions; padding among them
                is what `attention_mask` says.

        Returns:
            `last_hidden_state` (batch, length, hidden_size), without CoCa's class token; `pooler_output`
            (batch, projection_dim), not normalised, `None` with `cache`; on request `hidden_states` and
            `attentions`, which hold the class token.

        Raises:
            TypeError: a `cache` of another class than those of transformers.
            ValueError: no text, one without tokens or longer than `max_position_embeddings`, or no batch of texts;
                both ids and embeddings, or embeddings where the end of a text is known by its id; a cache under two
                names or under one that is not known, or where gradient checkpointing would fill it twice.
        """
        cache = self.cache_argument(cache, past_key_values)
        self.check_kwargs(kwargs)
        check_one_given(input_ids=input_ids, inputs_embeds=inputs_embeds)
        if inputs_embeds is not None:
            input_ids = ids_of_embeddings(inputs_embeds, self.config.hidden_size, self.config.pad_token_id)
        masks = {} if cache is not None else {"attention_mask": attention_mask}
        check_input_ids(input_ids, self.config.max_position_embeddings, position_ids=position_ids, **masks)
        if cache is not None:
            return self._decode(input_ids, attention_mask, position_ids, cache, inputs_embeds, **kwargs)

        embed_cls = self.config.embed_cls
        if position_ids is None and attention_mask is not None:
            position_ids = positions_of(attention_mask)
        if inputs_embeds is not None and not embed_cls and self.config.pool_type in ("argmax", "eos"):
            raise ValueError("This text tower pools at the end of a text, which it knows by its id: pass input_ids.")
        hidden_states = self.embeddings(input_ids, position_ids, embed_cls, inputs_embeds)
        hidden_states = self._encode(hidden_states, self.key_mask(input_ids, attention_mask), **kwargs)
        if embed_cls:
            tokens, pooled = hidden_states[:, :-1], self.final_layer_norm(hidden_states[:, -1])
        else:
            tokens = self.final_layer_norm(hidden_states)
            pooled = self.pool(tokens, input_ids, attention_mask)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=self.projection(pooled))


__all__ = ["OpenClipTextModel"]
