"""Writes this folder's models and what open_clip 4 computes with them: features, logits, losses, captions.

Needs mlfoundations/open_clip at commit 89fb801 (4.2.0.dev0), and transformers 5.24, whose beam search ends at other
times than that of transformers 4:

    PYTHONPATH=.../open_clip/src python tests/data/open_clip_4/make_reference.py [NAME ...]

Weights and inputs are saved, so that the data does not depend on random generators. Later commits of open_clip have
fields and parts that this one lacks; `_later_form` says which, and puts them in place. Captioners with modern layers
(`coca_modern_*`, `mammut_modern_*`) need the decoders of commit 086ba09 beside the rest: `MultimodalCfg`,
`ModernMultimodalTransformer`, `ModernMultimodalDecoder` and `MaMMUT`. The script stops where rounding decides a
caption.
"""

import copy
import json
import sys
from pathlib import Path

import open_clip
import torch
from open_clip.coca_model import CoCa
from open_clip.generation import MultimodalGenerationWrapper
from open_clip.loss import CoCaLoss
from open_clip.model import CustomTextCLIP
from open_clip.transform import PreprocessCfg, naflex_eval_transform_v2
from open_clip.transformer import AttentionalPooler, LayerNorm
from PIL import Image
from safetensors.torch import save_file
from timm.data.naflex_dataset import NaFlexCollator


FOLDER = Path(__file__).parent
# Within a model's folder, and in its `hf_model_name` instead of the path from the root, which open_clip needs.
ENCODER_FOLDER = "encoder"
VOCAB_SIZE = 83
# Ids of the start and the end of a text and of padding.
BOS, EOS, PAD = 79, 80, 81

GREEDY = {"generation_type": "top_k", "top_k": 1, "min_seq_len": 3}
# name of the call -> arguments of `CoCa.generate`
CALLS = {
    "greedy": GREEDY,
    "greedy_long": {**GREEDY, "seq_len": 15, "repetition_penalty": 1.3},
    "beams": {"num_beams": 3, "num_beam_groups": 1, "seq_len": 14, "min_seq_len": 3},
    "default": {"seq_len": 13},
}

VISION = {"image_size": 24, "patch_size": 8, "width": 20, "head_width": 10, "layers": 1}


def _coca(vision: dict, text: dict, multimodal: dict) -> dict:
    sizes = {"context_length": 16, "vocab_size": VOCAB_SIZE, "width": 16}
    poolers = {"attn_pooler_heads": 4, "attn_pooler_queries": 5, "output_tokens": True}
    return {
        "embed_dim": 16,
        "vision_cfg": {**VISION, **poolers, **vision},
        "text_cfg": {**sizes, "heads": 2, "layers": 2, "output_tokens": True, **text},
        "multimodal_cfg": {**sizes, "heads": 4, "layers": 1, **multimodal},
        "custom_text": True,
    }


_CLASS_TOKEN = {"embed_cls": True, "correct_cls_mask": True}
MODELS = {
    # As coca2_ViT-B-32.
    "coca2_cascade": _coca({"attentional_pool": "cascade"}, _CLASS_TOKEN, {}),
    "coca2_parallel_own_padding": _coca(
        {"attentional_pool": "parallel", "attn_pooler_heads": 2},
        {**_CLASS_TOKEN, "pad_id": PAD},
        {"layers": 2},
    ),
    "coca2_same_width": _coca(
        {"attentional_pool": "cascade", "width": 16, "head_width": 8},
        {"embed_cls": True, "correct_cls_mask": True},
        {},
    ),
    "coca2_without_class_token": _coca({"attentional_pool": True}, {"pool_type": "eos", "eos_id": EOS}, {}),
}


def _modern(**text: object) -> dict:
    return {
        "embed_dim": 10,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 8, "head_width": 4, "layers": 1, "mlp_ratio": 1},
        "text_cfg": {
            **{"text_arch": "modern", "context_length": 12, "vocab_size": VOCAB_SIZE, "width": 12, "heads": 3},
            **{"layers": 2, "mlp_ratio": 1.7, "pad_id": PAD, "bos_id": BOS, "eos_id": EOS, "pool_type": "eos"},
            **text,
        },
    }


_BIDIRECTIONAL = {"attention_mode": "bidirectional"}
_BIASES = {"attention_bias": True, "mlp_bias": True}
MODELS |= {
    f"modern_{name}": _modern(**text)
    for name, text in {
        # Each option alone.
        "plain": {},
        "argmax": {"pool_type": "argmax", "proj_bias": True},
        "bidirectional": _BIDIRECTIONAL,
        "mean": {"pool_type": "mean"},
        "map": {"pool_type": "map"},
        "no_positions": {"pos_embed": "none"},
        "rope_temperature": {"rope_temperature": 50.0},
        "gelu": {"mlp_type": "mlp"},
        "relu2": {"mlp_type": "relu2"},
        "layer_norm": {"norm_type": "layernorm"},
        "norm_eps": {"norm_eps": 0.1},
        "pre_norm": {"pre_norm": True},
        "sandwich": {"norm_placement": "sandwich"},
        "qk_norm": {"qk_norm": True},
        "gate": {"attn_gated": True},
        "gate_bias": {"attn_gated": True, "gate_bias": True},
        "value_residual": {"value_residual": True, "layers": 3},
        "registers": {"reg_tokens": 3},
        "layer_scale": {"ls_init_value": 0.3},
        "biases": _BIASES,
        "no_projection": {"proj_type": "none", "width": 10, "heads": 5},
        "clip_padding": {"pad_id": 0, "freeze_pad_embed": False, "mlp_type": "mlp", **_BIDIRECTIONAL},
        # As moderntext-ViT-B-32-256 and as the text towers of moderntext-naflex_ViT-B-16.
        "released": {"attn_gated": True, "norm_type": "rmsnorm", "mlp_ratio": 2.6666667},
        "released_map": {"pool_type": "map", "qk_norm": True, "attn_gated": True, "norm_eps": 1e-5, **_BIDIRECTIONAL},
        # Many at once.
        "everything": {
            **{"pool_type": "map", "qk_norm": True, "attn_gated": True, "gate_bias": False, "norm_type": "layernorm"},
            **{"pre_norm": True, "norm_placement": "sandwich", "reg_tokens": 2, "value_residual": True, "layers": 3},
            **{"ls_init_value": 0.5, "proj_bias": True, **_BIASES, **_BIDIRECTIONAL},
        },
        "everything_causal": {
            **{"pool_type": "mean", "qk_norm": True, "attn_gated": True, "mlp_type": "relu2", "pre_norm": True},
            **{"norm_placement": "sandwich", "reg_tokens": 1, "value_residual": True, "layers": 3, "mlp_bias": True},
        },
    }.items()
}
# As gte-modernbert-base-ViT-B-32-256; texts are longer than the window of local attention.
MODELS["modernbert"] = {
    **_modern(),
    "text_cfg": {
        **{"context_length": 12, "variable_text": True, "pad_id": PAD, "vocab_size": VOCAB_SIZE},
        **{"hf_model_name": ENCODER_FOLDER, "hf_model_pretrained": False, "hf_pooler_type": "cls_pooler"},
        **{"hf_proj_type": "linear", "hf_model_config": {"max_position_embeddings": 12}},
    },
}
MODELS["modernbert_mean"] = {
    **_modern(),
    "text_cfg": {
        **{"context_length": 12, "hf_model_name": ENCODER_FOLDER, "hf_model_pretrained": False, "pad_id": PAD},
        **{"hf_pooler_type": None, "hf_model_config": {"num_attention_heads": 2, "norm_eps": 0.01}},
    },
}
_MODERNBERT = {
    **{"model_type": "modernbert", "vocab_size": VOCAB_SIZE, "hidden_size": 12, "intermediate_size": 18},
    **{"num_hidden_layers": 3, "num_attention_heads": 3, "max_position_embeddings": 40, "local_attention": 4},
    **{"global_attn_every_n_layers": 2, "global_rope_theta": 500.0, "local_rope_theta": 90.0},
    **{"pad_token_id": PAD, "bos_token_id": BOS, "cls_token_id": BOS, "eos_token_id": EOS, "sep_token_id": EOS},
}


def _naflex(embed_dim: int = 10, arguments: dict | None = None, **vision: object) -> dict:
    sizes = {"patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3, "mlp_ratio": 1.7}
    return {
        "embed_dim": embed_dim,
        "vision_cfg": {
            **{"image_size": 16, "image_seq_len": 20, "timm_model_kwargs": {**sizes, **(arguments or {})}},
            **{"timm_model_name": "naflexvit_base_patch16_siglip", "timm_pool": "map", **vision},
        },
        "text_cfg": {"context_length": 12, "vocab_size": VOCAB_SIZE, "width": 8, "heads": 2, "layers": 1},
        "custom_text": True,
    }


_GAP = {"timm_model_name": "naflexvit_base_patch16_gap", "timm_pool": "avg"}
_MAP = {"timm_model_name": "naflexvit_base_patch16_map"}
_GATED = {"swiglu_mlp": True, "mlp_ratio": 2.6666667, "attn_pool_mlp_ratio": 4.0}
MODELS |= {
    # As ViT-B-16-SigLIP2-naflex, with a table of positions that is no square.
    "naflex_siglip": {
        **_naflex(12, {"pos_embed_grid_size": [3, 4]}, timm_proj="none"),
        "init_logit_bias": -10,
    },
    # As naflex_ViT-B-32.
    "naflex_gap": _naflex(arguments={"pos_embed_grid_size": [7, 7]}, **_GAP),
    # As the vision tower of moderntext-naflex_ViT-B-16.
    "naflex_map_gated": _naflex(arguments=_GATED, **_MAP),
    "naflex_aspect_ratio": _naflex(
        arguments={"pos_embed_grid_size": [5, 3]},
        **{**_GAP, "timm_model_name": "naflexvit_base_patch16_par_gap", "timm_proj": "mlp"},
    ),
    "naflex_class_token": _naflex(
        arguments={"class_token": True, "qk_norm": True, "qkv_bias": False}, **{**_MAP, "timm_pool": "token"}
    ),
    "naflex_mean_of_map": _naflex(arguments={"pool_include_prefix": True}, **{**_MAP, "timm_pool": "avg"}),
    "naflex_classifier": _naflex(**{**_MAP, "timm_pool": "avg", "timm_proj": None}),
}
_MODERN_LAYERS = {"text_arch": "modern", "heads": 2, "pad_id": PAD, "bos_id": BOS, "eos_id": EOS}
_MODERN_TEXT = {**_MODERN_LAYERS, "pool_type": "eos", "mlp_ratio": 1.7}
_MODERN_DECODER = {**_MODERN_LAYERS, "mlp_ratio": 1.7}
# Every option that makes other layers, of both kinds of norms and MLPs.
_GATED_LAYERS = {
    **{
        "norm_type": "layernorm",
        "norm_placement": "sandwich",
        "qk_norm": True,
        "attn_gated": True,
        "gate_bias": False,
    },
    **{"value_residual": True, "layers": 3, "ls_init_value": 0.5, "rope_temperature": 50.0, **_BIASES},
}
_PLAIN_LAYERS = {"norm_eps": 0.1, "mlp_type": "relu2", "gate_bias": True, "attn_gated": True, "layers": 3}
_POOL = {"attentional_pool": True}
MODELS |= {
    # As coca2-moderntext_ViT-B-32.
    "coca_modern_released": _coca(
        {"attentional_pool": "cascade"},
        {**_MODERN_TEXT, "attn_gated": True, "mlp_ratio": 4.0, "pad_id": 0, "freeze_pad_embed": False},
        {"text_arch": "modern", "attn_gated": True, "layers": 2},
    ),
    "coca_modern_everything": _coca(
        _POOL,
        {**_MODERN_TEXT, **_PLAIN_LAYERS, "pool_type": "map", "pre_norm": True},
        {**_MODERN_DECODER, **_GATED_LAYERS, "cross_attn_ratio": 2},
    ),
    "coca_modern_registers": _coca(
        _POOL,
        {**_MODERN_TEXT, "pool_type": "mean", "reg_tokens": 2, "value_residual": True},
        {**_MODERN_DECODER, **_PLAIN_LAYERS, "pos_embed": "none", "cross_attn_ratio": 3},
    ),
    "coca_modern_bidirectional": _coca(
        _POOL, {**_MODERN_TEXT, **_BIDIRECTIONAL, "pool_type": "mean"}, {**_MODERN_DECODER, "mlp_type": "mlp"}
    ),
    "coca_modern_text": _coca(_POOL, {**_MODERN_TEXT, **_GATED_LAYERS}, {}),
    "coca_modern_decoder": _coca(_POOL, _CLASS_TOKEN, {**_MODERN_DECODER, "value_residual": True, "layers": 2}),
}


def _mammut(**multimodal: object) -> dict:
    sizes = {"context_length": 16, "vocab_size": VOCAB_SIZE, "width": 16, "layers": 3, "cross_attn_ratio": 2}
    return {
        "embed_dim": 16,
        "vision_cfg": {**VISION, "pool_type": "avg", "final_ln_after_pool": True, "output_tokens": True},
        "multimodal_cfg": {**sizes, **_MODERN_DECODER, **multimodal},
    }


MODELS |= {
    # As mammut2-moderntext_ViT-B-32.
    "mammut_modern_masked": _mammut(qk_norm=True, attn_gated=True),
    "mammut_modern_everything": {
        **_mammut(
            **{**_GATED_LAYERS, "pool_type": "map", "proj_type": "linear", "proj_bias": True, "pre_norm": True},
            **{"cross_attn_ratio": 1},
        ),
        "embed_dim": 10,
    },
    "mammut_modern_end_tied": _mammut(
        **{**_PLAIN_LAYERS, "pool_type": "eos", "tie_lm_head": True, "pos_embed": "none", "pad_id": 0}
    ),
}
# Model -> `config.json` of its encoder of transformers.
ENCODERS = {"modernbert": _MODERNBERT, "modernbert_mean": _MODERNBERT}


def text_fields(model_cfg: dict) -> dict:
    """The part that describes texts, which a MaMMUT shares with captions."""
    return model_cfg.get("text_cfg") or model_cfg["multimodal_cfg"]


def model_class(model_cfg: dict) -> type[torch.nn.Module]:
    if "text_cfg" not in model_cfg:
        from open_clip.mammut_model import MaMMUT

        return MaMMUT
    return CoCa if "multimodal_cfg" in model_cfg else CustomTextCLIP


def build_model(name: str) -> torch.nn.Module:
    """open_clip's model in eval mode, in the form that later commits give it, with all weights random."""
    kwargs = copy.deepcopy(MODELS[name])
    kwargs.pop("custom_text", None)
    text_cfg = text_fields(kwargs)
    later_fields = ("correct_cls_mask", "freeze_pad_embed")
    later = {key: text_cfg.pop(key) for key in later_fields if key in text_cfg}
    if name in ENCODERS:
        text_cfg["hf_model_name"] = str(FOLDER / name / ENCODER_FOLDER)
    model = model_class(kwargs)(**kwargs)
    _later_form(model, MODELS[name], later)
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if key in ("logit_scale", "logit_bias"):
                parameter.fill_(1.7 if key == "logit_scale" else -1.3)
            elif key == "text.token_embedding.weight" and model.text.token_embedding.padding_idx is not None:
                parameter.copy_(noise)[model.text.token_embedding.padding_idx] = 0
            elif parameter.ndim == 1 and (key.endswith(".weight") or key.endswith(".gamma")):
                parameter.copy_(1 + 0.3 * noise)
            else:
                # Captions are to differ from image to image.
                to_image = ("attn_pool", "cross_attn", "xattn", "map_viz2txt_kv")
                std = 1 if "embedding" in key else 0.9 if any(part in key for part in to_image) else 0.4
                parameter.copy_(std * noise)
        if "multimodal_cfg" in kwargs:
            # And some of them end.
            decoder = getattr(model, "text_decoder", model.text)
            head = decoder.lm_head.weight if hasattr(decoder, "lm_head") else decoder.text_projection.T
            head.mul_(3)
            head[EOS] *= 3
    return model.eval()


def _later_form(model: torch.nn.Module, model_cfg: dict, text_fields: dict):
    if "correct_cls_mask" in text_fields:
        model.text.correct_cls_mask = text_fields["correct_cls_mask"]
    if text_fields.get("freeze_pad_embed") is False:
        model.text.token_embedding.padding_idx = None
    visual, vision_cfg = model.visual, model_cfg["vision_cfg"]
    kind = vision_cfg.get("attentional_pool")
    if isinstance(kind, str):
        # Both poolers behind a norm of the encoder's width, the second one over the first one's tokens in a cascade,
        # its one query taken out, and no projection.
        embed_dim, width = model_cfg["embed_dim"], vision_cfg["width"]
        visual.ln_post, visual.proj = LayerNorm(width), None
        visual.attn_pool_contrastive = AttentionalPooler(
            embed_dim, width if kind == "parallel" else embed_dim, n_head=vision_cfg["attn_pooler_heads"], n_queries=1
        )
        visual.attn_pool_contrastive.register_forward_hook(lambda module, inputs, output: output[:, 0])
    if "multimodal_cfg" in model_cfg:
        # The padding of captions is the text tower's.
        model.pad_id = model.text.pad_id


def make_inputs(model_cfg: dict) -> dict[str, torch.Tensor]:
    """Images, as they are saved, and texts, of which some end early, one has its end at the last place."""
    generator = torch.Generator().manual_seed(5)
    size = model_cfg["vision_cfg"]["image_size"]
    text_cfg = text_fields(model_cfg)
    length, pad_id = text_cfg["context_length"], text_cfg.get("pad_id", 0)
    input_ids = torch.randint(1, BOS, (4, length), generator=generator)
    for row, end in zip(input_ids, (length - 1, length // 2, length - 3, 2)):
        row[0], row[end], row[end + 1 :] = BOS, EOS, pad_id
    if text_cfg.get("text_arch") == "modern":
        # One without an end, one of padding alone.
        input_ids[1, length // 2 :] = pad_id
        input_ids[3] = pad_id
    if "image_seq_len" in model_cfg["vision_cfg"]:
        return {**make_patches(model_cfg["vision_cfg"], generator), "input_ids": input_ids}
    return {"pixel_values": torch.randn(4, 3, size, size, generator=generator).half(), "input_ids": input_ids}


def make_patches(vision_cfg: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Images of several shapes, and their patches as open_clip's evaluation has them, named as transformers does."""
    max_seq_len, patch_size = vision_cfg["image_seq_len"], vision_cfg["timm_model_kwargs"]["patch_size"]
    transform = naflex_eval_transform_v2(PreprocessCfg())(max_seq_len=max_seq_len, patch_size=(patch_size,) * 2)
    images = [
        torch.randint(0, 256, (height, width, 3), generator=generator).byte()
        for height, width in ((13, 9), (8, 31), (20, 20), (40, 3))
    ]
    batch, _ = NaFlexCollator(max_seq_len)([(transform(Image.fromarray(image.numpy())), 0) for image in images])
    return {
        **{f"image_{index}": image for index, image in enumerate(images)},
        "pixel_values": batch["patches"],
        "pixel_attention_mask": batch["patch_valid"].int(),
        "spatial_shapes": batch["patch_coord"].amax(dim=1) + 1,
    }


def open_clip_images(inputs: dict[str, torch.Tensor]) -> torch.Tensor | dict[str, torch.Tensor]:
    """Images as open_clip's model takes them."""
    pixel_values = inputs["pixel_values"].float()
    if "spatial_shapes" not in inputs:
        return pixel_values
    valid, columns = inputs["pixel_attention_mask"].bool(), inputs["spatial_shapes"][:, 1:]
    place = torch.arange(valid.shape[1])
    coordinates = torch.stack([place // columns, place % columns], dim=-1) * valid.unsqueeze(-1)
    return {"patches": pixel_values, "patch_coord": coordinates, "patch_valid": valid}


@torch.no_grad()
def compute_values(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    input_ids = inputs["input_ids"]
    outputs = model(open_clip_images(inputs), input_ids)
    if not isinstance(outputs, dict):
        outputs = dict(zip(("image_features", "text_features", "logit_scale", "logit_bias"), outputs))
    features = outputs["image_features"], outputs["text_features"]
    values = {
        "image_embeds": features[0],
        "text_embeds": features[1],
        "logits_per_image": outputs["logit_scale"] * features[0] @ features[1].T + outputs.get("logit_bias", 0),
    }
    if "logits" in outputs:
        values["logits"] = outputs["logits"]
        loss = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=model.pad_id)
        # As `CoCaTask` has it: the model sees whole texts, and the labels are shifted outside of it.
        losses = loss(*features, outputs["logits"][:, :-1], input_ids[:, 1:], outputs["logit_scale"], output_dict=True)
        values["loss"] = sum(losses.values())
    return values


# transformers 5 asks for these, which only models with experts need.
MultimodalGenerationWrapper.get_experts_implementation = lambda self: None
MultimodalGenerationWrapper.set_experts_implementation = lambda self, implementation: None


def make_captions(model: torch.nn.Module, pixel_values: torch.Tensor) -> dict:
    ids = {"sot_token_id": BOS, "eos_token_id": EOS, "pad_token_id": model.pad_id}
    calls = {}
    for name, kwargs in CALLS.items():
        tokens = model.generate(pixel_values.float(), **ids, **{"seq_len": 12, **kwargs}).tolist()
        exact = copy.deepcopy(model).double().generate(pixel_values.double(), **ids, **{"seq_len": 12, **kwargs})
        if exact.tolist() != tokens:
            raise ValueError(f"{name}: rounding decides a caption; choose another seed")
        calls[name] = {"open_clip_kwargs": {"seq_len": 12, **kwargs}, "tokens": tokens}
    return {**ids, "calls": calls}


def write_model(name: str):
    folder = FOLDER / name
    folder.mkdir(exist_ok=True)
    if name in ENCODERS:
        (folder / ENCODER_FOLDER).mkdir(exist_ok=True)
        (folder / ENCODER_FOLDER / "config.json").write_text(json.dumps(ENCODERS[name], indent=2) + "\n")
    model, inputs = build_model(name), make_inputs(MODELS[name])
    tensors = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    values = {key: value.contiguous() for key, value in compute_values(model, inputs).items()}
    save_file({**inputs, **values}, folder / "values.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODELS[name]}, indent=2) + "\n")
    if "multimodal_cfg" in MODELS[name]:
        captions = json.dumps(make_captions(model, inputs["pixel_values"]))
        lines = captions.replace("}, ", "},\n").replace("], [", "],\n[").replace(', "tokens"', ',\n"tokens"')
        (folder / "captions.json").write_text(lines + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert open_clip.__version__ == "4.2.0.dev0", open_clip.__version__
    for name in sys.argv[1:] or MODELS:
        write_model(name)
