"""Reports of verification: verdicts, what is first, and the files."""

import json

import pytest

from open_clip_transformers.convert_scripts.verify.report import Check, VerificationReport


PASSED = Check("features", "image features", 1e-7, 2e-5, "float32")
SKIPPED = Check("pixels", "images", detail="the folder has no image processor")
LAYER = Check("intermediates", "text layer 1", 3e-2, 2e-5, "float32")
LOGITS = Check("logits", "logits", float("inf"), 2e-5, "float32", "our model alone has it")
WEIGHTS = Check("weights", "7 tensors", 2, 0, detail="a.weight\n  b|c")


def report(*checks: Check) -> VerificationReport:
    return VerificationReport(
        model="clip",
        architecture="OpenClipModel",
        source="org/name",
        weights_file="open_clip_model.safetensors",
        sha256="0" * 64,
        dtype="float32",
        settings={"pairs": 4, "dtypes": ["float32"], "skipped": []},
        versions={"torch": "2.15.0"},
        date="2026-01-01T00:00:00+00:00",
        checks=checks,
    )


@pytest.mark.parametrize(
    ("difference", "bound", "passed"),
    [(0, 0, True), (1, 0, False), (2e-5, 2e-5, True), (float("nan"), 1.0, False), (None, None, None)],
    ids=["equal", "count", "at-the-bound", "nan", "not-compared"],
)
def test_check_passes_up_to_its_bound(difference, bound, passed):
    assert Check("features", "x", difference, bound).passed is passed


def test_report_passes_where_nothing_failed_and_something_was_compared():
    assert report(PASSED, SKIPPED).passed
    assert not report(PASSED, LAYER).passed
    assert not report(SKIPPED).passed
    assert report(SKIPPED).verdict() == "Failed: 0 of 1 comparisons. Nothing was compared."
    assert report(PASSED, SKIPPED).verdict() == "Passed: 1 comparisons within their bounds. Not compared: pixels."


def test_report_names_the_first_difference_and_weights_last():
    assert report(WEIGHTS, PASSED, LAYER, LOGITS).first_difference == LAYER
    assert report(WEIGHTS, PASSED).first_difference == WEIGHTS
    assert report(PASSED).first_difference is None
    assert report(WEIGHTS, LAYER).verdict() == (
        "Failed: 2 of 2 comparisons. The first that differs, of intermediates: text layer 1 (float32): 3.0e-02, at "
        "most 2.0e-05"
    )


def test_report_says_of_each_group_what_is_nearest_to_its_bound():
    lines = str(
        report(PASSED, SKIPPED, Check("features", "text features", 1e-6, 2e-5, "float32"), WEIGHTS)
    ).splitlines()
    assert lines[0] == "Verified clip against org/name"
    assert lines[1] == "  features float32       2 passed; text features (float32): 1.0e-06, at most 2.0e-05"
    assert lines[2] == "  pixels                 images: not compared; the folder has no image processor"
    assert "1 of 1 FAILED; 7 tensors: 2, at most 0" in lines[3]


def test_report_in_markdown_keeps_its_tables_whole():
    text = report(WEIGHTS, SKIPPED, LAYER).to_markdown()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {3, 7}
    assert "- weights: 7 tensors: 2, at most 0; a.weight b\\|c" in text
    assert "| pixels | 0 | 0 | | | not compared: the folder has no image processor |" in text


def test_report_in_markdown_lists_some_failures_and_counts_the_rest():
    text = report(*[Check("intermediates", f"layer {i}", 1.0, 0.5) for i in range(47)]).to_markdown()
    assert text.count("\n- intermediates") == 30
    assert text.endswith("\n- 17 more, in verification.json\n")


def test_report_writes_both_files_and_replaces_old_ones(tmp_path):
    report(LOGITS).write(tmp_path / "new" / "folder")
    markdown, content = report(PASSED, LOGITS).write(tmp_path / "new" / "folder")
    assert markdown.read_text() == report(PASSED, LOGITS).to_markdown()
    loaded = json.loads(content.read_text(), parse_constant=pytest.fail)
    assert [check["difference"] for check in loaded["checks"]] == [1e-7, "inf"]
    assert [check["passed"] for check in loaded["checks"]] == [True, False]
    assert loaded["first_difference"] == {"name": "logits", "dtype": "float32"}
    assert sorted(path.name for path in content.parent.iterdir()) == ["verification.json", "verification.md"]


def test_report_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    from pathlib import Path

    report(PASSED).write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report(LOGITS).write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
