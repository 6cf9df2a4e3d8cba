"""examples/demo.py from end to end, as `make demo` runs it."""

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image


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
