"""Verification of a folder: what agrees passes, and every kind of fault is found and named."""

import json
import shutil
from pathlib import Path

import pytest
from reduced_models import reduced_cfg, reduced_timm
from safetensors.torch import load_file, save_file
from tiny_configs import (
    open_clip_model,
    save_open_clip_folder,
    tiny_clip_cfg,
    tiny_coca_cfg,
    tiny_hf_coca_cfg,
    tiny_hf_text_cfg,
    tiny_resnet_cfg,
    tiny_siglip_cfg,
)
from tiny_folders import change_weights

from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.sources.architectures import get_architecture, list_architectures
from open_clip_transformers.convert_scripts.verify.folder import verify_folder


# With CLIP's vocabulary there is a tokenizer, and everything can be compared.
VOCABULARY = {"text_cfg": {"vocab_size": 49408}}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "resize_mode": "longest", "fill_color": 90}
FP32 = {"dtypes": ["float32"]}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A CLIP and a CoCa of open_clip with processors, and what they were converted to: name -> (source, folder)."""
    root, folders = tmp_path_factory.mktemp("originals"), {}
    for name, cfg in {"clip": tiny_clip_cfg(**VOCABULARY), "coca": tiny_coca_cfg(**VOCABULARY)}.items():
        source, folder = root / f"{name}_source", root / name
        save_open_clip_folder(source, cfg, preprocess_cfg=PREPROCESS)
        convert_open_clip_checkpoint(source, folder, verify="none")
        folders[name] = source, folder
    return folders


@pytest.fixture
def copies(originals, tmp_path):
    """`copies("clip")` -> the source and a copy of the folder, to be spoilt."""

    def copy(name):
        source, folder = originals[name]
        return source, shutil.copytree(folder, tmp_path / "folder")

    return copy


def failed(report, *groups) -> list[str]:
    return [check.name for check in report.failures if not groups or check.group in groups]


EVERYTHING = {"weights", "pixels", "tokens", "intermediates", "features", "logits", "losses", "gradients"}


@pytest.mark.parametrize("name", ["clip", "coca"])
def test_verify_folder_passes_what_was_converted(originals, tmp_path, name):
    source, folder = originals[name]
    report = verify_folder(folder, source, output_dir=tmp_path)
    assert report.passed, str(report)
    assert report.first_difference is None
    assert {check.group for check in report.checks} == EVERYTHING | ({"captions"} if name == "coca" else set())
    assert all(check.passed for check in report.checks)
    assert {check.dtype for check in report.checks} == {None, "float32", "bfloat16", "float16"}
    assert "Passed: " in str(report)


def test_verify_folder_passes_the_digits_model(tmp_path):
    source = Path(__file__).parents[3] / "examples" / "digits" / "open_clip_checkpoint"
    convert_open_clip_checkpoint(source, tmp_path / "out", verify="none")
    report = verify_folder(tmp_path / "out", source)
    assert report.passed, str(report)
    assert all(check.passed for check in report.checks)
    assert {check.group for check in report.checks} == EVERYTHING | {"captions"}


MODELS = {
    "siglip": tiny_siglip_cfg(),
    "resnet": tiny_resnet_cfg(),
    "roberta": tiny_hf_text_cfg(),
    "mt5": tiny_hf_text_cfg("mt5"),
    "coca-roberta": tiny_hf_coca_cfg(),
    "coca-logit-bias": tiny_coca_cfg(init_logit_bias=-3.0, pad_id=3, text_cfg={"pad_id": 3}),
    "contrastive-pooler": tiny_clip_cfg(embed_dim=40, vision_cfg={"attentional_pool": "cascade"}),
    "eos": tiny_clip_cfg(text_cfg={"pool_type": "eos", "eos_id": 5, "pad_id": 3}),
}


@pytest.mark.parametrize("model_cfg", MODELS.values(), ids=MODELS)
def test_verify_folder_passes_every_kind_of_model(tmp_path, model_cfg):
    save_open_clip_folder(tmp_path / "source", model_cfg)
    convert_open_clip_checkpoint(tmp_path / "source", tmp_path / "out", with_processor=False, verify="none")
    report = verify_folder(tmp_path / "out", tmp_path / "source")
    assert report.passed, str(report)
    # Without processors there is nothing to compare them with.
    left_out = {check.group for check in report.checks if check.passed is None}
    assert left_out == {"pixels", "tokens"}
    assert "Not compared: pixels, tokens." in report.verdict()
    layers = {check.name.split(" layer ")[0] for check in report.checks if check.group == "intermediates"}
    assert len(layers) >= 2, layers


@pytest.mark.slow
@pytest.mark.parametrize("name", list_architectures(newer=False))
def test_verify_folder_passes_every_architecture_at_reduced_size(tmp_path, name):
    with reduced_timm():
        save_open_clip_folder(tmp_path / "source", reduced_cfg(get_architecture(name)))
        convert_open_clip_checkpoint(tmp_path / "source", tmp_path / "out", with_processor=False, verify="none")
        report = verify_folder(tmp_path / "out", tmp_path / "source")
    assert report.passed, str(report)


@pytest.mark.slow
def test_verify_folder_passes_fused_layers_without_gradients(tmp_path):
    with reduced_timm():
        save_open_clip_folder(tmp_path / "source", reduced_cfg(get_architecture("MobileCLIP2-S0")))
        convert_open_clip_checkpoint(
            tmp_path / "source", tmp_path / "out", with_processor=False, verify="none", reparameterize=True
        )
        report = verify_folder(tmp_path / "out", tmp_path / "source", **FP32)
    assert report.passed, str(report)
    gradients = [check for check in report.checks if check.group == "gradients"]
    assert [check.detail for check in gradients] == ["the folder's layers are fused, for inference alone"]


def test_verify_folder_of_half_precision_rounds_the_reference(originals, tmp_path):
    source, _ = originals["clip"]
    convert_open_clip_checkpoint(source, tmp_path / "out", dtype="bfloat16", verify="none")
    report = verify_folder(tmp_path / "out", source)
    assert report.passed, str(report)
    assert report.dtype == "bfloat16"


def test_verify_folder_without_a_vector_for_each_text_leaves_losses_out(tmp_path):
    save_open_clip_folder(tmp_path / "source", tiny_clip_cfg(text_cfg={"pool_type": "none"}))
    convert_open_clip_checkpoint(tmp_path / "source", tmp_path / "out", with_processor=False, verify="none")
    report = verify_folder(tmp_path / "out", tmp_path / "source", **FP32)
    assert report.passed
    reasons = {check.group: check.detail for check in report.checks if check.passed is None}
    assert reasons.keys() == {"pixels", "tokens", "losses", "gradients"}
    assert "each of its tokens" in reasons["losses"]


def change_tensor(folder, name, change):
    change_weights(folder, lambda tensors: tensors.update({name: change(tensors[name])}))


def change_json(path, **changes):
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *parts, name = key.split("__")
        target = content
        for part in parts:
            target = target[part]
        target[name] = value
    path.write_text(json.dumps(content))


WRONG_WEIGHTS = {
    "patches": ("clip", "vision_model.embeddings.patch_embedding.weight", "vision patches"),
    "positions": ("clip", "vision_model.embeddings.position_embedding", "vision embeddings"),
    "norm": ("clip", "vision_model.encoder.layers.1.layer_norm1.bias", "vision layer 1 norm 1"),
    "attention": ("clip", "vision_model.encoder.layers.1.self_attn.v_proj.weight", "vision layer 1 attention"),
    "mlp": ("coca", "vision_model.encoder.layers.2.mlp.fc2.weight", "vision layer 2 MLP"),
    "pooler": ("coca", "vision_model.attn_pool.query", "vision attentional pooler"),
    "text-positions": ("clip", "text_model.embeddings.position_embedding.weight", "text embeddings"),
    "text-layer": ("coca", "text_model.encoder.layers.1.mlp.fc1.bias", "text layer 1 MLP"),
    "text-projection": ("clip", "text_model.projection.weight", "text features"),
    "cross-attention": (
        "coca",
        "multimodal_decoder.cross_attention_layers.0.cross_attn.out_proj.weight",
        "decoder cross-attention layer 0 attention",
    ),
    "words": ("coca", "lm_head.weight", "caption logits"),
    "temperature": ("clip", "logit_scale", "logits"),
}


@pytest.mark.parametrize(("model", "name", "first"), WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_verify_folder_names_the_first_layer_that_differs(copies, model, name, first):
    source, folder = copies(model)
    # Not in proportion: a norm would not let it through.
    change_tensor(folder, name, lambda tensor: tensor * 1.01 if tensor.ndim == 0 else tensor + 0.01 * tensor.roll(1))
    report = verify_folder(folder, source, skip=["gradients", "pixels", "tokens"], **FP32)
    assert not report.passed
    assert report.first_difference.name == first
    assert f"The first that differs, of {report.first_difference.group}: {first} (float32)" in str(report)
    weights = next(check for check in report.checks if check.group == "weights")
    assert (weights.difference, weights.detail) == (1, name)


def test_verify_folder_finds_a_wrong_temperature_in_logits_alone(copies):
    source, folder = copies("clip")
    change_tensor(folder, "logit_scale", lambda tensor: tensor * 1.01)
    report = verify_folder(folder, source, **FP32)
    assert failed(report, "pixels", "tokens", "intermediates", "features", "logits") == ["logits"]
    assert failed(report, "losses") == ["contrastive loss"]


WRONG_CONFIGS = {
    "activation": ({"vision_config__hidden_act": "quick_gelu"}, "vision layer 0 MLP"),
    "epsilon": ({"text_config__layer_norm_eps": 1e-3}, "text layer 0 norm 1"),
    "heads": ({"vision_config__num_attention_heads": 4}, "vision layer 0 attention"),
    "decoder": ({"multimodal_config__hidden_act": "quick_gelu"}, "decoder layer 0 MLP"),
    "pooled-token": ({"vision_config__pool_type": "avg"}, "image features"),
    "not-causal": ({"text_config__is_causal": False}, "text layer 0 attention"),
}


@pytest.mark.parametrize(("changes", "first"), WRONG_CONFIGS.values(), ids=WRONG_CONFIGS)
def test_verify_folder_names_where_a_wrong_configuration_shows(copies, changes, first):
    source, folder = copies("coca")
    change_json(folder / "config.json", **changes)
    report = verify_folder(folder, source, skip=["gradients", "pixels", "tokens"], **FP32)
    assert report.first_difference.name == first
    assert not failed(report, "weights")


WRONG_IMAGES = {
    "mean": {"image_processor__image_mean": [0.4, 0.5, 0.61]},
    "filter": {"image_processor__resample": 2},
    "resize-mode": {"image_processor__resize_mode": "shortest"},
    "fill-color": {"image_processor__fill_color": 91},
    "not-a-mode": {"image_processor__resize_mode": "stretch"},
}


@pytest.mark.parametrize("changes", WRONG_IMAGES.values(), ids=WRONG_IMAGES)
def test_verify_folder_names_pixels_that_differ(copies, changes):
    source, folder = copies("clip")
    change_json(folder / "processor_config.json", **changes)
    report = verify_folder(folder, source, skip=["gradients"], **FP32)
    assert {check.group for check in report.failures} == {"pixels"}
    assert failed(report) == ["images (pil)", "images (torchvision)"]
    assert report.first_difference.group == "pixels"


@pytest.mark.parametrize(
    "changes",
    [{"clean": "canonicalize"}, {"model_max_length": 9}, {"pad_token": "a"}],
    ids=["cleaning", "length", "padding"],
)
def test_verify_folder_names_tokens_that_differ(copies, changes):
    source, folder = copies("clip")
    change_json(folder / "tokenizer_config.json", **changes)
    report = verify_folder(folder, source, skip=["gradients"], **FP32)
    assert {check.group for check in report.failures} == {"tokens"}
    assert "of 18 differ" in report.first_difference.detail


def test_verify_folder_names_captions_that_differ(copies):
    source, folder = copies("coca")
    change_json(folder / "config.json", bos_token_id=320)
    report = verify_folder(folder, source, skip=["gradients"], **FP32)
    assert failed(report) == ["4 captions"]


def test_verify_folder_names_layers_that_are_missing(copies):
    source, folder = copies("clip")
    change_json(folder / "config.json", text_config__num_hidden_layers=1)

    def remove_layer(tensors):
        for name in [name for name in tensors if name.startswith("text_model.encoder.layers.1.")]:
            del tensors[name]

    change_weights(folder, remove_layer)
    report = verify_folder(folder, source, **FP32)
    assert report.first_difference.name == "text layer 1 norm 1"
    assert report.first_difference.detail == "open_clip's model alone has it"
    assert report.first_difference.difference == float("inf")


def test_verify_folder_reports_a_model_that_cannot_run(copies):
    source, folder = copies("clip")
    # As many patches of the same size, in another shape of image.
    change_json(folder / "config.json", vision_config__image_size=[8, 72])
    report = verify_folder(folder, source, **FP32)
    assert failed(report) == ["forward pass"]
    assert "height and width (24, 24), the model expects (8, 72)" in report.first_difference.detail


def test_verify_folder_refuses_weights_that_are_not_of_the_configuration(copies):
    source, folder = copies("clip")
    change_json(folder / "config.json", vision_config__image_size=32)
    with pytest.raises(ConversionError, match=r"position_embedding: got \(10, 40\), expected \(17, 40\)"):
        verify_folder(folder, source, **FP32)


def test_verify_folder_against_another_checkpoint_fails(originals, tmp_path):
    _, folder = originals["clip"]
    cfg = tiny_clip_cfg(**VOCABULARY)
    save_open_clip_folder(tmp_path / "other", cfg, open_clip_model(cfg, seed=1), PREPROCESS)
    report = verify_folder(folder, tmp_path / "other", output_dir=tmp_path, **FP32)
    assert report.first_difference.name == "vision patches"


def test_verify_folder_finds_what_is_wrong_in_half_precision_alone(originals, tmp_path, monkeypatch):
    import torch

    source, folder = originals["clip"]
    forward = torch.nn.LayerNorm.forward

    def rounded(self, hidden_states):
        result = forward(self, hidden_states)
        # Three bits less than bf16 has.
        return result if result.dtype == torch.float32 else result.to(torch.float8_e4m3fn).to(result.dtype)

    # open_clip's layer norm has a forward of its own.
    monkeypatch.setattr(torch.nn.LayerNorm, "forward", rounded)
    report = verify_folder(folder, source, output_dir=tmp_path)
    assert {check.dtype for check in report.failures} == {"bfloat16", "float16"}
    assert report.first_difference.name == "vision pre-norm"


ARGUMENTS = {
    "dtype": ({"dtypes": ["float64"]}, "dtypes must be some of float32, bfloat16, float16, got float64"),
    "no-dtype": ({"dtypes": []}, "got none"),
    "skip": ({"skip": ["features"]}, "skip may hold weights, pixels, .*got features"),
    "pairs": ({"pairs": 1}, "pairs must be at least 2.*got 1"),
}


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_verify_folder_refuses_wrong_arguments(originals, arguments, message):
    source, folder = originals["clip"]
    with pytest.raises(ConversionError, match=message):
        verify_folder(folder, source, **arguments)


def test_verify_folder_skips_what_it_is_told_to(originals, tmp_path):
    source, folder = originals["coca"]
    skip = ["weights", "pixels", "tokens", "intermediates", "captions", "losses", "gradients"]
    report = verify_folder(folder, source, skip=skip, output_dir=tmp_path, **FP32)
    assert {check.group for check in report.checks} == {"features", "logits"}
    assert report.passed


def test_verify_folder_says_why_open_clip_cannot_run(tmp_path):
    save_open_clip_folder(tmp_path / "source", tiny_clip_cfg(vision_cfg={"scaled_cosine_attn": True}))
    convert_open_clip_checkpoint(tmp_path / "source", tmp_path / "out", with_processor=False)
    with pytest.raises(ConversionError, match=r"nothing to compare with: open_clip cannot run this model \(.*3D"):
        verify_folder(tmp_path / "out", tmp_path / "source")


def test_verify_folder_without_open_clip_says_how_to_get_it(originals, monkeypatch):
    from open_clip_transformers.convert_scripts.verify import reference as open_clip_reference

    source, folder = originals["clip"]
    monkeypatch.setattr(open_clip_reference, "find_spec", lambda name: None)
    with pytest.raises(ConversionError, match=r"pip install open_clip_torch==3\.3\.0"):
        verify_folder(folder, source)


def test_verify_folder_tells_a_damaged_checkpoint_from_a_wrong_folder(copies):
    source, folder = copies("clip")
    damaged = shutil.copytree(source, folder.parent / "damaged")
    tensors = load_file(damaged / "open_clip_model.safetensors")
    tensors["visual.ln_post.bias"][3] = float("nan")
    save_file(tensors, damaged / "open_clip_model.safetensors")
    with pytest.raises(ConversionError, match=r"checkpoint is damaged.*not finite:\n  vision post-norm"):
        verify_folder(folder, damaged)
