"""Layers that the towers and the captioners' decoders are made of (open_clip: `transformer.py`)."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.activations import QuickGELUActivation as QuickGELU
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class LayerNormFp32(nn.LayerNorm):
    """Layer norm that computes in fp32 and returns the input's dtype."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        normalized = F.layer_norm(
            hidden_states.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )
        return normalized.to(hidden_states.dtype)


NORM_LAYERS = {"layer_norm": nn.LayerNorm, "layer_norm_fp32": LayerNormFp32, "rms_norm": nn.RMSNorm}


def norm_layer(config: PreTrainedConfig, hidden_size: int) -> nn.LayerNorm | nn.RMSNorm:
    """The norm that `config` asks for, over `hidden_size` features."""
    return NORM_LAYERS[config.norm_layer](hidden_size, eps=config.layer_norm_eps)


class LayerScale(nn.Module):
    """Learned scale per feature on a residual branch (https://arxiv.org/abs/2103.17239)."""

    def __init__(self, hidden_size: int, init_value: float):
        super().__init__()
        self.init_value = init_value
        self.gamma = nn.Parameter(torch.empty(hidden_size))

    def initialize(self, std: float):
        init.constant_(self.gamma, self.init_value)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * self.gamma


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch per sample in training (https://arxiv.org/abs/1603.09382)."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return hidden_states
        keep_prob = 1 - self.drop_prob
        shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
        return hidden_states * hidden_states.new_empty(shape).bernoulli_(keep_prob).div_(keep_prob)


class PatchDropout(nn.Module):
    """Keep the first tokens and a random share of the others in training (https://arxiv.org/abs/2212.00794)."""

    def __init__(self, prob: float, num_prefix_tokens: int = 1):
        super().__init__()
        self.prob = prob
        self.num_prefix_tokens = num_prefix_tokens

    def kept_tokens(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, hidden_size) -> (batch, tokens kept) of their indices, drawn anew at each call."""
        batch, num_patches = hidden_states.shape[0], hidden_states.shape[1] - self.num_prefix_tokens
        num_keep = max(1, int(num_patches * (1 - self.prob)))
        noise = torch.randn(batch, num_patches, device=hidden_states.device)
        prefix = torch.arange(self.num_prefix_tokens, device=hidden_states.device).expand(batch, -1)
        return torch.cat((prefix, noise.topk(num_keep, dim=-1).indices + self.num_prefix_tokens), dim=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, hidden_size) -> the same with fewer tokens while training."""
        if not self.training:
            return hidden_states
        kept = self.kept_tokens(hidden_states).unsqueeze(-1)
        return hidden_states.gather(1, kept.expand(-1, -1, hidden_states.shape[-1]))


class MLP(nn.Module):
    """Two linear layers around an activation, by default as wide inside as the layers' are."""

    def __init__(self, config: PreTrainedConfig, intermediate_size: int | None = None):
        super().__init__()
        intermediate_size = intermediate_size or config.intermediate_size
        self.fc1 = nn.Linear(config.hidden_size, intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class NormedMLP(MLP):
    """MLP with a layer norm behind the activation (https://arxiv.org/abs/2110.09456; open_clip: `scale_fc`)."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.norm = norm_layer(config, config.intermediate_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.norm(self.activation_fn(self.fc1(hidden_states))))


class ModernMLP(MLP):
    """MLP with or without biases (fields of [`ModernLayersConfig`])."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        if not config.mlp_bias:
            self.fc1.bias = self.fc2.bias = None


class GatedMLP(ModernMLP):
    """MLP whose activation gates a second projection (https://arxiv.org/abs/2002.05202; open_clip: `SwiGLU`)."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.fc1(hidden_states) * self.activation_fn(self.gate(hidden_states)))


def _by_row(attn_weights: torch.Tensor, rows_per_key: int) -> torch.Tensor:
    """(images, heads, rows an image * length, tokens) -> (rows, heads, length, tokens)."""
    return attn_weights.unflatten(2, (rows_per_key, -1)).transpose(1, 2).flatten(0, 1)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    rows_per_key: int = 1,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that returns its weights; shapes as in transformers' attention interface.

    With `rows_per_key` rows of queries, one behind the other in the length of `query`, the weights are per row. Those
    returned are those used, so that gradients reach them.
    """
    attn_weights = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        attn_weights = attn_weights + attention_mask
    attn_weights = F.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    attn_weights = F.dropout(attn_weights, p=dropout, training=module.training)
    if rows_per_key == 1:
        return torch.matmul(attn_weights, value).transpose(1, 2), attn_weights
    attn_weights = _by_row(attn_weights, rows_per_key)
    folded_weights = attn_weights.unflatten(0, (-1, rows_per_key)).transpose(1, 2).flatten(2, 3)
    return torch.matmul(folded_weights, value).transpose(1, 2), attn_weights


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float | None = None,
    deterministic: bool = False,
    causal: bool | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run the attention function chosen in `module.config`.

    Args:
        query, key, value: (batch, heads, length, head_dim).
        attention_mask: what transformers' mask functions make for that function, or `None`.
        dropout: dropout probability in training, by default `attention_dropout` of the configuration.
        deterministic: use kernels whose gradients are the same on every run.
        causal: whether each query sees no key behind it, by default what `module` was made for; functions read it
            where `attention_mask` does not say so.

    Returns:
        The context (batch, length, heads, head_dim), and the weights (batch, heads, length, key length) or `None`.
    """
    attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
        module.config._attn_implementation, eager_attention_forward
    )
    dropout = module.config.attention_dropout if dropout is None else dropout
    # transformers forwards `config.is_causal` among the keyword arguments.
    kwargs |= {
        "is_causal": module.is_causal if causal is None else causal,
        "scaling": module.scaling,
        "dropout": dropout if module.training else 0.0,
    }
    if not deterministic:
        return attention_interface(module, query, key, value, attention_mask, **kwargs)
    # `deterministic` is FlashAttention's. PyTorch's fused kernels have only a global switch, its plain one needs none.
    with sdpa_kernel(SDPBackend.MATH):
        return attention_interface(module, query, key, value, attention_mask, deterministic=True, **kwargs)


class Attention(nn.Module):
    """Multi-head self-attention (open_clip: `nn.MultiheadAttention`, whose `in_proj` is split in three here)."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int, is_causal: bool):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def project_query_key_value(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(batch, length, hidden_size) -> queries, keys and values, of the same shape."""
        return self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)

    def normalize_query_key(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalize queries and keys, both (batch, heads, length, head_dim), where a subclass does."""
        return query, key

    def project_context(self, context: torch.Tensor) -> torch.Tensor:
        """(batch, length, heads, head_dim) -> (batch, length, hidden_size)."""
        return self.out_proj(context.flatten(2))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, length, hidden_size) -> the same, and the attention weights where the function gives them."""
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            states.view(heads).transpose(1, 2) for states in self.project_query_key_value(hidden_states)
        )
        query, key = self.normalize_query_key(query, key)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        context, attn_weights = attend(self, query, key, value, attention_mask, **kwargs)
        return self.project_context(context), attn_weights


class CustomAttention(Attention):
    """Self-attention with open_clip's options (open_clip: `Attention`; fields of [`OpenClipTowerConfig`])."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int, is_causal: bool):
        super().__init__(config, layer_idx, is_causal)
        self.q_norm = norm_layer(config, self.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = norm_layer(config, self.head_dim) if config.qk_norm else nn.Identity()
        self.logit_scale = self.head_scale = None
        if config.scaled_cosine_attn:
            self.scaling = 1.0
            self.logit_scale = nn.Parameter(torch.empty(config.num_attention_heads, 1, 1))
        if config.scale_heads:
            self.head_scale = nn.Parameter(torch.empty(config.num_attention_heads, 1, 1))
        self.inner_norm = norm_layer(config, config.hidden_size) if config.scale_attn_inner else nn.Identity()

    def initialize(self, std: float):
        if self.logit_scale is not None:
            init.constant_(self.logit_scale, math.log(10))
        if self.head_scale is not None:
            init.ones_(self.head_scale)

    def normalize_query_key(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.logit_scale is None:
            return self.q_norm(query), self.k_norm(key)
        # open_clip 3.3.0 raises here (`torch.bmm` on 4-D tensors); this is what the line means, with the temperature
        # moved from the scores to the queries so that every attention function can be used.
        temperature = self.logit_scale.clamp(max=math.log(100)).exp()
        return F.normalize(query, dim=-1) * temperature, F.normalize(key, dim=-1)

    def project_context(self, context: torch.Tensor) -> torch.Tensor:
        if self.head_scale is not None:
            context = context * self.head_scale.view(-1, 1)
        return self.out_proj(self.inner_norm(context.flatten(2)))


class SiglipVitAttention(Attention):
    """Self-attention of SigLIP's vision transformer (timm: `Attention`; fields of [`SiglipVitConfig`])."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int, is_causal: bool):
        super().__init__(config, layer_idx, is_causal)
        if not config.qkv_bias:
            self.q_proj.bias = self.k_proj.bias = self.v_proj.bias = None
        self.q_norm = norm_layer(config, self.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = norm_layer(config, self.head_dim) if config.qk_norm else nn.Identity()
        self.dropout = nn.Dropout(config.hidden_dropout)

    def normalize_query_key(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.q_norm(query), self.k_norm(key)

    def project_context(self, context: torch.Tensor) -> torch.Tensor:
        return self.dropout(super().project_context(context))


# Cosines and sines, both (batch or 1, 1, length, head_dim / 2).
Rotation = tuple[torch.Tensor, torch.Tensor]


def rotation_of(config: PreTrainedConfig, position_ids: torch.Tensor, dtype: torch.dtype) -> Rotation | None:
    """Angles of rotary position embeddings (https://arxiv.org/abs/2104.09864) for positions (batch or 1, length).

    `None` for layers without positions (`position_embedding_type` of [`ModernLayersConfig`]).
    """
    if config.position_embedding_type != "rope":
        return None
    exponents = torch.arange(0, config.head_dim, 2, device=position_ids.device, dtype=torch.float32) / config.head_dim
    angles = (position_ids.unsqueeze(-1).float() * config.rope_theta**-exponents).unsqueeze(1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(states: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotate pairs of neighbouring features of queries or keys (batch, heads, length, head_dim)."""
    cos, sin = rotation
    even, odd = states[..., ::2], states[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class ModernAttention(Attention):
    """Self-attention of modern text towers (open_clip: `ModernTextAttention`; fields of [`ModernLayersConfig`])."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int, is_causal: bool):
        super().__init__(config, layer_idx, is_causal)
        if not config.attention_bias:
            self.q_proj.bias = self.k_proj.bias = self.v_proj.bias = self.out_proj.bias = None
        self.q_norm = norm_layer(config, self.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = norm_layer(config, self.head_dim) if config.qk_norm else nn.Identity()
        self.gate = self.value_mix = None
        if config.use_attention_gate:
            self.gate = nn.Linear(config.hidden_size, config.hidden_size, bias=config.gate_bias)
        # The first layer has the values that the others mix theirs with.
        if config.use_value_residual and layer_idx:
            self.value_mix = nn.Parameter(torch.empty(1))

    def initialize(self, std: float):
        if self.value_mix is not None:
            init.constant_(self.value_mix, 0.5)

    def forward(
        self,
        hidden_states: torch.Tensor,
        first_value: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        rotation: Rotation | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """(batch, length, hidden_size) -> the same, the attention weights where the function gives them, and the
        values of the first layer, (batch, heads, length, head_dim)."""
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            states.view(heads).transpose(1, 2) for states in self.project_query_key_value(hidden_states)
        )
        first_value = value if first_value is None else first_value
        if self.value_mix is not None:
            value = torch.lerp(first_value, value, self.value_mix.to(value.dtype))
        query, key = self.q_norm(query), self.k_norm(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        context, attn_weights = attend(self, query, key, value, attention_mask, **kwargs)
        context = context.flatten(2)
        if self.gate is not None:
            context = context * self.gate(hidden_states).sigmoid()
        return self.out_proj(context), attn_weights, first_value


class CrossAttention(nn.Module):
    """Multi-head attention from queries to the tokens of an image, which several rows of queries may share."""

    def __init__(
        self,
        config: PreTrainedConfig,
        hidden_size: int,
        key_value_size: int,
        num_attention_heads: int,
        output_size: int | None = None,
    ):
        super().__init__()
        self.config = config
        self.is_causal = False
        self.head_dim = hidden_size // num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(key_value_size, hidden_size)
        self.v_proj = nn.Linear(key_value_size, hidden_size)
        self.out_proj = nn.Linear(hidden_size, output_size or hidden_size)

    def project_key_value(self, image_hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(images, tokens, key_value_size) -> keys and values, both (images, heads, tokens, head_dim)."""
        heads = (*image_hidden_states.shape[:-1], -1, self.head_dim)
        key = self.k_proj(image_hidden_states).view(heads).transpose(1, 2)
        value = self.v_proj(image_hidden_states).view(heads).transpose(1, 2)
        return key, value

    def normalize_query(self, query: torch.Tensor) -> torch.Tensor:
        """Normalize queries (images, heads, length, head_dim), where a subclass does."""
        return query

    def project_context(self, context: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """(rows, length, hidden_size), and what asked for it -> (rows, length, output_size)."""
        return self.out_proj(context)

    def forward(
        self,
        hidden_states: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend to `key` and `value`, (images, heads, tokens, head_dim).

        Args:
            hidden_states: (rows, length, hidden_size). The rows of one image stand side by side; a single row is
                asked of every image.
            attention_mask: what transformers' mask functions make for one row of queries an image.

        Returns:
            (rows, length, output_size), with rows = images where there was a single one, and the attention weights
            (rows, heads, length, tokens) where the function gives them.
        """
        images, num_heads = key.shape[:2]
        query = self.q_proj(hidden_states)
        if query.shape[0] < images:
            query = query.expand(images, -1, -1)
        rows, length = query.shape[:2]
        # Beams and samples of an image become more queries of it, so that its keys and values are never copied.
        query = self.normalize_query(query.reshape(images, -1, num_heads, self.head_dim).transpose(1, 2))
        if rows > images:
            kwargs |= {"rows_per_key": rows // images}
        context, attn_weights = attend(self, query, key, value, attention_mask, **kwargs)
        if attn_weights is not None and attn_weights.shape[0] < rows:
            attn_weights = _by_row(attn_weights, rows // images)
        return self.project_context(context.reshape(rows, length, -1), hidden_states), attn_weights

    def project_value(self, image_hidden_states: torch.Tensor) -> torch.Tensor:
        """(images, tokens, key_value_size) -> (images, tokens, output_size), the output for each token as sole key.

        A single key has all the attention, whatever the query (https://arxiv.org/abs/2112.01071).
        """
        return self.out_proj(self.v_proj(image_hidden_states))


class ModernCrossAttention(CrossAttention):
    """Cross-attention of modern layers (open_clip: `ModernTextCrossAttention`; [`ModernAttentionConfig`])."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config, config.hidden_size, config.hidden_size, config.num_attention_heads)
        if not config.attention_bias:
            self.q_proj.bias = self.k_proj.bias = self.v_proj.bias = self.out_proj.bias = None
        self.q_norm = norm_layer(config, self.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = norm_layer(config, self.head_dim) if config.qk_norm else nn.Identity()
        self.gate = None
        if config.use_attention_gate:
            self.gate = nn.Linear(config.hidden_size, config.hidden_size, bias=config.gate_bias)

    def project_key_value(self, image_hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        key, value = super().project_key_value(image_hidden_states)
        return self.k_norm(key), value

    def normalize_query(self, query: torch.Tensor) -> torch.Tensor:
        return self.q_norm(query)

    def project_context(self, context: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.out_proj(context if self.gate is None else context * self.gate(hidden_states).sigmoid())


class AttentionalPooler(nn.Module):
    """Pool tokens by learned queries (https://arxiv.org/abs/2205.01917; open_clip: the same name)."""

    def __init__(self, config: PreTrainedConfig, num_queries: int, token_dim: int):
        super().__init__()
        self.query = nn.Parameter(torch.empty(num_queries, config.projection_dim))
        # open_clip builds the pooler with its default norm, whatever `norm_kwargs` says: eps is always 1e-5.
        self.layer_norm_q = nn.LayerNorm(config.projection_dim)
        self.layer_norm_k = nn.LayerNorm(token_dim)
        self.attention = CrossAttention(config, config.projection_dim, token_dim, config.attn_pooler_heads)

    def initialize(self, std: float):
        init.normal_(self.query)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, token_dim) -> (batch, queries, projection_dim)."""
        key, value = self.attention.project_key_value(self.layer_norm_k(hidden_states))
        query = self.layer_norm_q(self.query).unsqueeze(0)
        return self.attention(query, key, value)[0]

    def pool_patches(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pool each token alone: (batch, tokens, token_dim) -> (batch, tokens, projection_dim)."""
        return self.attention.project_value(self.layer_norm_k(tokens))


class MapPooler(nn.Module):
    """Pool the tokens of a text by one learned query (open_clip: `ModernTextPool`; fields of [`ModernTextConfig`])."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        width, bias = config.hidden_size, config.attention_bias
        self.head_dim = config.head_dim
        self.query = nn.Parameter(torch.empty(1, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.q_norm = norm_layer(config, self.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = norm_layer(config, self.head_dim) if config.qk_norm else nn.Identity()

    def initialize(self, std: float):
        init.normal_(self.query, std=self.query.shape[-1] ** -0.5)

    def forward(self, hidden_states: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """(batch, length, hidden_size), and `visible` (batch, length) of tokens that count -> (batch, hidden_size)."""
        query = self.q_norm(self.q_proj(self.query).view(-1, self.head_dim))
        key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)) for projection in (self.k_proj, self.v_proj)
        )
        scores = (self.k_norm(key) * query).sum(-1) * self.head_dim**-0.5
        weights = scores.masked_fill(~visible.unsqueeze(-1), -torch.inf).softmax(dim=1, dtype=torch.float32)
        return (weights.to(value.dtype).unsqueeze(-1) * value).sum(dim=1).flatten(1)


def residual_branch(config: PreTrainedConfig, layer_idx: int) -> tuple[nn.Module, nn.Module]:
    """LayerScale and DropPath of layer `layer_idx`, identities where `config` asks for none."""
    scale = config.layer_scale_init_value
    drop_prob = config.drop_path_rate * layer_idx / max(config.num_hidden_layers - 1, 1)
    return (
        nn.Identity() if scale is None else LayerScale(config.hidden_size, scale),
        nn.Identity() if drop_prob == 0 else DropPath(drop_prob),
    )


class AttentionBlock(GradientCheckpointingLayer):
    """Pre-norm layer of self-attention alone (open_clip's MaMMUT: `ResidualAttentionBlock(has_mlp=False)`)."""

    attention_class = Attention

    def __init__(self, config: PreTrainedConfig, layer_idx: int, is_causal: bool, cache_offset: int = 0):
        super().__init__()
        self.layer_norm1 = norm_layer(config, config.hidden_size)
        self.self_attn = self.attention_class(config, layer_idx, is_causal)
        self.self_attn.layer_idx += cache_offset  # its place in the cache
        self.attn_norm = nn.Identity()
        self.layer_scale1, self.drop_path1 = residual_branch(config, layer_idx)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """(batch, length, hidden_size) -> the same."""
        attn_output, _ = self.self_attn(self.layer_norm1(hidden_states), attention_mask, cache, **kwargs)
        return hidden_states + self.drop_path1(self.layer_scale1(self.attn_norm(attn_output)))


class ResidualAttentionBlock(AttentionBlock):
    """Pre-norm layer of self-attention and MLP (open_clip: the same name)."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int, is_causal: bool, cache_offset: int = 0):
        super().__init__(config, layer_idx, is_causal, cache_offset)
        self.layer_norm2 = norm_layer(config, config.hidden_size)
        self.mlp = self.build_mlp(config)
        self.layer_scale2, self.drop_path2 = residual_branch(config, layer_idx)

    @staticmethod
    def build_mlp(config: PreTrainedConfig) -> MLP:
        """The MLP of the layer."""
        return MLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """(batch, length, hidden_size) -> the same."""
        hidden_states = super().forward(hidden_states, attention_mask, cache, **kwargs)
        return hidden_states + self.drop_path2(self.layer_scale2(self.mlp(self.layer_norm2(hidden_states))))


class CustomResidualAttentionBlock(ResidualAttentionBlock):
    """Layer with the options of [`OpenClipTowerConfig`] (open_clip: the same name)."""

    attention_class = CustomAttention

    def __init__(self, config: PreTrainedConfig, layer_idx: int, is_causal: bool, cache_offset: int = 0):
        super().__init__(config, layer_idx, is_causal, cache_offset)
        if config.scale_attn:
            self.attn_norm = norm_layer(config, config.hidden_size)

    @staticmethod
    def build_mlp(config: PreTrainedConfig) -> MLP:
        return NormedMLP(config) if config.scale_fc else MLP(config)


class ModernBlock(ResidualAttentionBlock):
    """Layer of modern text towers (open_clip: `ModernTextBlock`; fields of [`ModernLayersConfig`])."""

    attention_class = ModernAttention

    def __init__(self, config: PreTrainedConfig, layer_idx: int, is_causal: bool, cache_offset: int = 0):
        super().__init__(config, layer_idx, is_causal, cache_offset)
        self.mlp_norm = nn.Identity()
        if config.use_post_norm:
            self.attn_norm, self.mlp_norm = (norm_layer(config, config.hidden_size) for _ in range(2))

    @staticmethod
    def build_mlp(config: PreTrainedConfig) -> MLP:
        return GatedMLP(config) if config.use_gated_mlp else ModernMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        first_value: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_hidden_states: torch.Tensor | None = None,
        cache: Cache | None = None,
        attend_to_image: Callable | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, length, hidden_size) -> the same, and the values of the first layer's attention.

        Between attention and MLP a captioner's layers attend to `image_hidden_states`, by `attend_to_image`.
        """
        normed = self.layer_norm1(hidden_states)
        attn_output, _, first_value = self.self_attn(normed, first_value, attention_mask, cache, **kwargs)
        hidden_states = hidden_states + self.drop_path1(self.layer_scale1(self.attn_norm(attn_output)))
        if attend_to_image is not None:
            hidden_states = attend_to_image(hidden_states, image_hidden_states)
        mlp_output = self.mlp_norm(self.mlp(self.layer_norm2(hidden_states)))
        return hidden_states + self.drop_path2(self.layer_scale2(mlp_output)), first_value


class CrossAttentionBlock(nn.Module):
    """Pre-norm layer of cross-attention alone."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.layer_norm1 = norm_layer(config, config.hidden_size)
        self.layer_norm1_kv = nn.Identity()
        self.cross_attn = self.build_attention(config)
        self.attn_norm = nn.Identity()
        self.layer_scale1, self.drop_path1 = residual_branch(config, layer_idx)

    @staticmethod
    def build_attention(config: PreTrainedConfig) -> CrossAttention:
        """The attention of the layer."""
        return CrossAttention(config, config.hidden_size, config.hidden_size, config.num_attention_heads)

    def image_key_value(
        self, image_hidden_states: torch.Tensor | None, cache: Cache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the images: computed once, then read from the cache."""
        if cache is not None and cache.is_updated.get(self.layer_idx):
            layer = cache.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        key, value = self.cross_attn.project_key_value(self.layer_norm1_kv(image_hidden_states))
        if cache is not None:
            key, value = cache.cross_attention_cache.update(key, value, self.layer_idx)
            cache.is_updated[self.layer_idx] = True
        return key, value

    def forward(
        self,
        hidden_states: torch.Tensor,
        image_hidden_states: torch.Tensor | None,
        cache: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """(rows, length, hidden_size) attending to (images, tokens, hidden_size) -> (rows, length, hidden_size)."""
        key, value = self.image_key_value(image_hidden_states, cache)
        attn_output, _ = self.cross_attn(self.layer_norm1(hidden_states), key, value, **kwargs)
        return hidden_states + self.drop_path1(self.layer_scale1(self.attn_norm(attn_output)))


class ResidualCrossAttentionBlock(GradientCheckpointingLayer, CrossAttentionBlock):
    """Pre-norm layer of cross-attention and MLP (open_clip: `ResidualAttentionBlock(is_cross_attention=True)`)."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.layer_norm1_kv = norm_layer(config, config.hidden_size)
        self.layer_norm2 = norm_layer(config, config.hidden_size)
        self.mlp = MLP(config)
        self.layer_scale2, self.drop_path2 = residual_branch(config, layer_idx)

    def forward(
        self,
        hidden_states: torch.Tensor,
        image_hidden_states: torch.Tensor | None,
        cache: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """(rows, length, hidden_size) attending to (images, tokens, hidden_size) -> (rows, length, hidden_size)."""
        hidden_states = super().forward(hidden_states, image_hidden_states, cache, **kwargs)
        return hidden_states + self.drop_path2(self.layer_scale2(self.mlp(self.layer_norm2(hidden_states))))


class ModernCrossAttentionBlock(CrossAttentionBlock):
    """Cross-attention inside a modern layer (open_clip: `norm_x`, `xattn`, `norm_x_post`, `ls_x`)."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        if config.use_post_norm:
            self.attn_norm = norm_layer(config, config.hidden_size)

    @staticmethod
    def build_attention(config: PreTrainedConfig) -> ModernCrossAttention:
        return ModernCrossAttention(config)


def run_modern_layers(
    layers: Iterable[ModernBlock],
    cross_attention_layers: Mapping[int, CrossAttentionBlock],
    hidden_states: torch.Tensor,
    image_hidden_states: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    cache: EncoderDecoderCache | None,
    rotation: Rotation | None,
    causal: bool | None = None,
    **kwargs,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Run a captioner's modern layers, some of which attend to the image.

    Args:
        layers: the layers.
        cross_attention_layers: index of a layer -> the cross-attention inside it.
        hidden_states: (rows, length, hidden_size).
        image_hidden_states: (images, tokens, hidden_size); `None` once `cache` holds their keys and values.
        attention_mask: what a mask function of transformers made for these tokens.
        cache: of the tokens before, to which these are added.
        rotation: of the tokens' positions.
        causal: whether no token sees those behind it, by default what the layers were made for.
        kwargs: for all attention.

    Returns:
        (rows, length, hidden_size), and the inputs of the layers.
    """
    self_attention_cache = None if cache is None else cache.self_attention_cache
    first_value, layer_inputs = None, []
    for index, layer in enumerate(layers):
        layer_inputs.append(hidden_states)
        attend_to_image = None
        if index in cross_attention_layers:
            attend_to_image = partial(cross_attention_layers[index], cache=cache, **kwargs)
        hidden_states, first_value = layer(
            hidden_states,
            first_value,
            attention_mask,
            image_hidden_states,
            cache=self_attention_cache,
            attend_to_image=attend_to_image,
            rotation=rotation,
            causal=causal,
            **kwargs,
        )
    return hidden_states, layer_inputs


class Encoder(nn.Module):
    """A tower's stack of layers (open_clip: `Transformer`).

    Args:
        config: of the tower.
        is_causal: whether each token sees itself and those before it alone.
        attention_only_layers: indices of layers without an MLP.
    """

    def __init__(self, config: PreTrainedConfig, is_causal: bool, attention_only_layers: Collection[int] = ()):
        super().__init__()
        options = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
        custom = any(getattr(config, option) for option in options)
        block = CustomResidualAttentionBlock if custom else ResidualAttentionBlock
        blocks = [AttentionBlock if i in attention_only_layers else block for i in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList([block(config, i, is_causal) for i, block in enumerate(blocks)])

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """(batch, length, hidden_size) -> the same."""
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, cache=cache, **kwargs)
        return hidden_states


# Also offered here because open_clip's file has it; transformers' own is the same.
__all__ = ["QuickGELU"]
