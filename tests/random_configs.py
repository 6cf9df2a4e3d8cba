"""Random open_clip configurations: any mixture of options that open_clip 3.3.0 itself can build and run."""

import random

from tiny_configs import HF_ENCODERS, tiny_clip_cfg, tiny_coca_cfg, tiny_hf_encoder


BLOCK_OPTIONS = ("qk_norm", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
CONTEXT_LENGTH = 11


def random_model_cfg(seed: int) -> dict:
    """A tiny `model_cfg` of a CLIP, SigLIP or CoCa; the same for the same seed."""
    choose = random.Random(seed)
    is_coca = choose.random() < 0.4
    quick_gelu = choose.random() < 0.3
    cfg = {
        "embed_dim": choose.choice([24, 36]),
        "quick_gelu": quick_gelu,
        "init_logit_bias": choose.choice([None, None, -3.0]),
        "nonscalar_logit_scale": choose.random() < 0.3,
        "custom_text": is_coca or choose.random() < 0.5,
    }
    cfg["vision_cfg"] = _vision_cfg(choose, quick_gelu, cfg["embed_dim"], is_coca)
    cfg["text_cfg"] = _text_cfg(choose, quick_gelu, cfg["custom_text"], is_coca)
    if not is_coca:
        if choose.random() < 0.2:
            cfg["vision_cfg"] = _resnet_cfg(choose)
        if choose.random() < 0.3:
            cfg |= {"text_cfg": _hf_text_cfg(choose), "custom_text": True}
        return tiny_clip_cfg(**cfg)
    # The decoder continues the text's tokens and attends to the image's: all are equally wide.
    pooled = cfg["vision_cfg"]["attentional_pool"]
    width = cfg["text_cfg"]["width"] = cfg["embed_dim"] if pooled else cfg["vision_cfg"]["width"]
    cfg["multimodal_cfg"] = {
        "width": width,
        "layers": choose.randint(1, 3),
        "context_length": choose.choice([CONTEXT_LENGTH, CONTEXT_LENGTH + 3]),
        "ls_init_value": choose.choice([None, 0.1]),
    }
    return tiny_coca_cfg(**cfg)


def _stack_cfg(choose: random.Random, quick_gelu: bool) -> dict:
    return {
        "layers": choose.randint(1, 3),
        "mlp_ratio": choose.choice([1.5, 2.0, 4.0]),
        "ls_init_value": choose.choice([None, 0.1]),
        "act_kwargs": None if quick_gelu else choose.choice([None, {"approximate": "tanh"}]),
        "norm_kwargs": choose.choice([None, {"eps": 1e-3}]),
        "block_type": choose.choice([None, None, "custom", "default"]),
        **{name: choose.random() < 0.25 for name in BLOCK_OPTIONS},
    }


def _vision_cfg(choose: random.Random, quick_gelu: bool, embed_dim: int, is_coca: bool) -> dict:
    pooler = choose.choice([False, True, "parallel", "cascade"])
    # Poolers behind one another have a norm as wide as the embedding at the encoder's output.
    width = embed_dim if pooler in ("parallel", "cascade") else choose.choice([24, 36])
    image_size, patch_size = choose.choice([(24, 8), (27, 8), ([16, 32], 8), ([16, 32], [8, 4])])
    is_square = isinstance(image_size, int)
    return {
        **_stack_cfg(choose, quick_gelu),
        "width": width,
        "head_width": choose.choice([6, 12]),
        "image_size": image_size,
        "patch_size": patch_size,
        "patch_dropout": choose.choice([0.0, 0.4]),
        "attentional_pool": pooler,
        # One query is the class token, and leaves no token for captions.
        "attn_pooler_queries": choose.choice([2, 5] if is_coca else [1, 5]),
        "attn_pooler_heads": choose.choice([3, 4]),
        "no_ln_pre": choose.random() < 0.3,
        "pos_embed_type": choose.choice(["learnable", "sin_cos_2d"]) if is_square else "learnable",
        "final_ln_after_pool": choose.random() < 0.3,
        # One query leaves no token for the average, nor any for captions.
        "pool_type": "tok" if pooler else choose.choice(["tok", "avg"] + ["none"] * (not is_coca)),
    }


def _text_cfg(choose: random.Random, quick_gelu: bool, custom_text: bool, is_coca: bool) -> dict:
    embed_cls = custom_text and choose.random() < 0.5
    return {
        **_stack_cfg(choose, quick_gelu),
        "width": choose.choice([24, 36]),
        "heads": choose.choice([2, 4]),
        "context_length": CONTEXT_LENGTH,
        "embed_cls": embed_cls,
        "pad_id": choose.choice([0, 3]),
        "eos_id": choose.choice([2, 7]),
        "no_causal_mask": choose.random() < 0.3,
        "pool_type": choose.choice(["argmax", "eos", "first", "last"] + ["none"] * (not is_coca)),
        "proj_bias": choose.random() < 0.3,
    }


def _resnet_cfg(choose: random.Random) -> dict:
    width, head_width = choose.choice([(6, 24), (4, 32)])
    return {
        "layers": [choose.randint(1, 2) for _ in range(4)],
        "width": width,
        "head_width": head_width,
        "image_size": choose.choice([64, 96]),
    }


def _hf_text_cfg(choose: random.Random) -> dict:
    # open_clip 3.3.0 cannot run its `max_pooler`.
    poolers = "mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"
    return {
        # open_clip 3.3.0 does not know T5 itself.
        "hf_model_name": tiny_hf_encoder(choose.choice([name for name in HF_ENCODERS if name != "t5"])),
        "hf_model_pretrained": False,
        "hf_pooler_type": choose.choice(poolers),
        "hf_proj_type": choose.choice(["linear", "mlp"]),
        "context_length": CONTEXT_LENGTH,
    }
