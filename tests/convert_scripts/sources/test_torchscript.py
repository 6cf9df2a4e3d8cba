"""TorchScript archives as OpenAI published them: their weights, their architecture, and none of their code."""

import json
import os
import pickle
import warnings
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from tiny_configs import open_clip_model, tiny_clip_cfg, tiny_resnet_cfg

from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.sources.architectures import get_architecture
from open_clip_transformers.convert_scripts.sources.openai import OPENAI_KEYS, infer_openai_architecture
from open_clip_transformers.convert_scripts.sources.source import SourceOptions, open_source
from open_clip_transformers.convert_scripts.sources.weights import read_weights


# Heads of OpenAI's models are 64 wide, and the activation is QuickGELU.
TEXT = {"width": 128, "heads": 2, "mlp_ratio": 4.0}
CONFIGS = {
    "traced_vit": tiny_clip_cfg(
        quick_gelu=True, vision_cfg={"width": 64, "head_width": 64, "mlp_ratio": 4.0}, text_cfg=TEXT
    ),
    "scripted_resnet": tiny_resnet_cfg(quick_gelu=True, vision_cfg={"head_width": 64}, text_cfg=TEXT),
}


def openai_module(model_cfg: dict) -> torch.nn.Module:
    """open_clip's model with the three numbers that OpenAI's have, rounded as theirs: norms alone are not fp16."""
    from open_clip.model import convert_weights_to_fp16

    model = open_clip_model(model_cfg)
    convert_weights_to_fp16(model)
    numbers = {
        "input_resolution": model_cfg["vision_cfg"]["image_size"],
        "context_length": model_cfg["text_cfg"]["context_length"],
        "vocab_size": model_cfg["text_cfg"]["vocab_size"],
    }
    for name, number in numbers.items():
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(number))
    return model


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> dict[str, Path]:
    """An archive of each of `CONFIGS`."""
    folder = tmp_path_factory.mktemp("archives")
    for name, model_cfg in CONFIGS.items():
        model = openai_module(model_cfg)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if name.startswith("traced"):
                size = model_cfg["vision_cfg"]["image_size"]
                images, texts = torch.ones(2, 3, size, size).half(), torch.ones(2, 11, dtype=torch.int64)
                inputs = {"encode_image": (images,), "encode_text": (texts,)}
                scripted = torch.jit.trace_module(model, inputs, check_trace=False)
            else:
                scripted = torch.jit.script(model)
            torch.jit.save(scripted, folder / f"{name}.pt")
    return {name: folder / f"{name}.pt" for name in CONFIGS}


every_archive = pytest.mark.parametrize("name", CONFIGS)


def rewritten(source: Path, target: Path, change, compression: int = 0) -> Path:
    """A copy of an archive with `change(name, content)` for the content of each record."""
    with ZipFile(source) as old, ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


@every_archive
def test_archive_has_the_state_dict_that_torch_loads(archives, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(archives[name]).state_dict()
    tensors = read_weights(archives[name]).tensors
    assert list(tensors) == list(expected)
    for key, tensor in tensors.items():
        assert tensor.dtype == expected[key].dtype and torch.equal(tensor, expected[key]), key
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16, torch.float32, torch.int64}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not list mapped files")
def test_archive_is_mapped_instead_of_read(archives):
    tensors = read_weights(archives["traced_vit"]).tensors
    assert str(archives["traced_vit"]) in Path("/proc/self/maps").read_text()
    assert tensors


@every_archive
def test_archive_converts_without_the_name_of_its_architecture(archives, name, tmp_path):
    report = convert_open_clip_checkpoint(archives[name], tmp_path / "out", with_processor=False, verify="full")
    assert report.verification.mode == "full"
    assert report.dtype == "float32"  # of several
    assert set(report.dropped) == OPENAI_KEYS | {"attn_mask"}
    assert any("shapes of OpenAI's tensors" in note for note in report.notes)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["hidden_act"] == "quick_gelu"
    assert config["vision_config"]["image_size"] == CONFIGS[name]["vision_cfg"]["image_size"]


def test_state_dict_of_an_archive_says_its_architecture_too(tmp_path):
    torch.save(openai_module(CONFIGS["traced_vit"]).state_dict(), tmp_path / "ViT.pt")
    assert open_source(SourceOptions(tmp_path / "ViT.pt")).model_cfg["vision_cfg"]["patch_size"] == 8


def test_given_architecture_must_agree_with_the_archive(archives, tmp_path):
    with pytest.raises(ConversionError, match="does not fit the architecture"):
        convert_open_clip_checkpoint(archives["traced_vit"], tmp_path / "out", model_name="ViT-B-32-quickgelu")
    with pytest.raises(ConversionError, match=r"trained with QuickGELU.*keys of OpenAI's archives"):
        convert_open_clip_checkpoint(archives["traced_vit"], tmp_path / "out", model_name="ViT-B-32")


# The models that OpenAI published.
OPENAI = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336")


@pytest.mark.parametrize("name", OPENAI)
def test_architecture_follows_from_the_tensors_at_full_size(name):
    from open_clip.model import CLIP

    model_cfg = get_architecture(f"{name}-quickgelu")
    with torch.device("meta"):
        tensors = CLIP(**model_cfg).state_dict()
    tensors |= {
        "input_resolution": torch.tensor(model_cfg["vision_cfg"]["image_size"]),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    assert infer_openai_architecture(tensors) == model_cfg


def test_architecture_that_the_numbers_contradict_is_refused():
    tensors = openai_module(CONFIGS["scripted_resnet"]).state_dict()
    with pytest.raises(ConversionError, match=r"contradicts itself:\n  context_length: 77, by the shapes 11\n.*model"):
        infer_openai_architecture({**tensors, "context_length": torch.tensor(77)})


def test_architecture_of_incomplete_tensors_is_refused():
    tensors = openai_module(CONFIGS["traced_vit"]).state_dict()
    del tensors["visual.conv1.weight"]
    with pytest.raises(ConversionError, match=r"not their tensors \(KeyError: 'visual.conv1.weight'\)"):
        infer_openai_architecture(tensors)


class RunsCode:
    """An object whose pickle runs a command when it is loaded."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_archive_that_would_run_code_is_refused_by_name(archives, tmp_path):
    evil = pickle.dumps(RunsCode(f"touch {tmp_path / 'made'}"), protocol=2)
    path = rewritten(
        archives["traced_vit"],
        tmp_path / "evil.pt",
        lambda name, content: evil if name.endswith("/data.pkl") else content,
    )
    with pytest.raises(ConversionError, match=r"evil\.pt cannot be read.*\((posix|nt)\.system\).*run code"):
        read_weights(path)
    assert not (tmp_path / "made").exists()


# What a pickle can name to reach code by way of something harmless.
@pytest.mark.parametrize(
    "opcodes",
    [
        b"cbuiltins\neval\n(V1+1\ntR.",
        b"ctorch\nload\n(Vfile\ntR.",
        b"ctorch._utils\n_rebuild_sparse_tensor\n(tR.",
        b"c__torch__x\nModule\n)\x81.",
    ],
    ids=["builtin", "torch", "torch_utils", "like_an_archive"],
)
def test_archive_names_nothing_but_tensors_and_its_own_classes(archives, tmp_path, opcodes):
    path = rewritten(
        archives["traced_vit"],
        tmp_path / "evil.pt",
        lambda name, content: b"\x80\x02" + opcodes if name.endswith("/data.pkl") else content,
    )
    with pytest.raises(ConversionError, match="names a Python object"):
        read_weights(path)


def test_code_of_an_archive_is_not_run(archives, tmp_path):
    # Its methods are read by nobody: whatever they hold, the weights are the same.
    path = rewritten(
        archives["scripted_resnet"],
        tmp_path / "other.pt",
        lambda name, content: content.replace(b"  def ", b"  not python ") if name.endswith(".py") else content,
    )
    tensors, expected = read_weights(path).tensors, read_weights(archives["scripted_resnet"]).tensors
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)


DAMAGES = {
    "no_data": lambda name, content: b"" if "/data/" in name else content,
    "no_module": lambda name, content: pickle.dumps([1, 2], protocol=2) if name.endswith("/data.pkl") else content,
    "cut_off": lambda name, content: content[:-9] if name.endswith("/data.pkl") else content,
    "another_kind_of_record": lambda name, content: content.replace(b"storage", b"quarantine"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_archive_is_refused(archives, tmp_path, damage):
    path = rewritten(archives["traced_vit"], tmp_path / "damaged.pt", damage)
    with pytest.raises(ConversionError, match=r"damaged\.pt cannot be read"):
        read_weights(path)


def test_compressed_archive_is_refused(archives, tmp_path):
    path = rewritten(archives["traced_vit"], tmp_path / "small.pt", lambda name, content: content, ZIP_DEFLATED)
    with pytest.raises(ConversionError, match=r"small\.pt cannot be read.*compressed"):
        read_weights(path)


def test_archive_of_another_model_needs_its_architecture(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(3, 5)), tmp_path / "linear.pt")
    assert read_weights(tmp_path / "linear.pt").tensors.keys() == {"weight", "bias"}
    with pytest.raises(ConversionError, match=r"architecture of .*linear\.pt is not known"):
        open_source(SourceOptions(tmp_path / "linear.pt"))
