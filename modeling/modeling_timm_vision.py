"""Towers that timm builds, with open_clip's pooling and projection (open_clip: `TimmModel` in `timm_model.py`)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging

from ..configuration.configuration_timm_vision import TimmVisionConfig
from .modeling_pretrained import OpenClipVisionTower, check_pixel_values, select_hidden_states
from .modeling_timm_factory import build_modules, parameters_by_depth, reparameterize


logger = logging.get_logger(__name__)


class TimmVisionModel(OpenClipVisionTower):
    """An image model of timm (https://github.com/huggingface/pytorch-image-models) as a tower.

    Needs `pip install timm`. Keys of open_clip's `visual.`, with `timm_model.` for `trunk.`. timm computes attention
    itself, with torch's fused kernels where it can: `attn_implementation` is accepted for the sake of the other tower
    and has no effect here, and attention weights are not returned.
    """

    config: TimmVisionConfig
    _can_record_outputs = {}

    def __init__(self, config: TimmVisionConfig):
        super().__init__(config)
        modules = build_modules(config)
        self.timm_model, self.head = modules["timm_model"], modules["head"]
        # timm's modules add tensors of their own to those of their children: one device holds them all.
        self._no_split_modules = [type(self.timm_model).__name__]
        self._input_embed_layer = next(
            (name for name, child in self.timm_model.named_children() if any(True for _ in child.parameters())), ""
        )
        # timm initialises its modules itself, see `_initialize_weights`; transformers the projection alone.
        self._timm_is_initialized = not any(parameter.is_meta for parameter in self.parameters())
        for name, module in self.named_modules():
            if name.startswith(("timm_model", "head.pool")):
                module._is_hf_initialized = True
        self.post_init()

    def _initialize_weights(self, module: nn.Module, *args):
        # transformers asks for every module and then for the model itself, after loading as well. Only then is it
        # known what the checkpoint has not filled: always the tables that it does not hold.
        super()._initialize_weights(module, *args)
        if module is self and not self._timm_is_initialized:
            self._fill_from_timm()
            self._timm_is_initialized = True

    @torch.no_grad()
    def _fill_from_timm(self):
        """Fill the tensors of timm's modules that have no value yet, as timm does for a new model."""
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        missing = {
            name: tensor
            for name, tensor in tensors.items()
            if name.startswith(("timm_model.", "head.pool."))
            and not getattr(tensor, "_is_hf_initialized", False)
            and not tensor.is_meta
        }
        if not missing:
            return
        # Tables alone cost nothing: what a checkpoint holds need not be made for them.
        with torch.device("cpu" if missing.keys() & self.state_dict().keys() else "meta"):
            modules = build_modules(self.config)
        for name, value in {**dict(modules.named_parameters()), **dict(modules.named_buffers())}.items():
            if name in missing:
                init.copy_(missing[name], value)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether timm's model recomputes its layers in the backward pass; transformers sets it."""
        return self.__dict__.get("_gradient_checkpointing", False)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool):
        try:
            self.timm_model.set_grad_checkpointing(enable)
            self.__dict__["_gradient_checkpointing"] = enable
        except (AssertionError, AttributeError):
            if enable:
                logger.warning_once(f"timm's {self.config.architecture} has no gradient checkpointing: going without.")

    def get_input_embeddings(self) -> nn.Module:
        """The first layers of timm's model, which turn pixels into features."""
        return getattr(self.timm_model, self._input_embed_layer)

    def set_input_embeddings(self, value: nn.Module):
        setattr(self.timm_model, self._input_embed_layer, value)

    def reparameterize(self):
        """Fuse the branches that some architectures, such as MobileCLIP's, have in training.

        The outputs stay the same up to rounding. The model is for inference from here on, and is saved in this form.
        """
        if not self.config.reparameterized:
            reparameterize(self.timm_model)
            self.config.reparameterized = True

    def parameters_by_depth(self) -> list[list[str]]:
        """Names of the parameters of timm's model in the groups that timm makes of them, the input's first.

        Raises:
            ValueError: timm's model does not say how it is grouped.
        """
        if not hasattr(self.timm_model, "group_matcher"):
            raise ValueError(
                f"timm does not group the layers of {self.config.architecture}, nor can they be told apart."
            )
        return parameters_by_depth(self.timm_model)

    def _as_tokens(self, features: torch.Tensor) -> torch.Tensor | None:
        """Feature maps (batch, channels, height, width), or channels last, -> (batch, height * width, channels)."""
        if not isinstance(features, torch.Tensor):  # some models have several
            return None
        if features.ndim != 4:
            return features
        channels_last = getattr(self.timm_model, "output_fmt", "NCHW") == "NHWC"
        return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | int | list[int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: (batch, channels, height, width), normalised as the image processor does; any floating dtype.
            interpolate_pos_encoding: accept other image sizes than the model's, where timm's model does: convolutions,
                and transformers with `model_args={"dynamic_img_size": True}`.
            output_hidden_states: also return what timm's `forward_intermediates` does, all or those at these indices.

        Returns:
            `last_hidden_state` (batch, tokens, token_dim): timm's features, a token for each place of a feature map in
            rows, or the tokens of a transformer with its class and register tokens in front; `None` for models that
            compute several, such as CrossViT; `pooler_output` (batch, projection_dim), not normalised; on request
            `hidden_states`, for each stage or block a feature map (batch, channels, height, width) without class and
            register tokens.

        Raises:
            ValueError: the shape is not the model's, or timm's model cannot give hidden states.
        """
        self.check_kwargs(kwargs)
        if kwargs.get("output_attentions"):
            logger.warning_once(
                "timm computes attention itself and returns no weights: output_attentions does nothing."
            )
        check_pixel_values(pixel_values, 3, self.config.image_size, any_size=interpolate_pos_encoding)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        # timm's model is not called as a whole, which is when accelerate would bring its tensors to their device.
        hook = getattr(self.timm_model, "_hf_hook", None)
        if hook is not None:
            (pixel_values,), _ = hook.pre_forward(self.timm_model, pixel_values)
        features, pooled, hidden_states = self._encode(pixel_values.to(self.dtype), output_hidden_states)
        if hook is not None:
            features, pooled, hidden_states = hook.post_forward(self.timm_model, (features, pooled, hidden_states))
        return BaseModelOutputWithPooling(
            last_hidden_state=self._as_tokens(features),
            pooler_output=self.head(pooled),
            hidden_states=select_hidden_states(hidden_states, output_hidden_states),
        )

    def _encode(self, pixel_values: torch.Tensor, output_hidden_states: bool | int | list[int] | None):
        """timm's features, what it makes of them before open_clip's head, and the feature maps on the way."""
        if not output_hidden_states:
            features = self.timm_model.forward_features(pixel_values)
            return features, self.timm_model.forward_head(features), ()
        if not hasattr(self.timm_model, "forward_intermediates"):
            raise ValueError(
                f"timm's {self.config.architecture} gives no hidden states: leave out output_hidden_states."
            )
        with self._feature_maps_on_the_way(pixel_values) as feature_maps:
            features, hidden_states = self.timm_model.forward_intermediates(pixel_values)
        return features, self.timm_model.forward_head(features), tuple(feature_maps or hidden_states)

    @contextmanager
    def _feature_maps_on_the_way(self, pixel_values: torch.Tensor) -> Iterator[list[torch.Tensor]]:
        """Have what a transformer's layers hand on go through feature maps, so that gradients reach these.

        timm makes its own beside the way: of tokens, or of maps with channels last.
        """
        feature_maps: list[torch.Tensor] = []
        prefix = getattr(self.timm_model, "num_prefix_tokens", 0)

        def hand_on(layer: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            is_map = output.ndim == 4
            patches = output if is_map else output[:, prefix:]
            if not is_map:
                grid = self.timm_model.patch_embed.dynamic_feat_size(pixel_values.shape[-2:])
                patches = patches.unflatten(1, grid)
            feature_maps.append(patches.permute(0, 3, 1, 2).contiguous())
            patches = feature_maps[-1].permute(0, 2, 3, 1).contiguous()
            return patches if is_map else torch.cat([output[:, :prefix], patches.flatten(1, 2)], dim=1)

        # Of layers that are computed twice, what hooks keep belongs to the first time.
        needed = torch.is_grad_enabled() and not (self.gradient_checkpointing or torch.compiler.is_compiling())
        has_maps_last = getattr(self.timm_model, "output_fmt", "NCHW") == "NHWC"
        layers = getattr(self.timm_model, "layers" if has_maps_last else "blocks", ()) if needed else ()
        handles = [layer.register_forward_hook(hand_on) for layer in layers]
        try:
            yield feature_maps
        finally:
            for handle in handles:
                handle.remove()


__all__ = ["TimmVisionModel"]
