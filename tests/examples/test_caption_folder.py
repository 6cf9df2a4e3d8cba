"""The example that captions a folder, on held-out digits."""

import sys
from pathlib import Path

import pytest
from transformers import AutoProcessor

from open_clip_transformers import CoCaForConditionalGeneration, convert_open_clip_checkpoint


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def coca(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caption_folder") / "coca"
    convert_open_clip_checkpoint(EXAMPLES / "digits" / "open_clip_checkpoint", folder, verify="structure")
    return folder


@pytest.mark.parametrize(
    "options",
    [["--workers", "0"], ["--workers", "2"], pytest.param(["--compile"], marks=pytest.mark.slow)],
    ids=["main_process", "workers", "compiled"],
)
def test_caption_folder_captions_all_in_order(coca, tmp_path, monkeypatch, capsys, options):
    monkeypatch.syspath_prepend(EXAMPLES)
    from caption_folder import main
    from digits.digits_data import held_out_pictures

    images = [picture.image for picture in held_out_pictures(7)]
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    processor = AutoProcessor.from_pretrained(coca)
    tokens = CoCaForConditionalGeneration.from_pretrained(coca).generate(
        **processor(images=images, return_tensors="pt")
    )
    expected = processor.batch_decode(tokens, skip_special_tokens=True)

    if sys.platform != "linux":  # processes take seconds to start there
        options = [*options, "--workers", "0"]
    captions = main([str(tmp_path), str(coca), "--batch-size", "3", *options])
    assert list(captions.items()) == [(str(tmp_path / f"{index}.png"), text) for index, text in enumerate(expected)]
    assert capsys.readouterr().out.splitlines() == ["\t".join(item) for item in captions.items()]
