"""Conversions from beginning to end: every kind of source and option, what is written, and what is left behind."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_configs import open_clip_model, save_open_clip_folder, tiny_clip_cfg, tiny_coca_cfg, tiny_siglip_cfg

from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.mapping import plan as conversion_plan
from open_clip_transformers.convert_scripts.mapping.plan import MODEL_CLASSES
from open_clip_transformers.convert_scripts.sources.architectures import get_architecture
from open_clip_transformers.modeling.modeling_coca import CoCaForConditionalGeneration


MODELS = {"clip": tiny_clip_cfg(), "siglip": tiny_siglip_cfg(), "coca": tiny_coca_cfg()}


def convert(source, output, **kwargs):
    return convert_open_clip_checkpoint(source, output, **{"with_processor": False, "verify": "structure", **kwargs})


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def assert_equal_weights(first: Path, second: Path):
    first, second = weights_of(first), weights_of(second)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.fixture
def coca(tmp_path) -> Path:
    """Folder of a tiny CoCa, as open_clip publishes it."""
    save_open_clip_folder(tmp_path / "coca", tiny_coca_cfg())
    return tmp_path / "coca"


@pytest.mark.floor
@pytest.mark.parametrize("model_cfg", MODELS.values(), ids=MODELS.keys())
def test_convert_writes_what_save_pretrained_would(tmp_path, model_cfg):
    save_open_clip_folder(tmp_path / "source", model_cfg)
    report = convert(tmp_path / "source", tmp_path / "converted")
    model = MODEL_CLASSES[report.model_type].from_pretrained(tmp_path / "converted")
    model.save_pretrained(tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {path.name for path in (tmp_path / "converted").iterdir()} == names | {"conversion.json"}
    for name in names - {"model.safetensors"}:
        assert json.loads((tmp_path / "converted" / name).read_text()) == json.loads(
            (tmp_path / "saved" / name).read_text()
        )
    assert_equal_weights(tmp_path / "converted", tmp_path / "saved")


def test_convert_leaves_word_of_where_the_folder_comes_from(tmp_path, coca):
    (coca / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    report = convert(coca, tmp_path / "out")
    provenance = json.loads((tmp_path / "out" / "conversion.json").read_text())
    expected = {"source": "coca", "sha256": report.sha256, "license": "apache-2.0"}
    assert expected.items() <= provenance.items()
    assert provenance["versions"].keys() == {"open_clip_transformers", "torch", "transformers"}


def test_convert_invents_no_licence(tmp_path, coca):
    convert(coca, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["license"] is None


def test_convert_reports_what_it_did(tmp_path, coca):
    report = convert(coca, tmp_path / "out", verify="full")
    weights = coca / "open_clip_model.safetensors"
    assert report.source == str(coca)
    assert report.weights_file == weights
    assert report.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (report.model_type, report.architecture) == ("open_clip_coca", "CoCaForConditionalGeneration")
    assert (report.dtype, report.output_dir) == ("float32", tmp_path / "out")
    tensors = weights_of(tmp_path / "out")
    assert report.num_tensors == len(tensors)
    assert report.num_parameters == sum(tensor.numel() for tensor in tensors.values())
    assert report.verification.differences.keys() == {
        "image features",
        "text features",
        "logits",
        "caption logits",
    }
    text = str(report)
    for part in (str(coca), report.sha256, "CoCaForConditionalGeneration", "open_clip 3.3.0", "caption logits"):
        assert part in text


def test_convert_reports_what_it_dropped_and_changed(tmp_path):
    source = tmp_path / "source"
    model = save_open_clip_folder(source, tiny_clip_cfg())
    torch.save({**model.state_dict(), "attn_mask": torch.zeros(11, 11)}, source / "with_mask.pt")
    report = convert(source / "with_mask.pt", tmp_path / "out", config=tiny_clip_cfg(vision_cfg={"image_size": 32}))
    assert report.dropped == {"attn_mask": "causal mask of the text tower, made in forward"}
    assert report.changed == {"visual.positional_embedding": "resized from a grid of 3 x 3 patches to 4 x 4"}
    assert "dropped      attn_mask: causal mask" in str(report)
    assert "changed      visual.positional_embedding: resized" in str(report)


def as_folder_of_bin(folder: Path, state_dict: dict) -> Path:
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(state_dict, folder / "open_clip_pytorch_model.bin")
    return folder


def as_safetensors_file(folder: Path, state_dict: dict) -> Path:
    return shutil.copy(folder / "open_clip_model.safetensors", folder.parent / "weights.safetensors")


def as_state_dict_file(folder: Path, state_dict: dict) -> Path:
    torch.save(state_dict, folder.parent / "weights.pt")
    return folder.parent / "weights.pt"


def as_training_checkpoint(folder: Path, state_dict: dict) -> Path:
    checkpoint = {
        "epoch": 3,
        "name": "run",
        "state_dict": {f"module.{key}": tensor for key, tensor in state_dict.items()},
        "optimizer": {"param_groups": [{"lr": np.float64(1e-3)}]},
    }
    torch.save(checkpoint, folder.parent / "epoch_3.pt")
    return folder.parent / "epoch_3.pt"


@pytest.mark.parametrize(
    "make",
    [as_folder_of_bin, as_safetensors_file, as_state_dict_file, as_training_checkpoint],
    ids=lambda f: f.__name__,
)
def test_convert_gives_the_same_weights_from_every_kind_of_source(tmp_path, coca, make):
    convert(coca, tmp_path / "expected")
    source = make(coca, load_file(coca / "open_clip_model.safetensors"))
    convert(source, tmp_path / "out", config=None if source.is_dir() else coca / "open_clip_config.json")
    assert_equal_weights(tmp_path / "expected", tmp_path / "out")


def test_convert_takes_a_built_in_architecture_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "open_clip_transformers.convert_scripts.sources.source.get_architecture",
        lambda name: {"tiny": tiny_clip_cfg()}[name],
    )
    torch.save(open_clip_model(tiny_clip_cfg()).state_dict(), tmp_path / "weights.pt")
    assert convert(tmp_path / "weights.pt", tmp_path / "out", model_name="tiny").model_type == "open_clip"


def test_convert_refuses_weights_of_another_architecture(tmp_path, coca):
    with pytest.raises(
        ConversionError, match=r"(?s)does not fit.*visual\.conv1\.weight: got \(40, 3, 8, 8\), expected"
    ):
        convert(coca / "open_clip_model.safetensors", tmp_path / "out", model_name="coca_ViT-B-32")


@pytest.mark.parametrize("dtype", ["float16", "bf16", torch.bfloat16], ids=["name", "short-name", "torch"])
def test_convert_casts_the_weights(tmp_path, coca, dtype):
    report = convert(coca, tmp_path / "out", dtype=dtype, verify="full")
    expected = {"float16": torch.float16}.get(dtype, torch.bfloat16)
    assert report.dtype == str(expected).removeprefix("torch.")
    assert {tensor.dtype for tensor in weights_of(tmp_path / "out").values()} == {expected}
    assert CoCaForConditionalGeneration.from_pretrained(tmp_path / "out").dtype == expected


@pytest.mark.parametrize(
    ("low", "expected"), [(lambda key: True, torch.float16), (lambda key: "ln_" not in key, torch.float32)],
    ids=["all-half", "mixed"],
)  # fmt: skip
def test_convert_keeps_the_checkpoints_dtype_unless_it_has_several(tmp_path, low, expected):
    model = open_clip_model(tiny_clip_cfg())
    state_dict = {key: t.half() if low(key) else t for key, t in model.state_dict().items()}
    torch.save(state_dict, tmp_path / "weights.pt")
    convert(tmp_path / "weights.pt", tmp_path / "out", config=tiny_clip_cfg(), verify="full")
    assert {tensor.dtype for tensor in weights_of(tmp_path / "out").values()} == {expected}


def test_convert_shards_large_models(tmp_path, coca):
    convert(coca, tmp_path / "whole")
    convert(coca, tmp_path / "shards", max_shard_size="200KB")
    shards = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(shards) > 2 and all(shard.stat().st_size < 220_000 for shard in shards)
    assert_equal_weights(tmp_path / "whole", tmp_path / "shards")
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in weights_of(tmp_path / "whole").values())
    model = CoCaForConditionalGeneration.from_pretrained(tmp_path / "shards")
    assert torch.equal(model.lm_head.weight, weights_of(tmp_path / "whole")["lm_head.weight"])


def test_convert_leaves_the_source_and_the_random_state_alone(tmp_path, coca):
    before = {path.name: path.read_bytes() for path in coca.iterdir()}
    state = torch.get_rng_state()
    convert(coca, tmp_path / "out", verify="full")
    assert {path.name: path.read_bytes() for path in coca.iterdir()} == before
    assert torch.equal(torch.get_rng_state(), state)


def test_convert_fills_an_empty_folder_and_makes_parents(tmp_path, coca):
    (tmp_path / "empty").mkdir()
    convert(coca, tmp_path / "empty")
    convert(coca, tmp_path / "a" / "b" / "c")
    assert_equal_weights(tmp_path / "empty", tmp_path / "a" / "b" / "c")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_convert_does_not_overwrite(tmp_path, coca, kind):
    output = tmp_path / "out"
    if kind == "folder":
        output.mkdir()
    taken = output / "mine.txt" if kind == "folder" else output
    taken.write_text("mine")
    with pytest.raises(ConversionError, match="exists and is not an empty folder"):
        convert(coca, output)
    assert taken.read_text() == "mine"


FAILURES = {
    "verification": ({"verify": "full"}, "differs from open_clip"),
    "shard-size": ({"max_shard_size": "huge"}, "max_shard_size must be"),
    "dtype": ({"dtype": "int8"}, "dtype must be one of float32"),
    "dtype-object": ({"dtype": torch.int8}, "floating point"),
    "mode": ({"verify": "maybe"}, "verify must be one of auto, full, structure, none, got 'maybe'"),
    "processor": ({"with_processor": True}, "vocab_size is 97"),
}


@pytest.mark.parametrize(("kwargs", "message"), FAILURES.values(), ids=FAILURES.keys())
def test_convert_leaves_nothing_behind_when_it_fails(tmp_path, monkeypatch, coca, kwargs, message):
    if kwargs == {"verify": "full"}:
        # queries and keys confused: every name and shape is right
        converted = conversion_plan.ConversionPlan.converted
        monkeypatch.setattr(
            conversion_plan.ConversionPlan, "converted", lambda *args: swap_queries_and_keys(converted(*args))
        )
    before = sorted(path.name for path in tmp_path.iterdir())
    for output in (tmp_path / "out", tmp_path / "new" / "parents" / "out"):
        with pytest.raises(ConversionError, match=message):
            convert(coca, output, **kwargs)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_convert_leaves_nothing_behind_when_it_is_interrupted(tmp_path, monkeypatch, coca):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("open_clip_transformers.convert_scripts.convert_open_clip.verify_conversion", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(coca, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["coca"]


def swap_queries_and_keys(tensors):
    tensors = dict(tensors)
    for name in list(tensors):
        if ".self_attn.q_proj." in name:
            other = name.replace(".q_proj.", ".k_proj.")
            tensors[name], tensors[other] = tensors[other], tensors[name]
    return tensors.items()


def test_convert_says_which_ids_are_missing_without_a_tokenizer(tmp_path, coca):
    report = convert(coca, tmp_path / "out")
    assert "set bos_token_id and eos_token_id" in report.notes[0]


@pytest.mark.parametrize("name", ["coca_ViT-B-32", "ViT-B-32-quickgelu"])
def test_convert_sets_clips_token_ids_without_a_processor(tmp_path, name):
    model_cfg = get_architecture(name)
    for part in ("vision_cfg", "text_cfg", "multimodal_cfg"):
        if part in model_cfg:
            model_cfg[part] |= {"layers": 1, "width": 64}
    model_cfg |= {"embed_dim": 64}
    model_cfg["text_cfg"]["heads"] = 2
    save_open_clip_folder(tmp_path / "source", model_cfg)
    report = convert(tmp_path / "source", tmp_path / "out")
    assert report.notes == ()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["text_config"]["bos_token_id"], config["text_config"]["eos_token_id"]) == (49406, 49407)
    if name.startswith("coca"):
        generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
        assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (
            49406,
            49407,
            0,
        )
