"""NaFlex vision transformer tower (timm: `NaFlexVit` in `naflexvit.py`, which open_clip's `TimmModel` in
`timm_model.py` wraps)."""

from collections.abc import Callable
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..configuration.configuration_common import height_and_width
from ..configuration.configuration_naflex_vit import NaFlexVitConfig
from .modeling_layers import MLP, PatchDropout, ResidualAttentionBlock, SiglipVitAttention, norm_layer
from .modeling_pretrained import OpenClipVisionTower, check_images, check_tensor
from .modeling_siglip_vit import LatentPooler, ProjectionMLP, SiglipVitMLP, trunc_normal_


def _triangle(distance: torch.Tensor) -> torch.Tensor:
    return (1 - distance.abs()).clamp(min=0)


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    # Keys' kernel with a = -0.5, which PyTorch takes where it antialiases.
    x = distance.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


# Filter of a resize -> its weight at a distance.
FILTERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"bilinear": _triangle, "bicubic": _cubic}


def resize_weights(index: torch.Tensor, size: torch.Tensor, length: int, interpolation: str) -> torch.Tensor:
    """Weights of a line's entries in each entry of the resized line (torch: `F.interpolate(antialias=True)`).

    Args:
        index: (...) of entries in the resized line.
        size: (...) or broadcast to it, its length.
        length: that of the line.
        interpolation: key of `FILTERS`.

    Returns:
        (..., length) fp32, of sum 1.
    """
    scale = (length / size.float()).unsqueeze(-1)
    centre = (index.float().unsqueeze(-1) + 0.5) * scale - 0.5
    source = torch.arange(length, device=index.device, dtype=torch.float32)
    weights = FILTERS[interpolation]((source - centre) / scale.clamp(min=1))
    return weights / weights.sum(-1, keepdim=True)


class NaFlexVitEmbeddings(nn.Module):
    """Class and register tokens and patches, with positions."""

    def __init__(self, config: NaFlexVitConfig):
        super().__init__()
        self.config = config
        height, width = height_and_width(config.patch_size)
        self.patch_embedding = nn.Linear(height * width * config.num_channels, config.hidden_size)
        self.class_embedding = self.register_embedding = None
        if config.use_class_token:
            self.class_embedding = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        if config.num_register_tokens:
            self.register_embedding = nn.Parameter(torch.empty(1, config.num_register_tokens, config.hidden_size))
        rows, columns = height_and_width(config.position_grid_size)
        self.position_embedding = nn.Parameter(torch.empty(1, rows, columns, config.hidden_size))
        self.dropout = nn.Dropout(config.embedding_dropout)

    def initialize(self, std: float):
        init.normal_(self.position_embedding, std=std)
        for token in (self.class_embedding, self.register_embedding):
            if token is not None:
                init.normal_(token, std=1e-6)

    def positions(self, spatial_shapes: torch.Tensor, length: int) -> torch.Tensor:
        """Resize the table to the grids of images.

        Args:
            spatial_shapes: (images, 2), rows and columns of patches.
            length: patches an image, padding included.

        Returns:
            (images, length, hidden_size); any value on padding.
        """
        table, config = self.position_embedding[0], self.config
        rows, columns = spatial_shapes.split(1, dim=-1)
        place = torch.arange(length, device=spatial_shapes.device)
        row, column = place // columns, place % columns
        if config.keep_position_aspect_ratio:
            # A grid of the table's own size takes the table as it is, also where it is no square.
            is_own = (rows == table.shape[0]) & (columns == table.shape[1])
            longer = spatial_shapes.amax(-1, keepdim=True)
            rows, columns = torch.where(is_own, rows, longer), torch.where(is_own, columns, longer)
        weights = [
            resize_weights(index, size, side, config.position_interpolation)
            for index, size, side in ((row, rows, table.shape[0]), (column, columns, table.shape[1]))
        ]
        # Resizing is linear: each position is the table weighted by its row's and its column's weights.
        joint = (weights[0].unsqueeze(-1) * weights[1].unsqueeze(-2)).flatten(-2)
        # Rows of padding lie beyond the table, where the filter has no weight.
        joint = joint.nan_to_num().to(table.device)
        return (joint @ table.flatten(0, 1).float()).to(table.dtype)

    def forward(self, patches: torch.Tensor, spatial_shapes: torch.Tensor) -> torch.Tensor:
        """Patches (images, length, values) and their grids (images, 2) -> (images, tokens, hidden_size)."""
        tokens = self.patch_embedding(patches.to(self.patch_embedding.weight.dtype))
        tokens = tokens + self.positions(spatial_shapes, tokens.shape[1]).to(tokens.device)
        prefix = [token for token in (self.class_embedding, self.register_embedding) if token is not None]
        if prefix:
            tokens = torch.cat([*(token.expand(tokens.shape[0], -1, -1) for token in prefix), tokens], dim=1)
        return self.dropout(tokens)


class GatedSiglipVitMLP(SiglipVitMLP):
    """MLP with a gate (https://arxiv.org/abs/2002.05202; timm: `GluMlp` with `gate_last=False`)."""

    def __init__(self, config: NaFlexVitConfig):
        super().__init__(config)
        self.activation_fn = nn.SiLU()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.activation_fn(self.gate(hidden_states)) * self.fc1(hidden_states)
        return self.dropout(self.fc2(self.dropout(hidden_states)))


class NaFlexVitBlock(ResidualAttentionBlock):
    """Layer that normalises the input of each residual branch (timm: `Block`)."""

    attention_class = SiglipVitAttention

    def __init__(self, config: NaFlexVitConfig, layer_idx: int):
        super().__init__(config, layer_idx, is_causal=False)

    @staticmethod
    def build_mlp(config: PreTrainedConfig) -> MLP:
        return SiglipVitMLP(config)


class NaFlexVitGatedBlock(NaFlexVitBlock):
    """Layer with a gated MLP, and no bias of the keys (timm: `EvaBlock` with `swiglu_mlp`)."""

    def __init__(self, config: NaFlexVitConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.self_attn.k_proj.bias = None

    @staticmethod
    def build_mlp(config: PreTrainedConfig) -> MLP:
        return GatedSiglipVitMLP(config)


BLOCKS = {"mlp": NaFlexVitBlock, "swiglu": NaFlexVitGatedBlock}


class MaskedPatchDropout(PatchDropout):
    """Patch dropout where some patches are padding, which it does not look at (timm: `PatchDropoutWithIndices`)."""

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, tokens, hidden_size) and their mask (batch, tokens) -> the same with fewer tokens while training."""
        if not (self.training and self.prob):
            return hidden_states, mask
        kept = self.kept_tokens(hidden_states)
        hidden_states = hidden_states.gather(1, kept.unsqueeze(-1).expand(-1, -1, hidden_states.shape[-1]))
        return hidden_states, None if mask is None else mask.gather(1, kept)


class NaFlexVitEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: NaFlexVitConfig):
        super().__init__()
        block = BLOCKS[config.block_type]
        self.layers = nn.ModuleList([block(config, i) for i in range(config.num_hidden_layers)])

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs) -> torch.Tensor:
        """(batch, length, hidden_size) -> the same."""
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return hidden_states


def patchify(pixel_values: torch.Tensor, patch_size: tuple[int, int]) -> torch.Tensor:
    """Cut images into patches in rows (timm: `batch_patchify`).

    Args:
        pixel_values: (images, channels, height, width), whole patches.
        patch_size: height and width of a patch.

    Returns:
        (images, patches, values of a patch), the channels of a pixel side by side.
    """
    height, width = patch_size
    patches = pixel_values.unflatten(3, (-1, width)).unflatten(2, (-1, height))
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


class NaFlexVitModel(OpenClipVisionTower):
    """The vision transformer of SigLIP 2 NaFlex, for images of any size and aspect ratio as patches
    (https://arxiv.org/abs/2502.14786).

    Reads as four steps: embed, encode, pool, project. Keys of timm's `NaFlexVit`, with separate attention projections.
    """

    config: NaFlexVitConfig
    _input_embed_layer = "patch_embedding"
    _no_split_modules = [
        *OpenClipVisionTower._no_split_modules,
        *(block.__name__ for block in BLOCKS.values()),
        NaFlexVitEmbeddings.__name__,
        LatentPooler.__name__,
    ]

    def __init__(self, config: NaFlexVitConfig):
        super().__init__(config)
        self.embeddings = NaFlexVitEmbeddings(config)
        self.patch_dropout = MaskedPatchDropout(config.patch_dropout, config.num_prefix_tokens)
        self.encoder = NaFlexVitEncoder(config)
        self.post_layernorm = nn.Identity() if config.use_fc_norm else norm_layer(config, config.hidden_size)
        self.pooler = None
        if config.pool_type == "map":
            self.pooler = LatentPooler(config, cast(int, config.pooler_intermediate_size), config.hidden_act)
        self.fc_norm = norm_layer(config, config.hidden_size) if config.use_fc_norm else nn.Identity()
        self.dropout = nn.Dropout(config.projection_dropout)
        self.projection = nn.Identity()
        if config.proj_type == "linear":
            self.projection = nn.Linear(config.hidden_size, config.projection_dim, bias=config.proj_bias)
        elif config.proj_type == "mlp":
            self.dropout, self.projection = nn.Identity(), ProjectionMLP(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
            return
        super()._init_weights(module)

    def _as_patches(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None,
        spatial_shapes: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Patches, mask and grids of images that are given as patches or whole."""
        check_images(pixel_values)
        patch_size, shape = height_and_width(self.config.patch_size), tuple(pixel_values.shape)
        if len(shape) == 3:
            check_patches(pixel_values, pixel_attention_mask, spatial_shapes, self.embeddings.patch_embedding)
            if pixel_attention_mask is None:
                place = torch.arange(shape[1], device=spatial_shapes.device)
                pixel_attention_mask = place < spatial_shapes.prod(-1, keepdim=True)
            return pixel_values, pixel_attention_mask, spatial_shapes
        channels = self.config.num_channels
        if len(shape) != 4 or shape[1] != channels or 0 in shape:
            raise ValueError(
                f"pixel_values have shape {shape}, the model expects patches (batch, patches, "
                f"{self.embeddings.patch_embedding.in_features}), or whole images (batch, {channels}, height, width)."
            )
        if pixel_attention_mask is not None or spatial_shapes is not None:
            raise ValueError(
                f"pixel_values have shape {shape}, which are whole images: leave out pixel_attention_mask and "
                "spatial_shapes, which belong to patches."
            )
        grid = [size // side for size, side in zip(shape[2:], patch_size)]
        if any(size % side for size, side in zip(shape[2:], patch_size)):
            raise ValueError(
                f"pixel_values have height and width {shape[2:]}, the model expects multiples of its patches' "
                f"{patch_size}: use the image processor saved with the model."
            )
        spatial_shapes = torch.tensor(grid, device=pixel_values.device).expand(shape[0], 2)
        return patchify(pixel_values, patch_size), None, spatial_shapes

    def pool(self, hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(batch, tokens, hidden_size), and a mask (batch, tokens) of those that are no padding -> (batch,
        hidden_size)."""
        if self.config.pool_type == "token":
            return hidden_states[:, 0]
        if not self.config.pool_include_prefix:
            prefix = self.config.num_prefix_tokens
            hidden_states, mask = hidden_states[:, prefix:], None if mask is None else mask[:, prefix:]
        if self.pooler is not None:
            return self.pooler(hidden_states, mask)
        if mask is None:
            return hidden_states.mean(dim=1)
        weights = mask.unsqueeze(-1).to(hidden_states)
        return (hidden_states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode images, given as patches or whole.

        Args:
            pixel_values: (batch, patches, height * width * channels of a patch), the patches of each image in rows and
                padding behind them; or whole images (batch, channels, height, width), whose sides are multiples of the
                patches'. Normalised as the image processor does; any floating dtype.
            interpolate_pos_encoding: other towers have to be asked to resize their position embeddings; this one
                always does.
            pixel_attention_mask: (batch, patches), 0 on padding; by default what `spatial_shapes` say.
            spatial_shapes: (batch, 2) of integers, rows and columns of patches of each image.

        Returns:
            `last_hidden_state` (batch, tokens, token_dim): class and register tokens, and the patches with their
            padding, behind the last layer norm, or before it with `use_fc_norm`; `pooler_output` (batch,
            projection_dim), not normalised; on request `hidden_states` and `attentions`.

        Raises:
            ValueError: shapes that the model does not take, or that do not fit together.
        """
        self.check_kwargs(kwargs)
        patches, mask, spatial_shapes = self._as_patches(pixel_values, pixel_attention_mask, spatial_shapes)
        hidden_states = self.embeddings(patches, spatial_shapes)
        if mask is not None:
            mask = F.pad(mask.bool().to(hidden_states.device), (self.config.num_prefix_tokens, 0), value=True)
        hidden_states, mask = self.patch_dropout(hidden_states, mask)
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=mask
        )
        tokens = self.post_layernorm(self.encoder(hidden_states, attention_mask, **kwargs))
        pooled = self.fc_norm(self.pool(tokens, mask))
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens, pooler_output=self.projection(self.dropout(pooled))
        )


def check_patches(
    pixel_values: torch.Tensor,
    pixel_attention_mask: torch.Tensor | None,
    spatial_shapes: torch.Tensor | None,
    patch_embedding: nn.Linear,
):
    """Raise `ValueError` unless patches have the model's size, and mask and grids fit them."""
    shape, size = tuple(pixel_values.shape), patch_embedding.in_features
    if shape[2] != size or 0 in shape:
        raise ValueError(f"pixel_values have shape {shape}, the model expects patches (batch, patches, {size}).")
    if spatial_shapes is None:
        raise ValueError(
            f"pixel_values have shape {shape}, which are patches: pass spatial_shapes (batch, 2) too, the rows and "
            "columns of patches of each image, as the image processor gives them."
        )
    expected = {"spatial_shapes": (shape[0], 2), "pixel_attention_mask": shape[:2]}
    given = {"spatial_shapes": spatial_shapes, "pixel_attention_mask": pixel_attention_mask}
    for name, tensor in given.items():
        if tensor is not None:
            check_tensor(name, tensor)
        if tensor is not None and tuple(tensor.shape) != expected[name]:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, the model expects {expected[name]} for pixel_values {shape}."
            )
    if torch.compiler.is_compiling() or spatial_shapes.is_meta:
        return
    counts = spatial_shapes.prod(-1)
    is_outside = (spatial_shapes < 1) | (spatial_shapes > shape[1])  # whose product could overflow
    if spatial_shapes.is_floating_point() or is_outside.any() or (counts > shape[1]).any():
        raise ValueError(
            f"spatial_shapes must be whole numbers of rows and columns, of {shape[1]} patches at most as pixel_values "
            f"have, got {spatial_shapes.tolist()}."
        )
    place = torch.arange(shape[1], device=counts.device)
    if pixel_attention_mask is not None and not torch.equal(
        pixel_attention_mask.bool().to(counts.device), place < counts.unsqueeze(-1)
    ):
        raise ValueError(
            "pixel_attention_mask must be 1 on as many first patches of each image as its spatial_shapes have, "
            f"{counts.tolist()}, and 0 behind them: pass both as the image processor gives them."
        )


__all__ = ["NaFlexVitModel"]
