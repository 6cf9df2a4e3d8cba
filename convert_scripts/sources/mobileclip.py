"""Apple's checkpoints of MobileCLIP, `mobileclip_*.pt` (open_clip: `convert_mobile_clip_state_dict` in `convert.py`).

Both image encoders, FastViT and the vision transformer with a convolutional stem, as trained or with their branches
fused for inference. MobileCLIP2's and later files have open_clip's names already.
"""

import re
from bisect import bisect_right
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from transformers.configuration_utils import PreTrainedConfig

from ..common import ConversionError, listing
from ..mapping.state_dict import Operation, Rename, Table, Transpose, resolve, under


IMAGE, TEXT = "image_encoder.model.", "text_encoder."
PREPROCESS_CFG = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear"}


@dataclass(frozen=True)
class DropLeadingOnes(Operation):
    """A tensor (1, ..., 1, rows, columns) without `count` of its first dimensions."""

    count: int = 1

    def apply(self, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (tensors[0][(0,) * self.count],)

    def invert(self, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (tensors[0][(None,) * self.count],)


_TEXT: Table = (
    Rename("embedding_layer.weight", "token_embedding.weight"),
    DropLeadingOnes("positional_embedding.pos_embed.pos_embed", "positional_embedding", count=2),
    Rename("transformer.{n}.pre_norm_mha.0.{p}", "transformer.resblocks.{n}.ln_1.{p}"),
    Rename("transformer.{n}.pre_norm_mha.1.qkv_proj.{p}", "transformer.resblocks.{n}.attn.in_proj_{p}"),
    Rename("transformer.{n}.pre_norm_mha.1.out_proj.{p}", "transformer.resblocks.{n}.attn.out_proj.{p}"),
    Rename("transformer.{n}.pre_norm_ffn.0.{p}", "transformer.resblocks.{n}.ln_2.{p}"),
    Rename("transformer.{n}.pre_norm_ffn.1.{p}", "transformer.resblocks.{n}.mlp.c_fc.{p}"),
    Rename("transformer.{n}.pre_norm_ffn.4.{p}", "transformer.resblocks.{n}.mlp.c_proj.{p}"),
    Rename("final_layer_norm.{p}", "ln_final.{p}"),
    Rename("projection_layer", "text_projection"),
)

# The vision transformer: timm's `vit_base_mci_224`.
_VIT: Table = (
    Rename("patch_emb.{n}.block.conv.{p}", "patch_embed.backbone.{n}.conv.{p}"),
    Rename("patch_emb.{n}.block.norm.{rest}", "patch_embed.backbone.{n}.bn.{rest}"),
    Rename("cls_token", "cls_token"),
    DropLeadingOnes("pos_embed.pos_embed.pos_embed", "pos_embed"),
    Rename("transformer.{n}.pre_norm_mha.0.{p}", "blocks.{n}.norm1.{p}"),
    Rename("transformer.{n}.pre_norm_mha.1.qkv_proj.{p}", "blocks.{n}.attn.qkv.{p}"),
    Rename("transformer.{n}.pre_norm_mha.1.out_proj.{p}", "blocks.{n}.attn.proj.{p}"),
    Rename("transformer.{n}.pre_norm_ffn.0.{p}", "blocks.{n}.norm2.{p}"),
    Rename("transformer.{n}.pre_norm_ffn.1.{p}", "blocks.{n}.mlp.fc1.{p}"),
    Rename("transformer.{n}.pre_norm_ffn.4.{p}", "blocks.{n}.mlp.fc2.{p}"),
    Rename("post_transformer_norm.{p}", "norm.{p}"),
    Transpose("classifier.proj", "head.weight"),
)

# FastViT: timm's `fastvit_mci*`. Branches that are fused for inference, and their fused forms.
_BRANCHES: Table = (
    Rename("rbr_conv.{rest}", "conv_kxk.{rest}"),
    Rename("rbr_scale.{rest}", "conv_scale.{rest}"),
    Rename("rbr_skip.{rest}", "identity.{rest}"),
    Rename("reparam_conv.{p}", "reparam_conv.{p}"),
    Rename("se.reduce.{p}", "se.fc1.{p}"),
    Rename("se.expand.{p}", "se.fc2.{p}"),
)
_LARGE_KERNEL: Table = (
    Rename("lkb_origin.{rest}", "large_conv.{rest}"),
    Rename("small_conv.{rest}", "small_conv.{rest}"),
    Rename("lkb_reparam.{p}", "reparam_conv.{p}"),
    Rename("se.{rest}", "se.{rest}"),
)
_BLOCK: Table = (
    *under("token_mixer.norm.", "token_mixer.norm.", _BRANCHES),
    *under("token_mixer.mixer.", "token_mixer.mixer.", _BRANCHES),
    Rename("token_mixer.reparam_conv.{p}", "token_mixer.reparam_conv.{p}"),
    Rename("token_mixer.layer_scale", "token_mixer.layer_scale.gamma"),
    Rename("token_mixer.qkv.{p}", "token_mixer.qkv.{p}"),
    Rename("token_mixer.proj.{p}", "token_mixer.proj.{p}"),
    Rename("norm.{rest}", "norm.{rest}"),
    Rename("convffn.{rest}", "mlp.{rest}"),
    *(Rename(name, f"{name}.gamma") for name in ("layer_scale", "layer_scale_1", "layer_scale_2")),
)
_DOWNSAMPLE: Table = (*under("0.", "0.", _LARGE_KERNEL), *under("1.", "1.", _BRANCHES))
# More parts than any of Apple's networks has.
MANY_PARTS = 100
_PART = re.compile(re.escape(IMAGE) + r"network\.(\d+)\.(proj|pe|reparam_conv|\d+)\.")


def _fastvit(keys: Collection[str]) -> Table:
    """Rename table of a FastViT: Apple numbers blocks, downsampling and positions in one row, timm by stages."""
    # Part -> its contents: `proj`, `pe` or its fused form, or the numbers of blocks.
    parts = {int(match[1]): match[2] for key in keys if (match := _PART.match(key))}
    if len(parts) > MANY_PARTS:
        raise ConversionError(f"Apple's MobileCLIP has no {len(parts)} parts below {IMAGE}network.")
    stage_starts = sorted(part for part, kind in parts.items() if kind == "proj")
    table = (
        *under("patch_embed.{n}.", "stem.{n}.", _BRANCHES),
        *under("conv_exp.", "final_conv.", _BRANCHES),
        Transpose("head.proj", "head.fc.weight"),
    )
    for part, kind in parts.items():
        source, stage = f"network.{part}.", f"stages.{bisect_right(stage_starts, part)}."
        if kind == "proj":
            table += under(f"{source}proj.", f"{stage}downsample.proj.", _DOWNSAMPLE)
        elif kind.isdecimal():
            table += under(f"{source}{{n}}.", f"{stage}blocks.{{n}}.", _BLOCK)
        else:
            ours = {"pe": "pos_enc"}.get(kind, kind)
            table += (Rename(f"{source}{kind}.{{p}}", f"{stage}pos_emb.{ours}.{{p}}"),)
    return table


def mobileclip_table(keys: Collection[str]) -> Table:
    """Rename table from Apple's keys to open_clip's, read backwards for the way back."""
    is_vit = any(key.startswith(f"{IMAGE}patch_emb.") for key in keys)
    return (
        *under(IMAGE, "visual.trunk.", _VIT if is_vit else _fastvit(keys)),
        *under(TEXT, "text.", _TEXT),
        Rename("logit_scale", "logit_scale"),
    )


def is_mobileclip(keys: Collection[str]) -> bool:
    """Whether a checkpoint is one of Apple's MobileCLIP."""
    return any(key.startswith(IMAGE) for key in keys)


def mobileclip_to_open_clip(tensors: Mapping[str, torch.Tensor], config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """Convert Apple's state dict to open_clip's; the projection of the image gets the bias of zeros that timm's has.

    Raises:
        ConversionError: tensors that open_clip has no place for, such as the text encoder of MobileCLIP-S0.
    """
    if any(key.startswith(f"{TEXT}transformer.0.token_mixer.") for key in tensors):
        raise ConversionError(
            "The text encoder of this checkpoint has convolutions, as in Apple's MobileCLIP-S0, and open_clip has no "
            "such tower. Convert MobileCLIP-S1, MobileCLIP-S2, MobileCLIP-B or a MobileCLIP2."
        )
    steps, unmatched = resolve(tensors, mobileclip_table(tensors.keys()), "sources")
    if unmatched:
        raise ConversionError(f"These keys are not known from Apple's MobileCLIP:{listing(unmatched)}")
    converted = dict(pair for step in steps for pair in step.apply(tensors))
    for head in ("visual.trunk.head.", "visual.trunk.head.fc."):
        if f"{head}weight" in converted:
            weight = converted[f"{head}weight"]
            converted[f"{head}bias"] = weight.new_zeros(len(weight))
    return converted
