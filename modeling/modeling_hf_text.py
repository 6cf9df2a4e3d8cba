"""Hugging Face text tower: an encoder of transformers, pooled and projected (open_clip: `hf_model.py`)."""

import torch
from torch import nn
from transformers import initialization as init
from transformers import models
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from ..configuration.configuration_hf_text import POOLING_LAYER_MODEL_TYPES, HfTextConfig
from .modeling_pretrained import (
    COMPOSITE_KEYS,
    OpenClipPreTrainedModel,
    check_ids,
    check_input_ids,
    check_one_given,
    ids_of_embeddings,
    positions_of,
)


# model_type -> its folder in transformers, and the class that is the encoder alone. Only classes of transformers are
# built: what a configuration says about code elsewhere (`auto_map`) is never read.
_ENCODERS = {
    "roberta": ("roberta", "RobertaModel"),
    "xlm-roberta": ("xlm_roberta", "XLMRobertaModel"),
    "bert": ("bert", "BertModel"),
    "mt5": ("mt5", "MT5Stack"),
    "t5": ("t5", "T5Stack"),
    "m2m_100": ("m2m_100", "M2M100Encoder"),
    "modernbert": ("modernbert", "ModernBertModel"),
}
# Encoders to which the table of token embeddings is handed by the model around them, which also makes its values.
_T5_MODEL_TYPES = ("mt5", "t5")
# Those that count positions from the first id that is no padding, and embeddings from the first one.
_COUNT_POSITIONS = ("roberta", "xlm-roberta", "m2m_100")


def build_encoder(config: PreTrainedConfig, add_pooling_layer: bool) -> PreTrainedModel:
    """transformers' encoder of a configuration, with new weights; its code is imported here."""
    folder, name = _ENCODERS[config.model_type]
    encoder_class = getattr(getattr(getattr(models, folder), f"modeling_{folder}"), name)
    kwargs = {"add_pooling_layer": add_pooling_layer} if config.model_type in POOLING_LAYER_MODEL_TYPES else {}
    return encoder_class._from_config(config, **kwargs)


def _mean(outputs: ModelOutput, visible: torch.Tensor) -> torch.Tensor:
    visible = visible.unsqueeze(-1)
    return (outputs.last_hidden_state * visible).sum(dim=1) / visible.sum(dim=1)


def _max(outputs: ModelOutput, visible: torch.Tensor) -> torch.Tensor:
    # open_clip's `MaxPooler` means this, but raises: its `masked_fill` gets a mask of integers, 1 at tokens to keep.
    return outputs.last_hidden_state.masked_fill(~visible.unsqueeze(-1), -torch.inf).amax(dim=1)


def _first(outputs: ModelOutput, visible: torch.Tensor) -> torch.Tensor:
    # Behind left padding, if there is any.
    rows = torch.arange(len(visible), device=visible.device)
    return outputs.last_hidden_state[rows, visible.int().argmax(dim=-1)]


def _first_through_pooling_layer(outputs: ModelOutput, visible: torch.Tensor) -> torch.Tensor:
    pooled = outputs.get("pooler_output")
    return _first(outputs, visible) if pooled is None else pooled


_POOLERS = {
    "mean_pooler": _mean,
    "max_pooler": _max,
    "cls_pooler": _first_through_pooling_layer,
    "cls_last_hidden_state_pooler": _first,
}


def _projection(config: HfTextConfig) -> nn.Module:
    width, projection_dim = config.token_dim, config.projection_dim
    if config.proj_type == "none":
        return nn.Identity()
    if config.proj_type == "linear":
        return nn.Linear(width, projection_dim, bias=False)
    hidden = (width + projection_dim) // 2
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, projection_dim, bias=False)
    )


class HfTextModel(OpenClipPreTrainedModel):
    """An encoder of transformers as the text tower of a dual model or of CoCa.

    Reads as three steps: encode, pool, project. Attention functions, gradient checkpointing and recorded outputs are
    the encoder's own; a token is hidden from the others exactly where its id is that of padding.
    """

    config: HfTextConfig
    base_model_prefix = "text_model"
    input_modalities = ("text",)
    _keys_to_ignore_on_load_unexpected = [r"^vision_model\.", *COMPOSITE_KEYS]

    def __init__(self, config: HfTextConfig):
        super().__init__(config)
        self.hf_model = build_encoder(config.hf_config, config.has_pooling_layer)
        self.projection = _projection(config)
        # A new encoder has its weights; of one that is about to be loaded, some may turn out to be missing.
        self._encoder_is_initialized = not self._encoder_is_meta()
        self.post_init()

    def _encoder_is_meta(self) -> bool:
        return any(parameter.is_meta for parameter in self.hf_model.parameters())

    def _initialize_weights(self, module: nn.Module, *args):
        # Inside a model that is not its own, transformers passes over modules without tensors, and by these T5's
        # encoders initialise: once everything else is done, they are asked for.
        super()._initialize_weights(module, *args)
        if module is self and not self._encoder_is_initialized and not self._encoder_is_meta():
            for part in self.hf_model.modules():
                if not (part._parameters or part._buffers):
                    part._is_hf_initialized = False
            self.hf_model.initialize_weights()
            if self.config.hf_config.model_type in _T5_MODEL_TYPES:
                std = self.config.hf_config.initializer_factor
                init.normal_(self.get_input_embeddings().weight, mean=0.0, std=std)
            self._encoder_is_initialized = True

    def get_input_embeddings(self) -> nn.Module:
        return self.hf_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.hf_model.set_input_embeddings(value)

    @property
    def ignores_padding(self) -> bool:
        """Whether the `pooler_output` of a text is the same however much padding follows it."""
        return True

    def encode(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> ModelOutput:
        """The encoder's output for (batch, length) of ids, in which padding is hidden.

        With `inputs_embeds`, tokens that are already embedded, the ids only tell padding.
        """
        # The other encoders count positions themselves: from the padding, or relative to one another.
        if position_ids is not None and self.config.hf_config.model_type == "bert":
            kwargs["position_ids"] = position_ids
        for name in ("output_attentions", "output_hidden_states"):
            if getattr(self.config, name):  # the encoder reads its own configuration alone
                kwargs.setdefault(name, True)
        attention_mask = (input_ids != self.config.pad_token_id).long()
        tokens = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        return self.hf_model(**tokens, attention_mask=attention_mask, return_dict=True, **kwargs)

    def pool(self, outputs: ModelOutput, input_ids: torch.Tensor) -> torch.Tensor:
        """The encoder's output for (batch, length) of ids -> (batch, token_dim)."""
        visible = (input_ids != self.config.pad_token_id).to(outputs.last_hidden_state.device)
        return _POOLERS[self.config.pool_type](outputs, visible)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode texts.

        Args:
            input_ids: (batch, length), length at most `max_position_embeddings`, padded with `pad_token_id`.
            attention_mask: (batch, length), 0 on left padding, 1 elsewhere; padding behind a text is known by its id.
                An encoder's own pooling layer (`"cls_pooler"`) wants no left padding.
            position_ids: (batch, length), by default 0, 1, ... from the first token that is no left padding; read by
                BERT, the other encoders need none.
            inputs_embeds: (batch, length, hidden_size of the encoder) instead of `input_ids`; padding among them is
                what `attention_mask` says.

        Returns:
            `last_hidden_state` (batch, length, token_dim), without the first token with `cls_pooler`; `pooler_output`
            (batch, projection_dim), not normalised; on request `hidden_states` and `attentions`.

        Raises:
            ValueError: no text, one without tokens or longer than `max_position_embeddings`, or no batch of texts;
                both ids and embeddings, or embeddings padded on the left where the encoder cannot know it.
        """
        self.check_kwargs(kwargs)
        check_one_given(input_ids=input_ids, inputs_embeds=inputs_embeds)
        if inputs_embeds is not None:
            input_ids = ids_of_embeddings(inputs_embeds, self.config.token_dim, self.config.pad_token_id)
            if attention_mask is not None and self.config.pad_token_id is not None:
                if self.config.hf_config.model_type in _COUNT_POSITIONS and (attention_mask[:, 0] == 0).any():
                    raise ValueError("This encoder counts positions from ids: pad inputs_embeds on the right.")
                input_ids = input_ids.masked_fill(attention_mask == 0, self.config.pad_token_id)
        masks = {"attention_mask": attention_mask, "position_ids": position_ids}
        check_input_ids(input_ids, self.config.max_position_embeddings, **masks)
        if inputs_embeds is None:
            check_ids(input_ids, self.get_input_embeddings(), self.config.vocab_size)
        if attention_mask is not None:
            input_ids = input_ids.masked_fill(attention_mask.cumsum(-1) == 0, self.config.pad_token_id)
            position_ids = positions_of(attention_mask) if position_ids is None else position_ids
        outputs = self.encode(input_ids, position_ids, inputs_embeds, **kwargs)
        tokens = outputs.last_hidden_state
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens[:, 1:] if self.config.pool_type == "cls_pooler" else tokens,
            pooler_output=self.projection(self.pool(outputs, input_ids)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["HfTextModel"]
