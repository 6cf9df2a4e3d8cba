"""big_vision's SigLIP checkpoints, `.npz` (open_clip: `load_big_vision_weights` in `convert.py`).

Layers lie apart, as `encoderblock_0`, or stacked along a first axis, as `encoderblock`. Flax keeps the kernels of
linear layers as (in, out), and those of attention with an axis for the heads.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from transformers.configuration_utils import PreTrainedConfig

from ..common import ConversionError, argument, listing
from ..mapping.state_dict import Operation, Rename, Squeeze, Table, Transpose, resolve, under


Tensors = tuple[torch.Tensor, ...]

PREPROCESS_CFG = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
# Training checkpoints keep the weights below this, and the optimizer beside it.
_ROOT = "params/"
_STACKED, _APART = "/encoderblock/", "/encoderblock_{}/"


@dataclass(frozen=True)
class _OfHeads(Operation):
    """An operation on tensors with an axis for the heads.

    Args:
        heads: attention heads.
        names: values of `{name}` in `source`; the results lie one behind the other in the target.
    """

    heads: int = 1
    names: tuple[str, ...] = ("",)

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(self.source.replace("{name}", name) for name in self.names)


class PackKernels(_OfHeads):
    """Kernels (in, heads, head width) become one weight (out, in) of a Linear."""

    def apply(self, tensors: Tensors) -> Tensors:
        return (torch.cat([kernel.flatten(1).t() for kernel in tensors]),)

    def invert(self, tensors: Tensors) -> Tensors:
        return tuple(weight.t().unflatten(1, (self.heads, -1)) for weight in tensors[0].chunk(len(self.names)))


class PackBiases(_OfHeads):
    """Biases (heads, head width) become one bias (out,)."""

    def apply(self, tensors: Tensors) -> Tensors:
        return (torch.cat([bias.flatten() for bias in tensors]),)

    def invert(self, tensors: Tensors) -> Tensors:
        return tuple(bias.unflatten(0, (self.heads, -1)) for bias in tensors[0].chunk(len(self.names)))


class MergeHeads(_OfHeads):
    """A kernel (heads, head width, out) becomes the weight (out, in) of a Linear."""

    def apply(self, tensors: Tensors) -> Tensors:
        return (tensors[0].flatten(0, 1).t(),)

    def invert(self, tensors: Tensors) -> Tensors:
        return (tensors[0].t().unflatten(0, (self.heads, -1)),)


class ConvKernel(Operation):
    """A kernel (height, width, in, out) becomes the weight (out, in, height, width) of a convolution."""

    def apply(self, tensors: Tensors) -> Tensors:
        return (tensors[0].permute(3, 2, 0, 1),)

    def invert(self, tensors: Tensors) -> Tensors:
        return (tensors[0].permute(2, 3, 1, 0),)


def _norm(source: str, target: str) -> Table:
    return Rename(f"{source}/scale", f"{target}.weight"), Rename(f"{source}/bias", f"{target}.bias")


def _linear(source: str, target: str) -> Table:
    return Transpose(f"{source}/kernel", f"{target}.weight"), Rename(f"{source}/bias", f"{target}.bias")


def _packed(names: tuple[str, ...], weight: str, bias: str, heads: int) -> Table:
    attention = "MultiHeadDotProductAttention_0/{name}"
    return (
        PackKernels(f"{attention}/kernel", weight, heads, names),
        PackBiases(f"{attention}/bias", bias, heads, names),
    )


def _attention_output(target: str, heads: int) -> Table:
    return (
        MergeHeads("MultiHeadDotProductAttention_0/out/kernel", f"{target}.weight", heads),
        Rename("MultiHeadDotProductAttention_0/out/bias", f"{target}.bias"),
    )


_QKV, _KV, _Q = ("query", "key", "value"), ("key", "value"), ("query",)


def _image_table(heads: int) -> Table:
    """From below `img/` to timm's `VisionTransformer`."""
    block = (
        *_norm("LayerNorm_0", "norm1"),
        *_packed(_QKV, "attn.qkv.weight", "attn.qkv.bias", heads),
        *_attention_output("attn.proj", heads),
        *_norm("LayerNorm_1", "norm2"),
        *_linear("MlpBlock_0/Dense_0", "mlp.fc1"),
        *_linear("MlpBlock_0/Dense_1", "mlp.fc2"),
    )
    pooler = (
        Rename("probe", "latent"),
        *_packed(_Q, "q.weight", "q.bias", heads),
        *_packed(_KV, "kv.weight", "kv.bias", heads),
        *_attention_output("proj", heads),
        *_norm("LayerNorm_0", "norm"),
        *_linear("MlpBlock_0/Dense_0", "mlp.fc1"),
        *_linear("MlpBlock_0/Dense_1", "mlp.fc2"),
    )
    return (
        ConvKernel("embedding/kernel", "patch_embed.proj.weight"),
        Rename("embedding/bias", "patch_embed.proj.bias"),
        Rename("pos_embedding", "pos_embed"),
        *under("Transformer/encoderblock_{n}/", "blocks.{n}.", block),
        *_norm("Transformer/encoder_norm", "norm"),
        *under("MAPHead_0/", "attn_pool.", pooler),
    )


def _text_table(heads: int) -> Table:
    """From below `txt/` to open_clip's `TextTransformer`."""
    block = (
        *_norm("LayerNorm_0", "ln_1"),
        *_packed(_QKV, "attn.in_proj_weight", "attn.in_proj_bias", heads),
        *_attention_output("attn.out_proj", heads),
        *_norm("LayerNorm_1", "ln_2"),
        *_linear("MlpBlock_0/Dense_0", "mlp.c_fc"),
        *_linear("MlpBlock_0/Dense_1", "mlp.c_proj"),
    )
    return (
        Rename("Embed_0/embedding", "token_embedding.weight"),
        Squeeze("pos_embedding", "positional_embedding"),
        *under("Encoder_0/encoderblock_{n}/", "transformer.resblocks.{n}.", block),
        *_norm("Encoder_0/encoder_norm", "ln_final"),
        *_linear("head", "text_projection"),
    )


def big_vision_table(config: PreTrainedConfig) -> Table:
    """Rename table from big_vision's names, layers apart, to open_clip's."""
    return (
        *under("img/", "visual.trunk.", _image_table(config.vision_config.num_attention_heads)),
        *under("txt/", "text.", _text_table(config.text_config.num_attention_heads)),
        Squeeze("t", "logit_scale"),
        Squeeze("b", "logit_bias"),
    )


def is_big_vision(keys: Collection[str]) -> bool:
    """Whether the keys of a checkpoint are those of a SigLIP of big_vision."""
    return any(f"{root}img/embedding/kernel" in keys for root in ("", _ROOT))


def big_vision_to_open_clip(
    tensors: Mapping[str, torch.Tensor], config: PreTrainedConfig
) -> Mapping[str, torch.Tensor]:
    """Convert a checkpoint of big_vision to open_clip's state dict.

    Raises:
        ConversionError: the architecture is not a SigLIP, or keys have no place.
    """
    if config.vision_config.model_type != "open_clip_siglip_vit" or config.text_config.model_type != "open_clip_text":
        raise ConversionError(
            "The checkpoint is a SigLIP of big_vision, and the architecture is another: give the name of a SigLIP "
            f"with {argument('model_name')}, such as ViT-B-16-SigLIP."
        )
    if any(key.startswith(_ROOT) for key in tensors):
        tensors = {key.removeprefix(_ROOT): tensor for key, tensor in tensors.items() if key.startswith(_ROOT)}
    weights = _layers_apart(tensors)
    steps, unmatched = resolve(weights, big_vision_table(config), "sources")
    missing = [name for step in steps for name in step.sources if name not in weights]
    if unmatched or missing:
        raise ConversionError(
            "The checkpoint is no SigLIP of big_vision that is known."
            + (f" Keys without a place:{listing(unmatched)}" if unmatched else "")
            + (f" Keys that are missing:{listing(missing)}" if missing else "")
        )
    return dict(pair for step in steps for pair in step.apply(weights))


def _layers_apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Take stacked layers apart, as views."""
    apart = {}
    for key, tensor in tensors.items():
        if _STACKED in key:
            apart |= {key.replace(_STACKED, _APART.format(i)): layer for i, layer in enumerate(tensor)}
        else:
            apart[key] = tensor
    return apart
