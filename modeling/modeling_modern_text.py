"""Modern text tower (open_clip 4: `ModernTextTransformer` in `transformer.py`)."""

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..configuration.configuration_modern_text import ModernTextConfig
from .modeling_layers import MapPooler, ModernBlock, norm_layer, rotation_of
from .modeling_pretrained import (
    COMPOSITE_KEYS,
    OpenClipPreTrainedModel,
    check_ids,
    check_input_ids,
    check_one_given,
    ids_of_embeddings,
    positions_of,
)
from .transformers_compat import named_cache


class ModernTextEmbeddings(nn.Module):
    """Registers and, behind them, tokens."""

    def __init__(self, config: ModernTextConfig):
        super().__init__()
        self.vocab_size = config.vocab_size
        has_padding = config.pad_token_id is not None and 0 <= config.pad_token_id < config.vocab_size
        padding_idx = config.pad_token_id if config.freeze_pad_embedding and has_padding else None
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=padding_idx)
        self.register_tokens = None
        if config.num_register_tokens:
            self.register_tokens = nn.Parameter(torch.empty(config.num_register_tokens, config.hidden_size))
        self.layer_norm = norm_layer(config, config.hidden_size) if config.use_embedding_norm else nn.Identity()

    def initialize(self, std: float):
        if self.register_tokens is not None:
            # As those of vision transformers in timm: attention finds nothing in them at first.
            init.normal_(self.register_tokens, std=1e-6)

    def forward(self, input_ids: torch.Tensor, inputs_embeds: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, length) of ids, or tokens that are embedded already -> (batch, registers + length, hidden_size)."""
        if inputs_embeds is None:
            check_ids(input_ids, self.token_embedding, self.vocab_size)
        hidden_states = self.token_embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if self.register_tokens is not None:
            registers = self.register_tokens.to(hidden_states.dtype).expand(hidden_states.shape[0], -1, -1)
            hidden_states = torch.cat([registers, hidden_states], dim=1)
        return self.layer_norm(hidden_states)


class ModernTextEncoder(nn.Module):
    """The layers, each of which may mix its values with those of the first."""

    def __init__(self, config: ModernTextConfig):
        super().__init__()
        indices = range(config.num_hidden_layers)
        self.layers = nn.ModuleList([ModernBlock(config, i, config.is_causal) for i in indices])

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """(batch, length, hidden_size) -> the same."""
        first_value = None
        for layer in self.layers:
            hidden_states, first_value = layer(hidden_states, first_value, attention_mask, cache=cache, **kwargs)
        return hidden_states


class ModernTextModel(OpenClipPreTrainedModel):
    """A text transformer with rotary positions, RMS norms, SwiGLU and more, for texts of any length up to its longest.

    Reads as four steps: embed, encode, pool, project. Keys of open_clip's `text.`, with separate projections for
    attention and gated MLPs.
    """

    config: ModernTextConfig
    base_model_prefix = "text_model"
    input_modalities = ("text",)
    _input_embed_layer = "token_embedding"
    _no_split_modules = [*OpenClipPreTrainedModel._no_split_modules, ModernTextEmbeddings.__name__]
    _keys_to_ignore_on_load_unexpected = [r"^vision_model\.", *COMPOSITE_KEYS]

    def __init__(self, config: ModernTextConfig):
        super().__init__(config)
        self.embeddings = ModernTextEmbeddings(config)
        self.encoder = ModernTextEncoder(config)
        self.final_layer_norm = norm_layer(config, config.hidden_size)
        self.pooler = MapPooler(config) if config.pool_type == "map" else None
        if config.proj_type == "none":
            self.projection = nn.Identity()
        else:
            self.projection = nn.Linear(config.hidden_size, config.projection_dim, bias=config.proj_bias)
        self.post_init()

    @property
    def ignores_padding(self) -> bool:
        """Whether the `pooler_output` of a text is the same however much padding follows it."""
        return True

    def visible_tokens(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """The tokens of a text (batch, length), bool, that are no padding; its first one in a text of padding alone.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length), 0 on padding; without it padding is known by its id.
        """
        if attention_mask is not None:
            visible = attention_mask != 0
        elif self.config.pad_token_id is None:
            return torch.ones_like(input_ids, dtype=torch.bool)
        else:
            visible = input_ids != self.config.pad_token_id
        is_first = torch.arange(input_ids.shape[1], device=input_ids.device) == 0
        return visible | (is_first & ~visible.any(dim=1, keepdim=True))

    def encode(
        self,
        hidden_states: torch.Tensor,
        visible: torch.Tensor | None,
        position_ids: torch.Tensor,
        cache: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """(batch, registers + length, hidden_size) -> the same.

        Args:
            hidden_states: registers and embedded tokens.
            visible: (batch, length) of tokens that may be attended to, `None` for all.
            position_ids: (batch or 1, length) of the tokens, counted from 0.
            cache: of the tokens before.
        """
        config = self.config
        registers = config.num_register_tokens
        if visible is not None and visible.ndim == 2:
            visible = nn.functional.pad(visible, (registers, 0), value=1)
        create_mask = create_causal_mask if config.is_causal else create_bidirectional_mask
        attention_mask = create_mask(
            config=config, inputs_embeds=hidden_states, attention_mask=visible, **named_cache(cache)
        )
        if registers:
            first = torch.arange(registers, device=position_ids.device).expand(position_ids.shape[0], -1)
            position_ids = torch.cat([first, position_ids + registers], dim=1)
        rotation = rotation_of(config, position_ids, hidden_states.dtype)
        return self.encoder(hidden_states, attention_mask, cache, rotation=rotation, **kwargs)

    def pool(
        self,
        hidden_states: torch.Tensor,
        input_ids: torch.Tensor,
        visible: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(batch, length, hidden_size) -> (batch, hidden_size), `visible` tokens alone."""
        if self.pooler is not None:
            return self.pooler(hidden_states, visible)
        if self.config.pool_type == "mean":
            weights = visible.unsqueeze(-1).to(hidden_states.dtype)
            return (hidden_states * weights).sum(dim=1) / weights.sum(dim=1)
        is_end = input_ids == self.config.eos_token_id
        # The last token of a text that lost its end, counted from behind left padding.
        last = visible.sum(dim=1) - 1
        if attention_mask is not None:
            last = last + (visible.cumsum(dim=1) == 0).sum(dim=1)
        places = torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1), last)
        return hidden_states[torch.arange(places.shape[0], device=places.device), places]

    def _decode(
        self, input_ids, attention_mask, position_ids, cache, inputs_embeds, **kwargs
    ) -> BaseModelOutputWithPooling:
        if self.config.num_register_tokens or not self.config.is_causal:
            raise ValueError(
                "A text tower that is bidirectional or has register tokens cannot continue from a cache: pass all "
                "tokens at once, without a cache."
            )
        if position_ids is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
            position_ids = positions.unsqueeze(0) + cache.get_seq_length()
        hidden_states = self.embeddings(input_ids, inputs_embeds)
        hidden_states = self.encode(hidden_states, attention_mask, position_ids, cache, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=self.final_layer_norm(hidden_states))

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
            attention_mask: (batch, length), 0 on padding; without it padding is known by its id. With `cache`,
                (batch, past + length) of tokens that may be attended to, or what a mask function of transformers made
                of it.
            position_ids: (batch, length), by default 0, 1, ... from the first token that is no left padding.
            cache: of the tokens before `input_ids`, to which theirs are added (causal towers without registers only).
            past_key_values: the name of `cache` before transformers 5.24.
            inputs_embeds: (batch, length, hidden_size) instead of `input_ids`; padding among them is what
                `attention_mask` says.

        Returns:
            `last_hidden_state` (batch, length, hidden_size), without registers; `pooler_output`
            (batch, projection_dim), not normalised, `None` with `cache`; on request `hidden_states` and `attentions`,
            which hold the registers.

        Raises:
            TypeError: a `cache` of another class than those of transformers.
            ValueError: no text, one without tokens or longer than `max_position_embeddings`, or no batch of texts;
                both ids and embeddings, or embeddings where the end of a text is known by its id; a cache under two
                names or under one that is not known, where gradient checkpointing would fill it twice, or where the
                tower cannot continue from it.
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
        if inputs_embeds is not None and self.config.pool_type == "eos":
            raise ValueError("This text tower pools at the end of a text, which it knows by its id: pass input_ids.")
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
            if attention_mask is not None:
                position_ids = positions_of(attention_mask)
        visible = self.visible_tokens(input_ids, attention_mask)
        # Padding behind a text is out of the sight of its tokens where these see no further than themselves.
        hides_padding = not self.config.is_causal or attention_mask is not None
        hidden_states = self.embeddings(input_ids, inputs_embeds)
        hidden_states = self.encode(hidden_states, visible if hides_padding else None, position_ids, **kwargs)
        tokens = self.final_layer_norm(hidden_states)[:, self.config.num_register_tokens :]
        pooled = self.pool(tokens, input_ids, visible, attention_mask)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=self.projection(pooled))


__all__ = ["ModernTextModel"]
