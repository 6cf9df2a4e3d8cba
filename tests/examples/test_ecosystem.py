"""The examples with other libraries, on the digits checkpoint and on a tiny dual model, each where it is installed."""

import importlib
from pathlib import Path

import pytest
from tiny_families import save_tiny_family

from open_clip_transformers import convert_open_clip_checkpoint


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("ecosystem")
    convert_open_clip_checkpoint(EXAMPLES / "digits" / "open_clip_checkpoint", root / "coca", verify="structure")
    save_tiny_family("clip", root / "clip")
    return {"coca": str(root / "coca"), "clip": str(root / "clip")}


@pytest.fixture
def run_example(monkeypatch):
    """Runs an example's `main` with arguments, as if it were started from a shell."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return lambda name, *arguments: importlib.import_module(name).main(list(arguments))


@pytest.mark.parametrize("kind", ["coca", "clip"])
def test_sentence_transformers_gives_the_models_embeddings(run_example, folders, kind, capsys):
    pytest.importorskip("sentence_transformers", minversion="5.4")
    results = run_example("sentence_transformers_embeddings", folders[kind])
    assert results["image_difference"] <= 2e-5 and results["text_difference"] <= 2e-5
    assert results["reloaded_difference"] <= 2e-5
    assert kind == "clip" or results["matched"] >= 0.9
    assert "get_image_features" in capsys.readouterr().out


def test_example_without_a_folder_converts_the_digits(run_example, capsys):
    pytest.importorskip("sentence_transformers", minversion="5.4")
    results = run_example("sentence_transformers_embeddings", "--images", "7")
    assert results["image_difference"] <= 2e-5
    assert "Embeddings of 7 images and texts, 64 dimensions" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["coca", "clip"])
def test_lora_trains_saves_loads_and_merges(run_example, folders, kind):
    pytest.importorskip("peft")
    results = run_example("peft_lora", folders[kind])
    assert results["last_loss"] < 0.5 * results["first_loss"]
    assert results["reloaded_difference"] <= 2e-5
    assert results["merged_difference"] <= 1e-4  # trained adapters are added in another order
    assert results["saved_tensors"] == results["saved_lora_tensors"] > 0
    assert kind == "clip" or results["size"] < 0.05


def test_int8_weights_agree_with_fp32(run_example, folders):
    pytest.importorskip("torchao")
    results = run_example("torchao_int8", folders["coca"])
    assert results["same_captions"] >= 0.97
    assert abs(results["right_int8"] - results["right_fp32"]) <= 0.02 and results["right_fp32"] >= 0.95
    assert min(results["image_cosine"], results["text_cosine"]) >= 0.999
    assert results["size"] < 0.4  # a quarter, but for embeddings, norms and the caption head


@pytest.mark.parametrize("kind", ["coca", "clip"])
def test_exported_parts_agree_with_eager(run_example, folders, kind, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    results = run_example("export_onnx", folders[kind], "--output", str(tmp_path))
    captions, same = results.pop("captions", (0, 0))
    assert same == captions == (8 if kind == "coca" else 0)
    parts = ["ImageTower", "TextTower", "CaptionStep"][: len(results)]
    assert list(results) == parts and len(parts) == (3 if kind == "coca" else 2)
    assert sorted(path.name for path in tmp_path.glob("*.onnx")) == sorted(f"{part}.onnx" for part in parts)
    for program_difference, onnx_difference in results.values():
        assert program_difference <= 1e-4 and onnx_difference <= 1e-4
