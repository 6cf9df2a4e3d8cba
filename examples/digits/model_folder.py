"""The folder that an example works on: one that was converted before, or the digits checkpoint, converted now."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from open_clip_transformers import convert_open_clip_checkpoint


CHECKPOINT = Path(__file__).resolve().parent / "open_clip_checkpoint"


@contextmanager
def model_folder(folder: Path | None) -> Iterator[Path]:
    """Gives `folder`, or without one a temporary folder with the digits checkpoint, converted."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        converted = Path(temporary) / "coca-digits"
        convert_open_clip_checkpoint(CHECKPOINT, converted, verify="structure")
        yield converted
