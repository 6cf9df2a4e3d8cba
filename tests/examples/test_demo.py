"""examples/demo.py from end to end, as `make demo` runs it."""

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw


ROOT = Path(__file__).resolve().parents[2]


def test_demo_captions_and_classifies_held_out_images(tmp_path):
    output = tmp_path / "demo_output"
    (output / "coca-digits").mkdir(parents=True)
    (output / "coca-digits" / "config.json").write_text("{}")  # an earlier run's, which is replaced

    command = [sys.executable, ROOT / "examples" / "demo.py", "--images", "40", "--shown", "6"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr

    lines = result.stdout.splitlines()
    header = next(line for line in lines if line.startswith("image"))
    assert header.split() == ["image", "truth", "caption", "top", "label", "probability"]
    assert sum(line[:3].isdigit() and line[3:7] == ".png" for line in lines) == 6
    assert "of 40 captions are right" in result.stdout
    assert "open-clip-transformers demo " in lines[-1]

    assert len(list((output / "images").glob("*.png"))) == 6
    with Image.open(output / "captions.png") as sheet:
        assert sheet.width > sheet.height > 300
    assert (output / "coca-digits" / "model.safetensors").is_file()


def test_demo_picture_has_the_truth_beside_a_wrong_caption(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import demo
    from digits.digits_data import held_out_pictures

    pictures = held_out_pictures(3)
    captions = [pictures[0].caption, "a single red three", pictures[2].caption]
    written = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda pen, place, text, *_, **__: written.append(text))
    demo.draw_sheet(pictures, captions)
    assert written == [captions[0], "wrong: a single red three", f"truth: {pictures[1].caption}", captions[2]]
