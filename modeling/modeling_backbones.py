"""Feature maps and patch features of vision towers (open_clip: `forward_intermediates`)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.backbone_utils import BackboneMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BackboneOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..configuration.configuration_common import height_and_width


@dataclass
class TowerBackboneOutput(BackboneOutput):
    """Output of a tower as a backbone.

    Args:
        feature_maps: for each of `out_features`, (batch, channels, rows, columns).
        prefix_tokens: for each of `out_features`, (batch, tokens before the patches, channels); `None` in a tower
            without such tokens.
        hidden_states: input of the first stage and output of each up to the last one wanted, on request.
        attentions: per layer up to there (batch, heads, tokens, tokens), on request.
    """

    prefix_tokens: tuple[torch.Tensor, ...] | None = None


class TowerBackbone(BackboneMixin):
    """A tower without the parts behind its stages, which are not even loaded, that runs up to the last stage wanted.

    A mixin before the class of a tower, whose weights it takes: from its folder, or that of a dual model or CoCa.
    """

    # Modules behind the stages.
    head: tuple[str, ...]
    _keys_to_ignore_on_load_unexpected: list[str]

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        # transformers reads here what was chosen, and where nothing was, nothing is written yet.
        config.out_indices = config.out_indices

    def post_init(self):
        for name in self.head:
            delattr(self, name)
        pattern = rf"^(vision_model\.)?({'|'.join(self.head)})\."
        self._keys_to_ignore_on_load_unexpected = [*self._keys_to_ignore_on_load_unexpected, pattern]
        super().post_init()

    def stages(self) -> nn.ModuleList:
        """The modules between one feature map and the next."""
        return self.encoder.layers

    def split(
        self, hidden_states: torch.Tensor, pixel_values: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Split the output of a stage -> the tokens before the patches, if there are any, and the feature map."""
        raise NotImplementedError

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TowerBackboneOutput:
        """Compute the feature maps of images, which are given and refused as by the tower itself."""
        self.check_kwargs(kwargs)
        return self.feature_maps(pixel_values, self.embed(pixel_values, interpolate_pos_encoding), **kwargs)

    def feature_maps(self, pixel_values: torch.Tensor, hidden_states: torch.Tensor, **kwargs) -> TowerBackboneOutput:
        """Run the stages on `hidden_states`, the input of the first -> the feature maps wanted."""
        wanted = [self.stage_names.index(name) for name in self.out_features]
        outputs = []
        for stage in range(wanted[-1] + 1):
            if stage:
                hidden_states = self.stages()[stage - 1](hidden_states, **kwargs)
            if stage in wanted:
                outputs.append(self.split(hidden_states, pixel_values))
        prefix_tokens, feature_maps = zip(*outputs)
        return TowerBackboneOutput(
            feature_maps=feature_maps, prefix_tokens=None if prefix_tokens[0] is None else prefix_tokens
        )


class TransformerBackbone(TowerBackbone):
    """A vision transformer as a backbone, standing before the class of the tower."""

    head_behind_norm: tuple[str, ...]

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * len(self.stage_names)
        if config.apply_layernorm and config.token_dim != config.hidden_size:
            raise ValueError(
                f"{type(self).__name__}: apply_layernorm=True, but the last layer norm of this tower is behind its "
                f"attentional pooler and {config.token_dim} wide, not {config.hidden_size} as the feature maps are. "
                "Set apply_layernorm=False."
            )

    @property
    def head(self) -> tuple[str, ...]:
        return self.head_behind_norm + (() if self.config.apply_layernorm else ("post_layernorm",))

    def split(
        self, hidden_states: torch.Tensor, pixel_values: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        if self.config.apply_layernorm:
            hidden_states = self.post_layernorm(hidden_states)
        prefix, patches = hidden_states.tensor_split([self.num_prefix_tokens], dim=1)
        feature_map = patches.unflatten(1, self.patch_grid(pixel_values)).permute(0, 3, 1, 2)
        return prefix if self.num_prefix_tokens else None, feature_map

    def feature_maps(self, pixel_values: torch.Tensor, hidden_states: torch.Tensor, **kwargs) -> TowerBackboneOutput:
        return super().feature_maps(pixel_values, hidden_states, **self.layer_kwargs(), **kwargs)


class PatchTowerMixin:
    """Patch features of a vision transformer, whose patches are a grid behind `num_prefix_tokens` other tokens.

    open_clip leaves them to the users of `VisionTransformer.forward_intermediates` (`transformer.py`).
    """

    # Of the class that the mixin stands before.
    config: Any
    embeddings: Any
    pre_layernorm: Any
    encoder: Any
    projection: Any

    num_prefix_tokens = 1

    def patch_grid(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        """Rows and columns of the patches of `pixel_values`, (batch, channels, height, width)."""
        height, width = height_and_width(self.config.patch_size)
        return pixel_values.shape[-2] // height, pixel_values.shape[-1] // width

    def embed(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """Input of the first layer, (batch, tokens, hidden_size); no patch is dropped in training."""
        return self.pre_layernorm(self.embeddings(pixel_values, interpolate_pos_encoding))

    def layer_kwargs(self) -> dict:
        """Keyword arguments of the layers."""
        return {}

    def pool_patches(self, patches: torch.Tensor) -> torch.Tensor:
        """Apply pooling and the last layer norm to each patch alone.

        Args:
            patches: (batch, patches, hidden_size), from the last layer.

        Returns:
            (batch, patches, size of the projection's input).
        """
        raise NotImplementedError

    def get_patch_features(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, last_attention: bool = True
    ) -> torch.Tensor:
        """Embed each patch of images in the space that images and texts share; see [`OpenClipModel`]'s method."""
        hidden_states, kwargs = self.embed(pixel_values, interpolate_pos_encoding), self.layer_kwargs()
        *layers, last_layer = self.encoder.layers
        for layer in layers:
            hidden_states = layer(hidden_states, **kwargs)
        if last_attention:
            patches = last_layer(hidden_states, **kwargs)[:, self.num_prefix_tokens :]
        else:
            patches = hidden_states[:, self.num_prefix_tokens :]
            # A token that is alone in its row can attend to nothing but itself.
            patches = last_layer(patches.flatten(0, 1).unsqueeze(1), **kwargs).view(patches.shape)
        return self.projection(self.pool_patches(patches)).unflatten(1, self.patch_grid(pixel_values))


__all__ = ["PatchTowerMixin", "TowerBackbone", "TowerBackboneOutput", "TransformerBackbone"]
