"""The way back to open_clip: tensors bit for bit, configurations, image settings, tokenizers, and refusals by name."""

import json
import tempfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from reduced_models import reduced_cfg, reduced_timm
from safetensors.torch import load_file
from tiny_configs import save_open_clip_folder, tiny_clip_cfg, tiny_coca_cfg, tiny_siglip_cfg
from tiny_tokenizers import write_word_tokenizer
from transformers import AutoModel

from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.convert_to_open_clip import convert_to_open_clip
from open_clip_transformers.convert_scripts.mapping.config import build_config, build_model_cfg
from open_clip_transformers.convert_scripts.sources.architectures import get_architecture, list_architectures


CLIP_VOCABULARY = {"text_cfg": {"vocab_size": 49408}}
BLOCK = {"qk_norm": True, "scale_heads": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True}
MODELS = {
    "clip": tiny_clip_cfg(),
    "clip-quick-gelu": tiny_clip_cfg(quick_gelu=True),
    "clip-options": tiny_clip_cfg(
        nonscalar_logit_scale=True,
        vision_cfg={**BLOCK, "ls_init_value": 0.1, "pos_embed_type": "sin_cos_2d", "patch_dropout": 0.4},
        text_cfg={**BLOCK, "pool_type": "eos", "eos_id": 5, "act_kwargs": {"approximate": "tanh"}},
    ),
    "clip-rectangle": tiny_clip_cfg(vision_cfg={"image_size": [16, 32], "patch_size": [8, 4], "pool_type": "avg"}),
    "siglip": tiny_siglip_cfg(),
    "coca": tiny_coca_cfg(),
    "coca-cascade": tiny_coca_cfg(
        quick_gelu=True,
        pad_id=3,
        vision_cfg={"width": 36, "head_width": 12, "attentional_pool": "cascade"},
        multimodal_cfg={"ls_init_value": 0.1, "context_length": 13},
    ),
    "coca-raw-patches": tiny_coca_cfg(vision_cfg={"width": 36, "head_width": 12, "attentional_pool": False}),
}


def there(tmp_path: Path, model_cfg: dict, **kwargs) -> Path:
    """A folder of open_clip's converted to ours."""
    save_open_clip_folder(tmp_path / "source", model_cfg, preprocess_cfg=kwargs.pop("preprocess_cfg", None))
    convert_open_clip_checkpoint(
        tmp_path / "source", tmp_path / "ours", **{"with_processor": False, "verify": "none", **kwargs}
    )
    return tmp_path / "ours"


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def set_fields(folder: Path, name: str = "config.json", **fields):
    config = read_json(folder / name)
    for key, value in fields.items():
        *path, last = key.split("__")
        part = config
        for step in path:
            part = part[step]
        part[last] = value
    (folder / name).write_text(json.dumps(config))


@pytest.mark.parametrize("model_cfg", MODELS.values(), ids=MODELS.keys())
def test_round_trip_gives_the_same_tensors_and_outputs(tmp_path, model_cfg):
    ours = there(tmp_path, model_cfg)
    report = convert_to_open_clip(ours, tmp_path / "back", with_processor=False, verify="full")
    assert report.verification.mode == "full"
    assert {"image features", "text features", "logits"} <= report.verification.differences.keys()
    before = load_file(tmp_path / "source" / "open_clip_model.safetensors")
    after = load_file(tmp_path / "back" / "open_clip_model.safetensors")
    if "custom_text" in read_json(tmp_path / "back" / "open_clip_config.json")["model_cfg"]:
        before = open_clip.model.convert_to_custom_text_state_dict(before)
    assert before.keys() == after.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    assert report.num_tensors == len(before)


# One architecture of every kind of tower.
KINDS = (
    "EVA02-B-16",
    "MobileCLIP-S1",
    "PE-Core-B-16",
    "RN50-quickgelu",
    "ViT-B-16-SigLIP2",
    "ViTamin-S-LTT",
    "coca_roberta-ViT-B-32",
    "convnext_large_d",
    "mt5-base-ViT-B-32",
    "nllb-clip-base-siglip",
)


@pytest.mark.parametrize(
    "name",
    [
        name if name in KINDS else pytest.param(name, marks=pytest.mark.slow)
        for name in list_architectures(newer=False)
    ],
)
def test_round_trip_of_every_architecture_gives_the_same_tensors(name):
    # pytest would keep its own temporary folders, and these are large.
    with tempfile.TemporaryDirectory() as folder, reduced_timm():
        folder = Path(folder)
        model_cfg = reduced_cfg(get_architecture(name))
        ours = there(folder, model_cfg)
        convert_to_open_clip(ours, folder / "back", with_processor=False, verify="full")
        before = open_clip.factory.load_state_dict(folder / "source" / "open_clip_model.safetensors")
        after = load_file(folder / "back" / "open_clip_model.safetensors")
        if "text.positional_embedding" in after:
            before = open_clip.model.convert_to_custom_text_state_dict(before)
        assert before.keys() == after.keys()
        assert [key for key in before if not torch.equal(before[key], after[key])] == []


def is_quick(name: str) -> bool:
    """Whether its configuration is known without building a model of timm."""
    timm_model_name = get_architecture(name)["vision_cfg"].get("timm_model_name")
    return timm_model_name is None or "_siglip_" in timm_model_name


@pytest.mark.parametrize(
    "name",
    [
        name if is_quick(name) else pytest.param(name, marks=pytest.mark.slow)
        for name in list_architectures(newer=False)
    ],
)
def test_model_cfg_of_every_architecture_comes_back(name):
    model_cfg = get_architecture(name)
    back = build_model_cfg(build_config(model_cfg))
    assert back["embed_dim"] == model_cfg["embed_dim"]
    assert build_model_cfg(build_config(back)) == back


@pytest.mark.parametrize("model_cfg", MODELS.values(), ids=MODELS.keys())
def test_model_cfg_comes_back_as_it_was(model_cfg):
    back = build_model_cfg(build_config(model_cfg))
    assert build_config(back).to_dict() == build_config(model_cfg).to_dict()
    for part in ("vision_cfg", "text_cfg", "multimodal_cfg"):
        # Ratios of sizes and switches that open_clip does not read have other spellings.
        free = {"mlp_ratio", "vocab_size"}
        given = {key: value for key, value in model_cfg.get(part, {}).items() if key not in free}
        assert {key: back[part][key] for key in given if key in back[part]}.items() <= given.items()


@pytest.mark.parametrize("ratio", [4.3637, 4.9231, 2.7, 8 / 3], ids=str)
def test_mlp_ratio_gives_the_same_width(ratio):
    for width in (36, 40, 1408, 1664):
        model_cfg = tiny_clip_cfg(vision_cfg={"width": width, "head_width": 2, "mlp_ratio": ratio})
        vision_cfg = build_model_cfg(build_config(model_cfg))["vision_cfg"]
        assert int(width * vision_cfg["mlp_ratio"]) == int(width * ratio)
        assert len(str(vision_cfg["mlp_ratio"])) <= len("4.9231")


@pytest.mark.parametrize(
    "model_cfg",
    [tiny_clip_cfg(**CLIP_VOCABULARY), tiny_coca_cfg(**CLIP_VOCABULARY)],
    ids=["clip", "coca"],
)
def test_open_clip_loads_the_folder(tmp_path, model_cfg):
    preprocess_cfg = {"mean": [0.5, 0.4, 0.3], "interpolation": "bilinear", "resize_mode": "longest", "fill_color": 7}
    ours = there(tmp_path, model_cfg, with_processor=True, preprocess_cfg=preprocess_cfg)
    convert_to_open_clip(ours, tmp_path / "back", verify="structure")
    assert {path.name for path in (tmp_path / "back").iterdir()} == {
        "open_clip_config.json",
        "open_clip_model.safetensors",
    }
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8))
    texts = ["two cats", "a photo of a Dog, and of many other things that do not fit"]
    results = []
    for folder in ("source", "back"):
        model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / folder}")
        pixels, ids = preprocess(image)[None], open_clip.get_tokenizer(f"local-dir:{tmp_path / folder}")(texts)
        with torch.inference_mode():
            results.append([pixels, ids, model.encode_image(pixels), model.encode_text(ids)])
    assert all(torch.equal(first, second) for first, second in zip(*results))


def write_words(folder: Path):
    """Files of a tokenizer of 60 words that pads with an id of its own and ends texts with [SEP]."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    special = {f"{name.strip('[]').lower()}_token": name for name in names}
    write_word_tokenizer(folder, [*names, *(f"w{i}" for i in range(60))], "[CLS] $A [SEP]", **special)


@pytest.mark.parametrize(
    "tokenizer_kwargs",
    [{}, {"clean": "canonicalize"}, {"clean": "lower", "strip_sep_token": True}],
    ids=["default", "canonicalize", "strip-sep"],
)
def test_open_clip_gets_the_tokenizer_of_the_folder(tmp_path, tokenizer_kwargs):
    text_cfg = {"hf_tokenizer_name": "org/words", "tokenizer_kwargs": tokenizer_kwargs}
    (tmp_path / "source").mkdir()
    write_words(tmp_path / "source")
    ours = there(tmp_path, tiny_siglip_cfg(text_cfg=text_cfg), with_processor=True)
    report = convert_to_open_clip(ours, tmp_path / "back", hf_tokenizer_name="org/mine", verify="structure")
    assert "org/mine" in report.notes[0]
    assert read_json(tmp_path / "back" / "open_clip_config.json")["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == (
        "org/mine"
    )
    assert read_json(tmp_path / "back" / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    texts = ["w1 w2 W3", "w5_w6, w7", " ".join(f"w{i}" for i in range(40)), ""]
    ids = [open_clip.get_tokenizer(f"local-dir:{tmp_path / folder}")(texts) for folder in ("source", "back")]
    assert torch.equal(*ids)


def test_shards_and_saved_folders_are_read(tmp_path):
    there(tmp_path, tiny_coca_cfg(), max_shard_size="100KB")
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    convert_to_open_clip(tmp_path / "ours", tmp_path / "back", with_processor=False, verify="structure")
    AutoModel.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "saved")
    convert_to_open_clip(tmp_path / "saved", tmp_path / "again", with_processor=False, verify="structure")
    first, second = (load_file(tmp_path / name / "open_clip_model.safetensors") for name in ("back", "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16], ids=str)
def test_weights_are_cast(tmp_path, dtype):
    report = convert_to_open_clip(
        there(tmp_path, tiny_clip_cfg()), tmp_path / "back", with_processor=False, dtype=dtype
    )
    tensors = load_file(tmp_path / "back" / "open_clip_model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{report.dtype}"}
    assert report.dtype == str(dtype).removeprefix("torch.")
    assert report.verification.mode == "structure"


LOST = {
    "drop-path": ({"vision_config__drop_path_rate": 0.1}, r"vision_config\.drop_path_rate = 0\.1"),
    "norm-layer": ({"text_config__norm_layer": "layer_norm_fp32"}, r"text_config\.norm_layer = 'layer_norm_fp32'"),
    "attention-dropout": ({"text_config__attention_dropout": 0.2}, r"text_config\.attention_dropout = 0\.2"),
    "two-activations": (
        {"vision_config__hidden_act": "quick_gelu"},
        r"text_config\.hidden_act = 'gelu' \(open_clip's model has 'quick_gelu'\)",
    ),
    "decoder-width": ({"multimodal_config__intermediate_size": 72}, r"multimodal_config\.intermediate_size = 72"),
    "decoder-epsilon": ({"multimodal_config__layer_norm_eps": 1e-6}, r"multimodal_config\.layer_norm_eps = 1e-06"),
}


@pytest.mark.parametrize(("fields", "message"), LOST.values(), ids=LOST.keys())
def test_settings_that_open_clip_lacks_are_refused_by_name(fields, message):
    config = build_config(tiny_coca_cfg())
    for key, value in fields.items():
        part, name = key.split("__")
        setattr(getattr(config, part), name, value)
    with pytest.raises(ConversionError, match=f"(?s)cannot express these settings.*{message}"):
        build_model_cfg(config)


IMAGE_SETTINGS = {
    "no-crop": ({"do_center_crop": False}, "do_center_crop = False"),
    "rescale": ({"rescale_factor": 1 / 127.5}, r"rescale_factor = 0\.0078"),
    "size": ({"size": {"height": 32, "width": 32}}, r"size = .*32.*24"),
}


@pytest.mark.parametrize(("fields", "message"), IMAGE_SETTINGS.values(), ids=IMAGE_SETTINGS.keys())
def test_image_settings_that_open_clip_lacks_are_refused_by_name(tmp_path, fields, message):
    ours = there(tmp_path, tiny_clip_cfg(**CLIP_VOCABULARY), with_processor=True)
    set_fields(ours, "processor_config.json", **{f"image_processor__{key}": value for key, value in fields.items()})
    with pytest.raises(ConversionError, match=f"settings of the image processor:\n  {message}"):
        convert_to_open_clip(ours, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def no_config(ours: Path):
    (ours / "config.json").unlink()


def other_model(ours: Path):
    set_fields(ours, model_type="clip")


def tower(ours: Path):
    set_fields(ours, model_type="open_clip_vit")


def other_sizes(ours: Path):
    set_fields(ours, vision_config__hidden_size=60)


def no_weights(ours: Path):
    (ours / "model.safetensors").unlink()


def damaged_weights(ours: Path):
    (ours / "model.safetensors").write_bytes((ours / "model.safetensors").read_bytes()[:3000])


def damaged_generation(ours: Path):
    (ours / "generation_config.json").write_text("null")


def nested_generation(ours: Path):
    (ours / "generation_config.json").write_text('{"a":' * 100_000)


FAILURES = {
    no_config: "it has no config.json",
    other_model: "a model of type 'clip'; expected one of ours",
    tower: "holds a single tower",
    other_sizes: r"(?s)not those of a OpenClipModel.*Tensors of another shape.*class_embedding: got \(40,\)",
    no_weights: r"holds no weights: expected model\.safetensors",
    damaged_weights: r"model\.safetensors cannot be read",
    damaged_generation: r"generation_config\.json holds a NoneType",
    nested_generation: r"generation_config\.json cannot be read as JSON",
}


@pytest.mark.parametrize(("spoil", "message"), FAILURES.items(), ids=[spoil.__name__ for spoil in FAILURES])
def test_what_is_no_folder_of_ours_is_refused(tmp_path, spoil, message):
    ours = there(tmp_path, tiny_clip_cfg())
    spoil(ours)
    with pytest.raises(ConversionError, match=message):
        convert_to_open_clip(ours, tmp_path / "back", with_processor=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "source"]


OPTIONS = {
    "mode": ({"verify": "maybe"}, "verify must be one of"),
    "dtype": ({"dtype": "int8"}, "dtype must be one of"),
    "tokenizer": ({"with_processor": True}, "has no tokenizer"),
}


@pytest.mark.parametrize(("kwargs", "message"), OPTIONS.values(), ids=OPTIONS.keys())
def test_options_are_checked_before_anything_is_written(tmp_path, kwargs, message):
    ours = there(tmp_path, tiny_clip_cfg())
    with pytest.raises(ConversionError, match=message):
        convert_to_open_clip(ours, tmp_path / "back", **{"with_processor": False, **kwargs})
    assert not (tmp_path / "back").exists()


def test_output_is_not_overwritten(tmp_path):
    ours = there(tmp_path, tiny_clip_cfg())
    with pytest.raises(ConversionError, match="exists and is not an empty folder"):
        convert_to_open_clip(ours, ours, with_processor=False)


def test_image_settings_that_are_left_out_are_noted(tmp_path):
    report = convert_to_open_clip(
        there(tmp_path, tiny_clip_cfg()), tmp_path / "back", with_processor=False, verify="none"
    )
    assert "open_clip will use its own image settings (mean [0.48145466, " in report.notes[0]
