"""SigLIP vision transformer tower (timm: `VisionTransformer` in `vision_transformer.py`, which open_clip's `TimmModel`
in `timm_model.py` wraps; DeepSeek-VL2: `siglip_vit.py`)."""

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..configuration.configuration_common import height_and_width
from ..configuration.configuration_siglip_vit import SiglipVitConfig
from .modeling_backbones import PatchTowerMixin, TransformerBackbone
from .modeling_layers import (
    MLP,
    CrossAttention,
    PatchDropout,
    ResidualAttentionBlock,
    SiglipVitAttention,
    norm_layer,
)
from .modeling_pretrained import OpenClipVisionTower, check_pixel_values


def trunc_normal_(tensor: torch.Tensor, std: float):
    """Fill `tensor` from a normal distribution of mean 0 cut off at -2 and 2 (timm: the same name).

    Drawn in fp32 whatever the dtype: in half precision the distribution would have gaps, and its tails infinities.
    """
    if getattr(tensor, "_is_hf_initialized", False):
        return
    values = init.trunc_normal_(torch.empty_like(tensor, dtype=torch.float32), std=std)
    init.copy_(tensor, values)


def resize_position_embedding(
    position_embedding: torch.Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], num_prefix_tokens: int
) -> torch.Tensor:
    """Resize a table to another grid, its first rows apart (timm: `resample_abs_pos_embed`: bicubic, antialias).

    Args:
        position_embedding: (1, num_prefix_tokens + rows * columns of `old_grid`, hidden_size).

    Returns:
        (1, num_prefix_tokens + rows * columns of `new_grid`, hidden_size), in the same dtype.
    """
    if old_grid == new_grid:
        return position_embedding
    prefix, patches = position_embedding.tensor_split([num_prefix_tokens], dim=1)
    patches = patches.float().unflatten(1, old_grid).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=new_grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([prefix, patches.flatten(2).transpose(1, 2).to(prefix.dtype)], dim=1)


class SiglipVitEmbeddings(nn.Module):
    """Class and register tokens and patches, with positions."""

    def __init__(self, config: SiglipVitConfig):
        super().__init__()
        self.config = config
        self.num_embedded_prefix_tokens = 0 if config.no_embed_class else config.num_prefix_tokens
        patch_size = height_and_width(config.patch_size)
        self.patch_embedding = nn.Conv2d(
            config.num_channels,
            config.hidden_size,
            kernel_size=patch_size,
            stride=patch_size,
            bias=not config.use_pre_layer_norm,
        )
        self.class_embedding = self.register_embedding = None
        if config.use_class_token:
            self.class_embedding = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        if config.num_register_tokens:
            self.register_embedding = nn.Parameter(torch.empty(1, config.num_register_tokens, config.hidden_size))
        num_positions = self.num_embedded_prefix_tokens + config.grid_size[0] * config.grid_size[1]
        self.position_embedding = nn.Parameter(torch.empty(1, num_positions, config.hidden_size))
        self.dropout = nn.Dropout(config.embedding_dropout)

    def initialize(self, std: float):
        trunc_normal_(self.position_embedding, std)
        for token in (self.class_embedding, self.register_embedding):
            if token is not None:
                init.normal_(token, std=1e-6)

    def _check_shape(self, pixel_values: torch.Tensor, any_size: bool):
        config, size = self.config, tuple(pixel_values.shape[2:])
        any_size = any_size or config.dynamic_image_padding
        check_pixel_values(pixel_values, config.num_channels, config.image_size, any_size or config.dynamic_image_size)
        patch_size = height_and_width(config.patch_size)
        is_whole = size[0] % patch_size[0] == size[1] % patch_size[1] == 0
        if not (is_whole or any_size or size == height_and_width(config.image_size)):
            raise ValueError(
                f"pixel_values have height and width {size}, the model expects multiples of its patches' "
                f"{patch_size}: resize the images, or set dynamic_image_padding=True in the configuration."
            )

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """(batch, channels, height, width) -> (batch, tokens, hidden_size).

        Raises:
            ValueError: the shape is not one that the model takes.
        """
        self._check_shape(pixel_values, interpolate_pos_encoding)
        height, width = height_and_width(self.config.patch_size)
        padding = (0, -pixel_values.shape[3] % width, 0, -pixel_values.shape[2] % height)
        if self.config.dynamic_image_padding and any(padding):
            pixel_values = F.pad(pixel_values, padding)
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        positions = resize_position_embedding(
            self.position_embedding, self.config.grid_size, tuple(patches.shape[-2:]), self.num_embedded_prefix_tokens
        )
        tokens = patches.flatten(2).transpose(1, 2)
        prefix = [token for token in (self.class_embedding, self.register_embedding) if token is not None]
        if self.config.no_embed_class:
            tokens = tokens + positions
        if prefix:
            tokens = torch.cat([*(token.expand(tokens.shape[0], -1, -1) for token in prefix), tokens], dim=1)
        if not self.config.no_embed_class:
            tokens = tokens + positions
        return self.dropout(tokens)


class SiglipVitMLP(MLP):
    """MLP with dropout behind both layers (timm: `Mlp`)."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dropout(self.activation_fn(self.fc1(hidden_states)))
        return self.dropout(self.fc2(hidden_states))


class SiglipVitBlock(ResidualAttentionBlock):
    """Layer that normalises the input of each residual branch (timm: `Block`)."""

    attention_class = SiglipVitAttention
    _gradient_checkpointing = False

    def __init__(self, config: SiglipVitConfig, layer_idx: int):
        super().__init__(config, layer_idx, is_causal=False)
        self.recomputes = config.num_recomputing_layers is None or layer_idx < config.num_recomputing_layers

    @staticmethod
    def build_mlp(config: PreTrainedConfig) -> MLP:
        return SiglipVitMLP(config)

    # transformers switches every layer of a model, in whichever model it stands; this one may decline.
    @property
    def gradient_checkpointing(self) -> bool:
        """Whether the backward pass computes the layer anew."""
        return self._gradient_checkpointing and self.recomputes

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool):
        self._gradient_checkpointing = enable


class SiglipVitPostNormBlock(SiglipVitBlock):
    """Layer that normalises behind each residual sum (https://arxiv.org/abs/1706.03762)."""

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        """(batch, length, hidden_size) -> the same."""
        attn_output, _ = self.self_attn(hidden_states, **kwargs)
        hidden_states = self.layer_norm1(hidden_states + self.drop_path1(self.layer_scale1(attn_output)))
        return self.layer_norm2(hidden_states + self.drop_path2(self.layer_scale2(self.mlp(hidden_states))))


class SiglipVitResPostNormBlock(SiglipVitBlock):
    """Layer that normalises the output of each residual branch (https://arxiv.org/abs/2111.09883; timm:
    `ResPostBlock`)."""

    def __init__(self, config: SiglipVitConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.layer_scale1 = self.layer_scale2 = nn.Identity()
        for norm in (self.layer_norm1, self.layer_norm2):
            norm.initial_weight = config.layer_scale_init_value

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        """(batch, length, hidden_size) -> the same."""
        attn_output, _ = self.self_attn(hidden_states, **kwargs)
        hidden_states = hidden_states + self.drop_path1(self.layer_norm1(attn_output))
        return hidden_states + self.drop_path2(self.layer_norm2(self.mlp(hidden_states)))


BLOCKS = {
    "pre_norm": SiglipVitBlock,
    "post_norm": SiglipVitPostNormBlock,
    "res_post_norm": SiglipVitResPostNormBlock,
}


class SiglipVitEncoder(nn.Module):
    """The stack of layers, up to the selected one."""

    def __init__(self, config: SiglipVitConfig):
        super().__init__()
        block = BLOCKS[config.block_type]
        self.layers = nn.ModuleList([block(config, i) for i in range(config.num_selected_layers)])

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        """(batch, length, hidden_size) -> the same."""
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return hidden_states


class LatentPooler(nn.Module):
    """Pool tokens by one learned query and an MLP (https://arxiv.org/abs/2106.04560; timm: `AttentionPoolLatent`)."""

    def __init__(self, config: PreTrainedConfig, intermediate_size: int, hidden_act: str):
        super().__init__()
        self.config = config
        self.latent = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.attention = CrossAttention(config, config.hidden_size, config.hidden_size, config.num_attention_heads)
        self.layer_norm = norm_layer(config, config.hidden_size)
        self.mlp = MLP(config, intermediate_size)
        self.mlp.activation_fn = ACT2FN[hidden_act]

    def initialize(self, std: float):
        trunc_normal_(self.latent, self.latent.shape[-1] ** -0.5)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
        """(batch, tokens, hidden_size), and a mask (batch, tokens) of those that count -> (batch, hidden_size)."""
        key, value = self.attention.project_key_value(hidden_states)
        latent = self.latent
        if mask is not None:
            latent = latent.expand(hidden_states.shape[0], -1, -1)
            mask = create_bidirectional_mask(
                config=self.config, inputs_embeds=latent, attention_mask=mask, encoder_hidden_states=hidden_states
            )
        # timm's pooler has no dropout.
        pooled, _ = self.attention(latent, key, value, mask, dropout=0.0, **kwargs)
        pooled = pooled[:, 0]
        return pooled + self.mlp(self.layer_norm(pooled))

    def pool_patches(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pool each token alone: (batch, tokens, hidden_size) -> the same."""
        pooled = self.attention.project_value(tokens)
        return pooled + self.mlp(self.layer_norm(pooled))


class ProjectionMLP(nn.Module):
    """Projection of two layers (open_clip: `timm_proj="mlp"`)."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        projection_dim = cast(int, config.projection_dim)
        self.fc1 = nn.Linear(config.hidden_size, 2 * projection_dim)
        self.dropout = nn.Dropout(config.projection_dropout)
        self.fc2 = nn.Linear(2 * projection_dim, projection_dim, bias=config.proj_bias)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.dropout(F.gelu(self.fc1(pooled))))


class SiglipVitModel(PatchTowerMixin, OpenClipVisionTower):
    """The vision transformer of SigLIP and DeepSeek-VL2 (https://arxiv.org/abs/2303.15343).

    Reads as four steps: embed, encode, pool, project. Keys of timm's `VisionTransformer`, with separate attention
    projections.
    """

    config: SiglipVitConfig
    _input_embed_layer = "patch_embedding"
    _no_split_modules = [
        *OpenClipVisionTower._no_split_modules,
        *(block.__name__ for block in BLOCKS.values()),
        SiglipVitEmbeddings.__name__,
        LatentPooler.__name__,
    ]

    def __init__(self, config: SiglipVitConfig):
        super().__init__(config)
        self.embeddings = SiglipVitEmbeddings(config)
        self.patch_dropout = nn.Identity()
        if config.patch_dropout:
            self.patch_dropout = PatchDropout(config.patch_dropout, config.num_prefix_tokens)
        self.pre_layernorm = norm_layer(config, config.hidden_size) if config.use_pre_layer_norm else nn.Identity()
        self.encoder = SiglipVitEncoder(config)
        self.post_layernorm = nn.Identity() if config.use_fc_norm else norm_layer(config, config.hidden_size)
        self.pooler = None
        if config.pool_type == "map":
            self.pooler = LatentPooler(config, config.intermediate_size, cast(str, config.pooler_hidden_act))
        self.fc_norm = norm_layer(config, config.hidden_size) if config.use_fc_norm else nn.Identity()
        self.dropout = nn.Dropout(config.projection_dropout)
        self.projection = nn.Identity()
        if config.proj_type == "linear":
            self.projection = nn.Linear(config.hidden_size, config.projection_dim, bias=config.proj_bias)
        elif config.proj_type == "mlp":
            self.dropout, self.projection = nn.Identity(), ProjectionMLP(config)
        # A checkpoint may have the layers behind the selected one.
        unused = "|".join(str(i) for i in range(config.num_selected_layers, config.num_hidden_layers))
        if unused:
            pattern = rf"^(vision_model\.)?encoder\.layers\.({unused})\."
            self._keys_to_ignore_on_load_unexpected = [*self._keys_to_ignore_on_load_unexpected, pattern]
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Linear | nn.Conv2d):
            trunc_normal_(module.weight, self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
            return
        super()._init_weights(module)

    def pool(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, hidden_size) -> (batch, hidden_size), or all tokens with `pool_type="none"`."""
        if self.config.pool_type == "none":
            return hidden_states
        if self.config.pool_type == "token":
            return hidden_states[:, 0]
        if not self.config.pool_include_prefix:
            hidden_states = hidden_states[:, self.config.num_prefix_tokens :]
        if self.pooler is None:
            return hidden_states.mean(dim=1)
        return self.pooler(hidden_states, **self.layer_kwargs())

    @property
    def num_prefix_tokens(self) -> int:
        return self.config.num_prefix_tokens

    def patch_grid(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        if not self.config.dynamic_image_padding:
            return super().patch_grid(pixel_values)
        height, width = height_and_width(self.config.patch_size)
        return -(-pixel_values.shape[-2] // height), -(-pixel_values.shape[-1] // width)

    def layer_kwargs(self) -> dict:
        return {"deterministic": True} if self.config.deterministic else {}

    def pool_patches(self, patches: torch.Tensor) -> torch.Tensor:
        if self.config.ignore_head:
            raise ValueError(
                "This SigLIP tower has ignore_head=True: it has no pooling and no projection to embed with."
            )
        patches = self.post_layernorm(patches)
        return self.dropout(self.fc_norm(patches if self.pooler is None else self.pooler.pool_patches(patches)))

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode images, see [`OpenClipVisionTower`].

        The tokens are class and register tokens and patches behind the last layer norm, or before it with
        `use_fc_norm`. With `ignore_head` there is no `pooler_output`.
        """
        self.check_kwargs(kwargs)
        kwargs |= self.layer_kwargs()
        hidden_states = self.embeddings(pixel_values, interpolate_pos_encoding)
        hidden_states = self.pre_layernorm(self.patch_dropout(hidden_states))
        tokens = self.post_layernorm(self.encoder(hidden_states, **kwargs))
        if self.config.ignore_head:
            return BaseModelOutputWithPooling(last_hidden_state=tokens)
        pooled = self.fc_norm(self.pool(tokens))
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens, pooler_output=self.projection(self.dropout(pooled))
        )


class SiglipVitBackbone(TransformerBackbone, SiglipVitModel):
    """The feature maps of [`SiglipVitModel`] (timm: `VisionTransformer.forward_intermediates`)."""

    head_behind_norm = ("pooler", "fc_norm", "dropout", "projection")


__all__ = ["SiglipVitBackbone", "SiglipVitModel"]
