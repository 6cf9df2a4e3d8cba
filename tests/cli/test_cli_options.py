"""Reading the files that options name."""

import pytest

from open_clip_transformers.cli.messages import UsageError
from open_clip_transformers.cli.options import read_lines


def test_read_lines_skips_empty_ones(tmp_path):
    (tmp_path / "labels.txt").write_bytes("\ufeffcat\r\n\n  dog, small  \n".encode())
    assert read_lines(tmp_path / "labels.txt") == ["cat", "dog, small"]


@pytest.mark.parametrize("content", [None, b" \n\n", b"\xff\xfe\x00"], ids=["missing", "empty", "binary"])
def test_read_lines_without_text_is_a_usage_error(tmp_path, content):
    path = tmp_path / "labels.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"labels\.txt"):
        read_lines(path)
