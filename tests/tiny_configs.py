"""The one place where the sizes of tiny test models are written, in open_clip's own configuration format.

Every size is small, odd where it can be, and unlike the others, so that swapped axes and mixed-up fields fail.
`open_clip` is imported inside functions only, so that tests which need no reference run without it.
"""

import copy
import json
import tempfile
from functools import cache
from pathlib import Path

import torch


VOCAB_SIZE = 97

_CLIP = {
    "embed_dim": 28,
    "vision_cfg": {
        "image_size": 24,
        "patch_size": 8,
        "width": 40,
        "head_width": 20,
        "layers": 3,
        "mlp_ratio": 2.2,
        "attn_pooler_heads": 4,
        "attn_pooler_queries": 7,
    },
    "text_cfg": {
        "context_length": 11,
        "vocab_size": VOCAB_SIZE,
        "width": 36,
        "heads": 3,
        "layers": 2,
        "mlp_ratio": 1.7,
    },
}

# The decoder continues text tokens and attends to pooled image tokens: their widths must be equal.
_COCA = {
    "embed_dim": 36,
    "vision_cfg": {**_CLIP["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 6, "output_tokens": True},
    "text_cfg": {**_CLIP["text_cfg"], "context_length": 10, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {"context_length": 10, "vocab_size": VOCAB_SIZE, "width": 36, "heads": 4, "layers": 2},
    "custom_text": True,
}

# LAION's form: embeddings are as wide as the text tower, whose layers with cross-attention may have no MLP.
_MAMMUT = {
    "embed_dim": 36,
    "vision_cfg": {**_CLIP["vision_cfg"], "pool_type": "avg_all", "final_ln_after_pool": True, "output_tokens": True},
    "text_cfg": {
        "context_length": 10,
        "vocab_size": VOCAB_SIZE,
        "width": 36,
        "heads": 3,
        "layers": 4,
        "output_tokens": True,
        "cross_attn_ratio": 2,
        "does_full_decoding": True,
        "has_mlp": False,
    },
    "custom_text": True,
}


def tiny_clip_cfg(**changes) -> dict:
    """open_clip `model_cfg` of a tiny CLIP; `changes` are merged in, one level deep: `vision_cfg={"layers": 1}`."""
    return _merged(_CLIP, changes)


def tiny_coca_cfg(**changes) -> dict:
    """open_clip `model_cfg` of a tiny CoCa; `changes` are merged in as in `tiny_clip_cfg`."""
    return _merged(_COCA, changes)


def tiny_mammut_cfg(**changes) -> dict:
    """`model_cfg` of a tiny MaMMUT of LAION's open_clip; `changes` are merged in as in `tiny_clip_cfg`."""
    return _merged(_MAMMUT, changes)


def tiny_mammut_4_cfg(**changes) -> dict:
    """The same in the form of open_clip 4: a masked mean, an MLP in each layer, and `multimodal_cfg` for the text."""
    text_cfg = {
        key: value for key, value in _MAMMUT["text_cfg"].items() if key not in ("does_full_decoding", "has_mlp")
    }
    cfg = {key: value for key, value in _MAMMUT.items() if key not in ("text_cfg", "custom_text")}
    return _merged({**cfg, "multimodal_cfg": text_cfg}, changes)


def tiny_siglip_cfg(**changes) -> dict:
    """open_clip `model_cfg` of a tiny dual model with a logit bias, last-token pooling and a biased projection."""
    siglip = {
        "custom_text": True,
        "init_logit_bias": -10.0,
        "text_cfg": {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "norm_kwargs": {"eps": 1e-6}},
        "vision_cfg": {"pool_type": "avg", "no_ln_pre": True},
    }
    return _merged(_merged(_CLIP, siglip), changes)


def tiny_resnet_cfg(**changes) -> dict:
    """open_clip `model_cfg` of a tiny CLIP with a ResNet, whose image is as small as 3 x 3 tokens allow."""
    resnet = {
        "embed_dim": 28,
        "vision_cfg": {"image_size": 96, "patch_size": None, "width": 6, "head_width": 24, "layers": [1, 2, 1, 2]},
        "text_cfg": _CLIP["text_cfg"],
    }
    return _merged(resnet, changes)


# Every option that makes new modules.
_MODERN = {
    **{"text_arch": "modern", "context_length": 11, "vocab_size": VOCAB_SIZE, "width": 36, "heads": 3, "layers": 2},
    **{"mlp_ratio": 1.7, "pool_type": "map", "attention_mode": "bidirectional", "qk_norm": True, "attn_gated": True},
    **{"gate_bias": True, "pre_norm": True, "norm_placement": "sandwich", "reg_tokens": 2, "value_residual": True},
    **{"ls_init_value": 0.2, "attention_bias": True, "proj_bias": True, "freeze_pad_embed": False},
}


def tiny_modern_text_cfg(**changes) -> dict:
    """open_clip 4's `model_cfg` of a tiny CLIP with a modern text tower; `changes` are merged in."""
    return _merged({**_CLIP, "text_cfg": _MODERN}, changes)


_MODERN_DECODER = {
    **{"text_arch": "modern", "context_length": 10, "vocab_size": VOCAB_SIZE, "width": 36, "heads": 3, "layers": 3},
    **{"mlp_ratio": 1.7, "qk_norm": True, "attn_gated": True, "gate_bias": True, "norm_placement": "sandwich"},
    **{"value_residual": True, "ls_init_value": 0.3, "attention_bias": True, "cross_attn_ratio": 2},
}


def tiny_modern_coca_cfg(**changes) -> dict:
    """open_clip 4's `model_cfg` of a tiny CoCa of a modern text tower and decoder; `changes` are merged in."""
    text_cfg = {**_MODERN, "context_length": 10, "attention_mode": "causal", "reg_tokens": 0, "output_tokens": True}
    return _merged({**_COCA, "text_cfg": text_cfg, "multimodal_cfg": _MODERN_DECODER}, changes)


def tiny_modern_mammut_cfg(**changes) -> dict:
    """open_clip 4's `model_cfg` of a tiny MaMMUT with modern layers; `changes` are merged in."""
    options = {"pre_norm": True, "pool_type": "map", "proj_type": "linear", "proj_bias": True, "layers": 4}
    cfg = {"vision_cfg": _MAMMUT["vision_cfg"], "multimodal_cfg": {**_MODERN_DECODER, **options}}
    return _merged({**cfg, "embed_dim": 28}, changes)


# Encoders of transformers, without dropouts, so that gradients can be compared. Their vocabulary is larger than that
# of CoCa's decoder, as RoBERTa's is in open_clip's `coca_roberta-ViT-B-32`.
_BERT = {
    "vocab_size": VOCAB_SIZE + 4,
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "max_position_embeddings": 17,
    "hidden_dropout_prob": 0,
    "attention_probs_dropout_prob": 0,
}
_T5 = {
    "vocab_size": VOCAB_SIZE + 4,
    "d_model": 36,
    "d_kv": 10,
    "d_ff": 50,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": 3,
    "relative_attention_num_buckets": 6,
    "relative_attention_max_distance": 9,
    "dropout_rate": 0,
}
_M2M_100 = {
    "vocab_size": VOCAB_SIZE + 4,
    "d_model": 36,
    **{f"{part}_attention_heads": 3 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 50 for part in ("encoder", "decoder")},
    **{f"{part}_layerdrop": 0 for part in ("encoder", "decoder")},
    "encoder_layers": 2,
    "decoder_layers": 1,
    "max_position_embeddings": 17,
    "dropout": 0,
    "attention_dropout": 0,
}
MODERNBERT = {
    **{"vocab_size": VOCAB_SIZE + 4, "hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 2},
    **{"num_attention_heads": 3, "max_position_embeddings": 17, "local_attention": 6, "pad_token_id": 0},
    **dict.fromkeys(("bos_token_id", "cls_token_id"), VOCAB_SIZE - 2),
    **dict.fromkeys(("eos_token_id", "sep_token_id"), VOCAB_SIZE - 1),
}
# Those of open_clip 3.
HF_ENCODERS = {
    "roberta": {**_BERT, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "xlm-roberta": {**_BERT, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "bert": _BERT,
    "mt5": _T5,
    "t5": {**_T5, "feed_forward_proj": "relu"},
    "m2m_100": _M2M_100,
}


@cache
def _hf_encoders_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="open_clip_transformers_hf_encoders_")


def tiny_hf_encoder(model_type: str) -> str:
    """A folder with the `config.json` of a tiny encoder, for `hf_model_name`."""
    folder = Path(_hf_encoders_folder().name) / model_type
    folder.mkdir(exist_ok=True)
    encoder = MODERNBERT if model_type == "modernbert" else HF_ENCODERS[model_type]
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **encoder}))
    return str(folder)


def tiny_hf_text_cfg(model_type: str = "roberta", **changes) -> dict:
    """open_clip `model_cfg` of a tiny CLIP with an encoder of transformers for its texts."""
    text_cfg = {"context_length": 11, "hf_model_name": tiny_hf_encoder(model_type), "hf_model_pretrained": False}
    return _merged({**_CLIP, "text_cfg": text_cfg, "custom_text": True}, changes)


def tiny_hf_coca_cfg(model_type: str = "roberta", **changes) -> dict:
    """open_clip `model_cfg` of a tiny CoCa like `coca_roberta-ViT-B-32`: its decoder attends to the raw patches."""
    text_cfg = {**tiny_hf_text_cfg(model_type)["text_cfg"], "vocab_size": VOCAB_SIZE, "output_tokens": True}
    vision_cfg = {**_CLIP["vision_cfg"], "width": 36, "head_width": 18, "output_tokens": True}
    return _merged({**_COCA, "embed_dim": 28, "vision_cfg": vision_cfg, "text_cfg": text_cfg}, changes)


def _merged(base: dict, changes: dict) -> dict:
    merged = copy.deepcopy(base)
    for key, value in changes.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return merged


def open_clip_model(model_cfg: dict, seed: int = 0) -> torch.nn.Module:
    """open_clip's model of `model_cfg` in eval mode, with seeded weights none of which keeps its default value."""
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    kwargs = copy.deepcopy(model_cfg)
    custom_text = kwargs.pop("custom_text", False)
    model_class = CoCa if "multimodal_cfg" in kwargs else CustomTextCLIP if custom_text else CLIP
    model = model_class(**kwargs)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name in ("logit_scale", "logit_bias"):
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        is_scale = (parameter.ndim == 1 and name.endswith(".weight")) or "head_scale" in name or "gamma" in name
        # Wide layers would let the activations grow until rounding shows.
        std = min(0.15, parameter[0].numel() ** -0.5) if parameter.ndim > 1 else 0.15
        parameter.data = 1 + 0.3 * noise if is_scale else std * noise
    for name, buffer in model.named_buffers():
        # Statistics of batch norms: variances are positive, batches are counted.
        if name.endswith("running_mean"):
            buffer.normal_(std=0.15, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2, generator=generator)
        elif name.endswith("num_batches_tracked"):
            buffer.fill_(7)
    model.logit_scale.data.fill_(1.7)
    if model.logit_bias is not None:
        model.logit_bias.data.fill_(-1.3)
    return model.eval()


def save_open_clip_folder(
    folder: Path, model_cfg: dict, model: torch.nn.Module | None = None, preprocess_cfg: dict | None = None
) -> torch.nn.Module:
    """Writes a model as open_clip publishes it: `open_clip_config.json`, `open_clip_model.safetensors`; returns it."""
    from safetensors.torch import save_file

    model = open_clip_model(model_cfg) if model is None else model
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))
    return model


# The same SigLIP vision transformer as arguments of timm's `VisionTransformer` and as fields of ours.
TINY_SIGLIP_VIT = {
    "timm": {
        "img_size": (21, 30),
        "patch_size": (7, 6),
        "embed_dim": 36,
        "depth": 3,
        "num_heads": 3,
        "mlp_ratio": 2.2,
        "class_token": False,
        "global_pool": "map",
        "num_classes": 0,
    },
    "ours": {
        "image_size": [21, 30],
        "patch_size": [7, 6],
        "hidden_size": 36,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 79,
        "initializer_range": 0.1,
    },
}


def randomize_timm(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """timm's `model` with seeded weights, none of which keeps its default value."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_scale = parameter.ndim == 1 and name.endswith((".weight", ".gamma"))
        parameter.data = 1 + 0.3 * noise if is_scale else 0.15 * noise
    return model
