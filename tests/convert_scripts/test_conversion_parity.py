"""Outputs of converted models against open_clip: every built-in architecture at reduced size, and every switch."""

import tempfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from reduced_models import reduced_cfg, reduced_timm
from tiny_configs import (
    open_clip_model,
    save_open_clip_folder,
    tiny_clip_cfg,
    tiny_coca_cfg,
    tiny_siglip_cfg,
)
from transformers import AutoModel, AutoProcessor

import open_clip_transformers  # noqa: F401  registers the Auto classes
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.sources.architectures import get_architecture, list_architectures


def verified_differences(tmp_path, model_cfg: dict, **kwargs) -> dict[str, float]:
    """Converts a random model; the conversion itself compares the outputs and fails beyond 2e-5."""
    save_open_clip_folder(tmp_path / "source", model_cfg)
    report = convert_open_clip_checkpoint(
        tmp_path / "source", tmp_path / "out", with_processor=False, verify="full", **kwargs
    )
    assert report.verification.mode == "full"
    return report.verification.differences


@pytest.mark.parametrize("name", list_architectures(newer=False))
def test_every_architecture_agrees_with_open_clip_at_reduced_size(name):
    # pytest would keep its own temporary folders, and these are large.
    with tempfile.TemporaryDirectory() as folder, reduced_timm():
        differences = verified_differences(Path(folder), reduced_cfg(get_architecture(name)))
    expected = {"image features", "text features", "logits"} | ({"caption logits"} if "coca" in name else set())
    assert differences.keys() == expected


BLOCK = {"qk_norm": True, "scale_heads": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True}
VISION = {
    "average": {"pool_type": "avg"},
    "all-tokens": {"pool_type": "none"},
    "norm-after-pool": {"final_ln_after_pool": True, "pool_type": "avg"},
    "no-pre-norm": {"no_ln_pre": True},
    "sin-cos": {"pos_embed_type": "sin_cos_2d"},
    "tanh": {"act_kwargs": {"approximate": "tanh"}},
    "epsilon": {"norm_kwargs": {"eps": 0.01}},
    "layer-scale": {"ls_init_value": 0.1},
    "block-options": BLOCK,
    "block-options-off": {**BLOCK, "block_type": "default"},
    "custom-block": {"block_type": "custom"},
    "patch-dropout": {"patch_dropout": 0.4},
    "pooler": {"attentional_pool": True},
    "pooler-average": {"attentional_pool": True, "pool_type": "avg"},
    "pooler-norm-after-pool-ignored": {"attentional_pool": True, "final_ln_after_pool": True},
    "pooler-epsilon-not-passed": {"attentional_pool": True, "norm_kwargs": {"eps": 0.01}},
    "not-square": {"image_size": [16, 32], "patch_size": [8, 4]},
    "image-not-multiple-of-patch": {"image_size": 27},
}
TEXT = {
    "bidirectional": {"no_causal_mask": True},
    "first": {"pool_type": "first", "no_causal_mask": True},
    "last": {"pool_type": "last"},
    "eos": {"pool_type": "eos", "eos_id": 5},
    "all-tokens": {"pool_type": "none"},
    "biased-projection": {"proj_bias": True},
    "tanh": {"act_kwargs": {"approximate": "tanh"}},
    "epsilon": {"norm_kwargs": {"eps": 0.01}},
    "layer-scale": {"ls_init_value": 0.1},
    "block-options": BLOCK,
}
MODEL = {
    "quick-gelu": {"quick_gelu": True},
    "no-projection": {"embed_dim": 36, "text_cfg": {"proj_type": "none"}, "vision_cfg": {"attn_pooler_heads": 6}},
    "1d-temperature": {"nonscalar_logit_scale": True, "init_logit_bias": -3.0},
    "class-token": {"custom_text": True, "text_cfg": {"embed_cls": True, "pad_id": 3}},
    "class-token-bidirectional": {"custom_text": True, "text_cfg": {"embed_cls": True, "no_causal_mask": True}},
    "parallel": {"embed_dim": 40, "vision_cfg": {"attentional_pool": "parallel"}},
    "cascade": {"embed_dim": 40, "vision_cfg": {"attentional_pool": "cascade"}},
}
CASES = {
    **{f"vision-{name}": tiny_clip_cfg(vision_cfg=changes) for name, changes in VISION.items()},
    **{f"text-{name}": tiny_clip_cfg(text_cfg=changes) for name, changes in TEXT.items()},
    **{f"clip-{name}": tiny_clip_cfg(**changes) for name, changes in MODEL.items()},
    "siglip": tiny_siglip_cfg(),
    "coca": tiny_coca_cfg(),
    "coca-quick-gelu": tiny_coca_cfg(quick_gelu=True),
    "coca-logit-bias": tiny_coca_cfg(init_logit_bias=-3.0),
    "coca-decoder-layer-scale": tiny_coca_cfg(multimodal_cfg={"ls_init_value": 0.1}),
    "coca-decoder-ignored": tiny_coca_cfg(multimodal_cfg={"mlp_ratio": 2, "norm_kwargs": {"eps": 0.1}}),
    "coca-longer-decoder": tiny_coca_cfg(multimodal_cfg={"context_length": 13}),
    "coca-no-class-token": tiny_coca_cfg(text_cfg={"embed_cls": False}),
    "coca-raw-patches": tiny_coca_cfg(vision_cfg={"width": 36, "head_width": 12, "attentional_pool": False}),
    "coca-parallel": tiny_coca_cfg(vision_cfg={"width": 36, "head_width": 12, "attentional_pool": "parallel"}),
    "coca-cascade": tiny_coca_cfg(vision_cfg={"width": 36, "head_width": 12, "attentional_pool": "cascade"}),
}


@pytest.mark.parametrize("model_cfg", CASES.values(), ids=CASES.keys())
def test_every_switch_agrees_with_open_clip(tmp_path, model_cfg):
    assert verified_differences(tmp_path, model_cfg)


RESIZED = {
    "larger-image": {"vision_cfg": {"image_size": 40}},
    "smaller-image": {"vision_cfg": {"image_size": 16}},
    "other-aspect": {"vision_cfg": {"image_size": [16, 32]}},
    "longer-text": {"text_cfg": {"context_length": 17}},
    "shorter-text": {"text_cfg": {"context_length": 7}},
}


@pytest.mark.parametrize("dtype", [None, "bfloat16"], ids=["fp32", "bf16"])
@pytest.mark.parametrize("changes", RESIZED.values(), ids=RESIZED.keys())
def test_resized_positions_agree_with_open_clip(tmp_path, changes, dtype):
    model = open_clip_model(tiny_coca_cfg())
    save_open_clip_folder(tmp_path / "source", tiny_coca_cfg(**changes), model)
    report = convert_open_clip_checkpoint(
        tmp_path / "source", tmp_path / "out", with_processor=False, verify="full", dtype=dtype
    )
    assert len(report.changed) == 1


def test_scaled_cosine_attention_is_converted_although_open_clip_cannot_run_it(tmp_path):
    save_open_clip_folder(tmp_path / "source", tiny_clip_cfg(vision_cfg={"scaled_cosine_attn": True}))
    report = convert_open_clip_checkpoint(tmp_path / "source", tmp_path / "out", with_processor=False)
    assert report.verification.mode == "structure"
    assert "open_clip cannot run this model" in report.verification.detail


def test_converted_folder_agrees_with_the_model_that_open_clip_loads(tmp_path):
    model_cfg = tiny_coca_cfg(text_cfg={"vocab_size": 49408})
    save_open_clip_folder(tmp_path / "source", model_cfg, preprocess_cfg={"resize_mode": "longest", "mean": [0.5] * 3})
    convert_open_clip_checkpoint(tmp_path / "source", tmp_path / "out", verify="structure")
    reference, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'source'}")
    reference_tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'source'}")
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8))
    texts = ["two cats", "a photo of a dog, and of many other things that do not fit"]
    with torch.inference_mode():
        expected = reference.eval()(preprocess(image)[None].repeat(2, 1, 1, 1), reference_tokenizer(texts))
        ours = model(**processor(images=[image, image], text=texts, add_eos=True, return_tensors="pt"))
    for output, name in ((ours.image_embeds, "image_features"), (ours.text_embeds, "text_features")):
        torch.testing.assert_close(output, expected[name], rtol=0, atol=2e-6)
    torch.testing.assert_close(ours.logits[:, :-1], expected["logits"], rtol=0, atol=2e-5)
