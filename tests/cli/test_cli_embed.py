"""`open-clip-transformers embed` against `get_image_features` and `get_text_features`."""

import json

import numpy
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from open_clip_transformers import OpenClipTextModel


TEXTS = ["a cat", "a much longer text about dogs", "naïve café"]


def image_embeds_of(reference, folder, images):
    model, processor = reference(AutoModel, folder)
    inputs = processor.image_processor([Image.open(image) for image in images], return_tensors="pt")
    with torch.no_grad():
        return F.normalize(model.get_image_features(**inputs).pooler_output, dim=-1)


def text_embeds_of(reference, folder, texts):
    model, processor = reference(AutoModel, folder)
    with torch.no_grad():
        features = model.get_text_features(**processor.tokenizer(texts, return_tensors="pt")).pooler_output
    return F.normalize(features, dim=-1)


def read(path):
    with safe_open(path, framework="pt") as file:
        metadata = {key: json.loads(value) for key, value in file.metadata().items()}
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118  not a dict


@pytest.mark.parametrize("kind", ["clip", "coca", "siglip"])
def test_embed_writes_images_and_texts(run, converted, images, tmp_path, reference, kind):
    folder, output = converted(kind), tmp_path / "out.safetensors"
    texts = [option for text in TEXTS for option in ("--text", text)]
    run("embed", folder, images[0].parent, *texts, "-o", output, "--batch-size", 2)
    tensors, names = read(output)
    assert names == {"images": [str(image) for image in images], "texts": TEXTS}
    torch.testing.assert_close(tensors["image_embeds"], image_embeds_of(reference, folder, images), atol=1e-5, rtol=0)
    torch.testing.assert_close(tensors["text_embeds"], text_embeds_of(reference, folder, TEXTS), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "pads"), [("clip", False), ("coca", True), ("siglip", True)])
def test_embed_pads_texts_where_the_model_needs_it(run, converted, tmp_path, monkeypatch, kind, pads):
    lengths, forward = [], OpenClipTextModel.forward

    def recorded(self, input_ids, *args, **kwargs):
        lengths.append(input_ids.shape[1])
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(OpenClipTextModel, "forward", recorded)
    folder, texts = converted(kind), ["--text", "a much longer text about dogs", "--text", "a", "--text", "a cat"]
    run("embed", folder, *texts, "-o", tmp_path / "out.npy", "--batch-size", 2)
    limit = AutoTokenizer.from_pretrained(folder).model_max_length
    assert lengths == [limit, limit] if pads else lengths[0] < lengths[1] < limit


def test_embed_writes_one_array(run, clip, images, tmp_path, reference):
    run("embed", clip, *images, "-o", tmp_path / "images.npy")
    array = numpy.load(tmp_path / "images.npy", allow_pickle=False)
    assert array.dtype == numpy.float32
    torch.testing.assert_close(torch.tensor(array), image_embeds_of(reference, clip, images), atol=1e-5, rtol=0)


def test_embed_takes_texts_from_a_file(run, clip, tmp_path, reference):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    run("embed", clip, "--text", "first", "--texts-file", tmp_path / "texts.txt", "-o", tmp_path / "texts.npy")
    array = numpy.load(tmp_path / "texts.npy", allow_pickle=False)
    expected = text_embeds_of(reference, clip, ["first", *TEXTS])
    torch.testing.assert_close(torch.tensor(array), expected, atol=1e-5, rtol=0)


def test_embed_in_half_precision_writes_float32(run, clip, images, tmp_path, reference):
    run("embed", clip, *images, "-o", tmp_path / "e.safetensors", "--dtype", "bfloat16", "--device", "cpu")
    embeds = read(tmp_path / "e.safetensors")[0]["image_embeds"]
    assert embeds.dtype == torch.float32
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(len(images)))
    assert (embeds * image_embeds_of(reference, clip, images)).sum(-1).min() > 0.99


def test_embed_leaves_out_unreadable_images(run, clip, images, broken, tmp_path, reference):
    output = tmp_path / "out.safetensors"
    result = run("embed", clip, images[0], *broken, images[1], "-o", output, exit_code=1)
    tensors, names = read(output)
    assert names == {"images": [str(images[0]), str(images[1])]}
    torch.testing.assert_close(
        tensors["image_embeds"], image_embeds_of(reference, clip, images[:2]), atol=1e-5, rtol=0
    )
    assert result.stderr.splitlines()[-1] == "2 inputs were left out, see above."


def test_embed_writes_nothing_when_no_image_can_be_read(run, clip, broken, tmp_path):
    before = sorted(tmp_path.iterdir())
    result = run("embed", clip, *broken, "-o", tmp_path / "out.npy", exit_code=1)
    assert "None of the images can be read" in result.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_embed_replaces_a_file_only_by_a_whole_one(run, clip, images, tmp_path, monkeypatch):
    import safetensors.torch

    def fail(tensors, path, metadata):
        path.write_bytes(b"half a file")
        raise OSError("No space left on device")

    output = tmp_path / "out.safetensors"
    output.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", fail)
        result = run("embed", clip, images[0], "-o", output, exit_code=1)
    assert result.stderr == f"Error: {output} cannot be written: No space left on device\n"
    assert output.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out.safetensors"]
    run("embed", clip, images[0], "-o", output)
    assert read(output)[1] == {"images": [str(images[0])]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "e.pt", "--text", "a"], "--output e.pt must end in .safetensors or .npy"),
        (["-o", "missing/e.npy", "--text", "a"], "--output missing/e.npy is in missing, which is not a folder"),
        (["-o", "e.npy"], "There is nothing to embed"),
        (["-o", "e.npy", "a.png", "--text", "a"], "A .npy file holds one array"),
        (["-o", "e.npy", "missing.png"], "There is no image to work on"),
        (["a.png"], "--output"),
    ],
    ids=["suffix", "folder", "nothing", "two_kinds", "no_image", "no_output"],
)
def test_embed_refuses_what_cannot_work_before_any_work(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run("embed", "no_model_is_loaded", *arguments, exit_code=2)
    assert message in result.stderr
    assert not list(tmp_path.iterdir())
