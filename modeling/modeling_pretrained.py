"""Base classes of the models and vision towers, and the checks of their inputs."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import TransformersKwargs

from ..configuration.configuration_common import AutoClassMixin, height_and_width
from .modeling_layers import (
    Attention,
    AttentionBlock,
    CustomResidualAttentionBlock,
    ModernBlock,
    ResidualAttentionBlock,
    ResidualCrossAttentionBlock,
)


# Keys of a whole model that belong to neither tower: no news to someone who loads a tower from its folder.
COMPOSITE_KEYS = (r"^logit_", r"^multimodal_decoder\.", r"^lm_head\.")

# What transformers passes to any model beside arguments of its own: for outputs, losses and attention functions, from
# configurations, and from tokenizers.
FURTHER_KWARGS = TransformersKwargs.__annotations__.keys() | {"use_cache", "token_type_ids"}
# Models that have positions name them.
FURTHER_KWARGS -= {"output_router_logits", "position_ids"}


class OpenClipPreTrainedModel(AutoClassMixin, PreTrainedModel):
    """Base of all models here."""

    # Losses are means over the batch: Trainer has to divide them by the number of batches itself.
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = [
        AttentionBlock.__name__,
        ResidualAttentionBlock.__name__,
        CustomResidualAttentionBlock.__name__,
        ModernBlock.__name__,
        ResidualCrossAttentionBlock.__name__,
    ]
    _can_record_outputs: dict[str, Any] = {"hidden_states": AttentionBlock, "attentions": Attention}

    def post_init(self):
        super().post_init()
        # accelerate wraps each of these classes for FSDP, and refuses one that the model has no module of.
        present = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = sorted(present & set(self._no_split_modules))

    @property
    def is_checkpointing(self) -> bool:
        """Whether a pass now would compute layers again on its way back."""
        if not (self.training and torch.is_grad_enabled()):
            return False
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def cache_argument(self, cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
        """The key-value cache of a call, which may be given under either of its names.

        Raises:
            TypeError: it is none of transformers' caches.
            ValueError: it is given under both names, or while layers are computed twice.
        """
        if cache is not None and past_key_values is not None:
            raise ValueError("Got `cache` and `past_key_values`, two names of one argument: pass `cache` alone.")
        cache = past_key_values if cache is None else cache
        if cache is None:
            return None
        if not isinstance(cache, Cache):
            raise TypeError(f"Expected a cache of transformers, such as DynamicCache(), got {type(cache).__name__}.")
        if self.is_checkpointing:
            raise ValueError(
                "Gradient checkpointing computes layers twice, and would add to the cache twice: leave out the cache, "
                "or call gradient_checkpointing_disable()."
            )
        return cache

    def check_kwargs(self, kwargs: dict[str, Any]):
        """Raise `ValueError` for further arguments of `forward` that nothing reads; `None` asks for nothing."""
        unread = [name for name, value in kwargs.items() if value is not None and name not in FURTHER_KWARGS]
        if unread:
            listed = ", ".join(f"a cache as {name}" if isinstance(kwargs[name], Cache) else name for name in unread)
            names = [name for name in inspect.signature(self.forward).parameters if name != "kwargs"]
            raise ValueError(
                f"Got {listed}, {'a name that is' if len(unread) == 1 else 'names that are'} not read here: leave it "
                f"out, or check the spelling. {type(self).__name__} takes {', '.join(names)}."
            )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if hasattr(module, "initialize"):
            module.initialize(self.config.initializer_range)
        if getattr(module, "initial_weight", None) is not None:
            init.constant_(module.weight, module.initial_weight)


class OpenClipVisionTower(OpenClipPreTrainedModel):
    """Base of the vision towers: images -> tokens and an embedding each."""

    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", *COMPOSITE_KEYS]

    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: (batch, channels, height, width), normalised as the image processor does; any floating dtype.
            interpolate_pos_encoding: accept other image sizes than the model's, resizing the position embeddings.

        Returns:
            `last_hidden_state` (batch, tokens, token_dim); `pooler_output` (batch, projection_dim), not normalised; on
            request `hidden_states` and `attentions`.

        Raises:
            ValueError: the shape is not one that the model takes.
        """
        raise NotImplementedError


def check_tensor(name: str, value: Any):
    """Raise `TypeError` where argument `name` is no tensor."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f'{name} must be a tensor, got {type(value).__name__}: call the processor with return_tensors="pt".'
        )


def check_images(pixel_values: torch.Tensor):
    """Raise `TypeError` or `ValueError` unless `pixel_values` are a tensor of a floating dtype."""
    check_tensor("pixel_values", pixel_values)
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values are of {pixel_values.dtype}, and the model expects normalised images of a floating dtype: "
            "use the image processor saved with the model."
        )


def check_pixel_values(
    pixel_values: torch.Tensor, num_channels: int, image_size: int | list[int] | tuple[int, int], any_size: bool
):
    """Raise `ValueError` unless `pixel_values` are (batch, num_channels, height, width) of `image_size`.

    Args:
        pixel_values: the images given.
        num_channels: number of channels that the model takes.
        image_size: height and width in pixels, one number for a square.
        any_size: accept any height and width.
    """
    check_images(pixel_values)
    shape, image_size = tuple(pixel_values.shape), height_and_width(image_size)
    if len(shape) != 4 or shape[1] != num_channels:
        raise ValueError(f"pixel_values have shape {shape}, the model expects (batch, {num_channels}, height, width).")
    if shape[0] == 0:
        raise ValueError(f"pixel_values have shape {shape}, the model expects one image at least.")
    if shape[2:] != image_size and not any_size:
        raise ValueError(
            f"pixel_values have height and width {shape[2:]}, the model expects {image_size}: use the image processor "
            "saved with the model, or pass interpolate_pos_encoding=True."
        )


def patch_arguments(
    pixel_attention_mask: torch.Tensor | None, spatial_shapes: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Those that are given of the arguments that belong to images as patches: a tower without them refuses them."""
    given = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
    return {name: tensor for name, tensor in given.items() if tensor is not None}


def positions_of(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions (batch, length) of tokens, counted from the first that is no left padding.

    Args:
        attention_mask: (batch, length), 0 on left padding; zeros behind a text do not count.
    """
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    padding = (attention_mask.cumsum(-1) == 0).sum(-1, keepdim=True)
    return (positions - padding).clamp(min=0)


def select_hidden_states(
    hidden_states: Sequence[torch.Tensor], selection: bool | int | Sequence[int] | None
) -> tuple[torch.Tensor | None, ...] | None:
    """The `hidden_states` that `output_hidden_states` asks for, as transformers' `capture_outputs` gives them.

    Args:
        hidden_states: all that there are.
        selection: whether to give them, or the index or indices of those to give, from the end where negative.

    Returns:
        A tuple as long as `hidden_states`, `None` for those that are not selected; or `None`.
    """
    if not selection:
        return None
    if selection is True:
        return tuple(hidden_states)
    places = range(len(hidden_states))
    wanted = {
        index % len(places)
        for index in ([selection] if isinstance(selection, int) else selection)
        if -len(places) <= index < len(places)
    }
    return tuple(states if place in wanted else None for place, states in zip(places, hidden_states))


def ids_of_embeddings(inputs_embeds: torch.Tensor, hidden_size: int, pad_token_id: int | None) -> torch.Tensor:
    """Ids (batch, length) that stand for token embeddings: any that is no padding, which only a mask can tell.

    Raises:
        ValueError: `inputs_embeds` are not (batch, length, hidden_size).
    """
    shape = tuple(inputs_embeds.shape)
    if len(shape) != 3 or shape[2] != hidden_size:
        raise ValueError(f"inputs_embeds have shape {shape}, the model expects (batch, length, {hidden_size}).")
    return torch.full(shape[:2], 0 if pad_token_id is None else pad_token_id + 1, device=inputs_embeds.device)


def check_one_given(**arguments: torch.Tensor | None):
    """Raise `ValueError` unless exactly one of `arguments` is given."""
    given = [name for name, value in arguments.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"Pass either {' or '.join(arguments)}, got {' and '.join(given) or 'neither'}.")


def check_input_ids(input_ids: torch.Tensor, max_position_embeddings: int, **others: torch.Tensor | None):
    """Raise `ValueError` unless `input_ids` are (batch, length), of at most `max_position_embeddings` tokens.

    Args:
        input_ids: the ids given.
        max_position_embeddings: most tokens of a text.
        others: further arguments that have an entry for each token, such as `attention_mask`; `None` where not given.
    """
    check_tensor("input_ids", input_ids)
    shape = tuple(input_ids.shape)
    if len(shape) != 2:
        raise ValueError(f"input_ids have shape {shape}, the model expects (batch, length).")
    if 0 in shape:
        raise ValueError(f"input_ids have shape {shape}, the model expects one text at least, of one token at least.")
    if shape[1] > max_position_embeddings:
        raise ValueError(
            f"input_ids have length {shape[1]}, the model takes at most {max_position_embeddings} tokens: truncate "
            "the text."
        )
    for name, tensor in others.items():
        if tensor is not None and tuple(tensor.shape) not in (shape, (1, shape[1])):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, the model expects {shape}: an entry for each of input_ids."
            )


def check_ids(input_ids: torch.Tensor, embedding: nn.Module, vocab_size: int):
    """Raise `ValueError` where `input_ids` hold ids beyond the table `embedding`, of `vocab_size` by default."""
    check_indices("input_ids", input_ids, getattr(embedding, "num_embeddings", vocab_size))


def check_indices(name: str, indices: torch.Tensor, end: int):
    """Raise `ValueError` unless `indices` are whole numbers from 0 to `end - 1`; on a GPU their values pass unseen."""
    if indices.is_floating_point():
        raise ValueError(f"{name} are of {indices.dtype}, the model expects whole numbers (torch.long).")
    # A GPU would have to be waited for.
    if indices.device.type != "cpu" or torch.compiler.is_compiling() or not indices.numel():
        return
    low, high = (int(bound) for bound in indices.aminmax())
    if low < 0 or high >= end:
        raise ValueError(f"{name} hold {high if high >= end else low}, and those of this model are 0 to {end - 1}.")
