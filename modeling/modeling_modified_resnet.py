"""CLIP's ResNet tower with attention pooling (open_clip: `modified_resnet.py`)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..configuration.configuration_modified_resnet import ModifiedResNetConfig
from .modeling_backbones import TowerBackbone, TowerBackboneOutput
from .modeling_layers import CrossAttention
from .modeling_pretrained import OpenClipVisionTower, check_images, check_pixel_values
from .modeling_vit import resize_position_embedding


class ModifiedResNetConvLayer(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.convolution = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False
        )
        self.normalization = nn.BatchNorm2d(out_channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, height, width) -> (batch, out_channels, height / stride, width / stride)."""
        return F.relu(self.normalization(self.convolution(hidden_states)), inplace=True)


class ModifiedResNetEmbeddings(nn.Module):
    """The stem: three convolutions and an average pooling (open_clip: `ModifiedResNet.stem`)."""

    def __init__(self, config: ModifiedResNetConfig):
        super().__init__()
        self.config = config
        half = config.embedding_size // 2
        self.conv1 = ModifiedResNetConvLayer(config.num_channels, half, kernel_size=3, stride=2)
        self.conv2 = ModifiedResNetConvLayer(half, half, kernel_size=3)
        self.conv3 = ModifiedResNetConvLayer(half, config.embedding_size, kernel_size=3)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """(batch, channels, height, width) -> (batch, embedding_size, height / 4, width / 4).

        Raises:
            ValueError: the shape is not the model's; other sizes are taken with `interpolate_pos_encoding`.
        """
        check_pixel_values(
            pixel_values, self.config.num_channels, self.config.image_size, any_size=interpolate_pos_encoding
        )
        return F.avg_pool2d(self.conv3(self.conv2(self.conv1(pixel_values))), 2)


class ModifiedResNetShortcut(nn.Module):
    """Bring the input of a stage to the shape of its output."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self.normalization = nn.BatchNorm2d(out_channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.stride > 1:
            hidden_states = F.avg_pool2d(hidden_states, self.stride)
        return self.normalization(self.convolution(hidden_states))


class ModifiedResNetBottleneck(GradientCheckpointingLayer):
    """Residual layer; where it makes the image smaller, it averages instead of skipping (open_clip: `Bottleneck`)."""

    is_recomputed = False

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        channels = out_channels // 4
        self.conv1 = ModifiedResNetConvLayer(in_channels, channels, kernel_size=1)
        self.conv2 = ModifiedResNetConvLayer(channels, channels, kernel_size=3)
        self.conv3 = nn.Conv2d(channels, out_channels, kernel_size=1, bias=False)
        self.normalization = nn.BatchNorm2d(out_channels)
        # A new bottleneck hands on its input.
        self.normalization.initial_weight = 0.0
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same_shape else ModifiedResNetShortcut(in_channels, out_channels, stride)

    def __call__(self, *args, **kwargs):
        if not (self.gradient_checkpointing or self.is_recomputed):
            return super().__call__(*args, **kwargs)
        # The backward pass computes a checkpointed layer anew, and not through this method.
        self.is_recomputed = False
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self.is_recomputed = self.gradient_checkpointing

    @contextmanager
    def _keep_running_statistics(self) -> Iterator[None]:
        """Let the batch norms compute without moving their statistics: each batch counts once."""
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
            norm.num_batches_tracked.sub_(1)
        try:
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, height, width) -> (batch, out_channels, height / stride, width / stride)."""
        with self._keep_running_statistics() if self.training and self.is_recomputed else nullcontext():
            return self._add_residual(hidden_states)

    def _add_residual(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = self.conv2(self.conv1(hidden_states))
        if self.stride > 1:
            residual = F.avg_pool2d(residual, self.stride)
        residual = self.normalization(self.conv3(residual))
        return F.relu(residual.add_(self.shortcut(hidden_states)), inplace=True)


class ModifiedResNetStage(nn.Module):
    """Bottlenecks of one width, the first of which makes the image smaller by `stride`."""

    def __init__(self, in_channels: int, out_channels: int, depth: int, stride: int):
        super().__init__()
        first = ModifiedResNetBottleneck(in_channels, out_channels, stride)
        others = [ModifiedResNetBottleneck(out_channels, out_channels, stride=1) for _ in range(depth - 1)]
        self.layers = nn.ModuleList([first, *others])

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, height, width) -> (batch, out_channels, height / stride, width / stride)."""
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return hidden_states


class ModifiedResNetEncoder(nn.Module):
    """The four stages."""

    def __init__(self, config: ModifiedResNetConfig):
        super().__init__()
        widths = [config.embedding_size, *config.hidden_sizes]
        self.stages = nn.ModuleList(
            ModifiedResNetStage(widths[stage], widths[stage + 1], depth, stride=1 if stage == 0 else 2)
            for stage, depth in enumerate(config.depths)
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch, embedding_size, height, width) -> (batch, token_dim, height / 8, width / 8)."""
        for stage in self.stages:
            hidden_states = stage(hidden_states)
        return hidden_states


class FeatureMapPooler(nn.Module):
    """Pool and project a feature map; its mean is the query, and a key too (open_clip: `AttentionPool2d`)."""

    def __init__(self, config: ModifiedResNetConfig):
        super().__init__()
        self.config = config
        height, width = config.grid_size
        self.position_embedding = nn.Parameter(torch.empty(1 + height * width, config.token_dim))
        self.attention = CrossAttention(
            config, config.token_dim, config.token_dim, config.num_attention_heads, config.projection_dim
        )

    def initialize(self, std: float):
        attention, std = self.attention, self.config.token_dim**-0.5
        init.normal_(self.position_embedding, std=std)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
            init.normal_(projection.weight, std=std)

    def _positions(self, grid_size: tuple[int, int]) -> torch.Tensor:
        if grid_size == self.config.grid_size:
            return self.position_embedding
        return resize_position_embedding(self.position_embedding, self.config.grid_size, grid_size)

    def pool_patches(self, hidden_states: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
        """Pool each token alone: tokens as in `forward` -> (batch, height * width, projection_dim)."""
        return self.attention.project_value(hidden_states + self._positions(grid_size)[1:])

    def forward(self, hidden_states: torch.Tensor, grid_size: tuple[int, int], **kwargs) -> torch.Tensor:
        """(batch, height * width, token_dim), a map of `grid_size` row by row -> (batch, projection_dim)."""
        hidden_states = torch.cat([hidden_states.mean(dim=1, keepdim=True), hidden_states], dim=1)
        hidden_states = hidden_states + self._positions(grid_size)
        key, value = self.attention.project_key_value(hidden_states)
        return self.attention(hidden_states[:, :1], key, value, **kwargs)[0].squeeze(1)


class ModifiedResNetModel(OpenClipVisionTower):
    """The ResNet of CLIP (https://arxiv.org/abs/2103.00020).

    Reads as three steps: embed, encode, and one attention that pools and projects. Batch norms behave as in
    torch: in training they normalise by the batch and move their running statistics.
    """

    config: ModifiedResNetConfig
    _input_embed_layer = "conv1"
    _no_split_modules = [ModifiedResNetBottleneck.__name__, FeatureMapPooler.__name__]
    _can_record_outputs = {"hidden_states": ModifiedResNetStage, "attentions": CrossAttention}

    def __init__(self, config: ModifiedResNetConfig):
        super().__init__(config)
        self.embeddings = ModifiedResNetEmbeddings(config)
        self.encoder = ModifiedResNetEncoder(config)
        self.attn_pool = FeatureMapPooler(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Conv2d):  # torch's own initial values, as in open_clip
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        else:
            super()._init_weights(module)

    def embed(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """Input of the first stage."""
        check_images(pixel_values)
        return self.embeddings(pixel_values.to(self.dtype), interpolate_pos_encoding)

    def get_patch_features(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, last_attention: bool = True
    ) -> torch.Tensor:
        """Embed each place of the last feature map; see [`OpenClipModel`]'s method. There is no other attention than
        the pooling's, and `last_attention` has no effect."""
        feature_map = self.encoder(self.embed(pixel_values, interpolate_pos_encoding))
        grid_size = tuple(feature_map.shape[-2:])
        return self.attn_pool.pool_patches(feature_map.flatten(2).transpose(1, 2), grid_size).unflatten(1, grid_size)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode images, see [`OpenClipVisionTower`].

        The tokens are the last feature map row by row, (batch, height * width, token_dim), 32 times smaller than the
        image. `hidden_states` are the feature maps (batch, channels, height, width) behind the stem and behind each of
        the four stages, with embedding_size, 4, 8, 16 and 32 times embedding_size channels, 4, 4, 8, 16 and 32 times
        smaller than the image. `attentions` are those of the pooling alone, one tensor
        (batch, heads, 1, 1 + height * width) whose first key is the mean.
        """
        self.check_kwargs(kwargs)
        feature_map = self.encoder(self.embed(pixel_values, interpolate_pos_encoding))
        tokens = feature_map.flatten(2).transpose(1, 2)
        pooled = self.attn_pool(tokens, tuple(feature_map.shape[-2:]), **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=pooled)


class ModifiedResNetBackbone(TowerBackbone, ModifiedResNetModel):
    """The feature maps of [`ModifiedResNetModel`] (open_clip: `ModifiedResNet.forward_intermediates`)."""

    has_attentions = False
    head = ("attn_pool",)

    def __init__(self, config: ModifiedResNetConfig):
        super().__init__(config)
        self.num_features = [config.embedding_size, *config.hidden_sizes]

    def stages(self) -> nn.ModuleList:
        return self.encoder.stages

    def split(self, hidden_states: torch.Tensor, pixel_values: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, hidden_states

    def feature_maps(self, pixel_values: torch.Tensor, hidden_states: torch.Tensor, **kwargs) -> TowerBackboneOutput:
        return super().feature_maps(pixel_values, hidden_states)  # convolutions have no options


__all__ = ["ModifiedResNetBackbone", "ModifiedResNetModel"]
