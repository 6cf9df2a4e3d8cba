"""Records of results: read as they were written, put together only where they can be, and printed."""

import dataclasses

from harness import report
from harness.cells import Cell, Measurement, Options, Result
from harness.plot import plot
from harness.records import Record, read, write


def a_result(name="cell", seconds=(0.5, 0.6, 0.7), peer=(1.5, 1.7), **measured):
    cell = Cell("suite", name, {"batch": 3}, ("ours", "peer"), "images", 3, goal=2.0)
    ours = Measurement("ours", "newest", list(seconds), [0, 1, 2], baseline=10**8, peak=3 * 10**8)
    theirs = Measurement("peer", "captioning", list(peer), [0, 2], **measured)
    return Result(cell, [ours, theirs], [{"flops": 5.0}], 0.3, "2026-01-02")


def a_record(*results, **changed):
    record = Record(
        suite="suite",
        title="Made up",
        about="Nothing.",
        command="python benchmarks/run.py --suite suite",
        date="2026-01-03",
        commit="",
        machine={"cpu": "a", "cores": 2, "memory_gb": 7, "system": "b", "device": "cpu", "threads": 2, "gpu": None},
        environments={"newest": {"torch": "2.0"}},
        options=dataclasses.asdict(Options(rounds=3)),
        ceilings={"before": {"matmul_float32": 4e9}, "after": {"matmul_float32": 3e9}},
        results=list(results),
    )
    return dataclasses.replace(record, **changed)


def test_record_is_read_as_it_was_written(tmp_path):
    record = a_record(a_result(), a_result("other", difference=0.25, exact=True, figures={"error": 0.5}))
    path = tmp_path / "folder" / "record.json"
    write(path, report.to_json(record).encode())
    assert read(path) == record
    assert list(path.parent.iterdir()) == [path]


def test_what_is_no_record_is_not_read(tmp_path):
    assert read(tmp_path / "missing.json") is None
    for index, text in enumerate(("{", "[]", '{"results": []}', '{"results": [{"cell": {}}]}')):
        path = tmp_path / f"{index}.json"
        path.write_text(text)
        assert read(path) is None


def test_records_of_one_machine_and_its_versions_go_together():
    record = a_record()
    assert record.comparable(a_record(environments={"newest": {"torch": "2.0"}, "captioning": {"torch": "2.0"}}))
    assert not record.comparable(a_record(environments={"newest": {"torch": "2.1"}}))
    assert not record.comparable(a_record(machine={**record.machine, "threads": 1}))


def test_results_of_a_cell_are_replaced_and_sorted():
    record = a_record(a_result("a"), a_result("b"), a_result("gone"))
    record.add(a_result("a", seconds=(9.0, 9.0, 9.0)))
    record.add(a_result("c"))
    record.sort(["c", "b", "a"])
    assert [result.cell.name for result in record.results] == ["c", "b", "a"]
    assert record.results[2].ours.seconds == [9.0, 9.0, 9.0]


def test_table_says_all_of_a_row():
    header, row = report.table(a_record(a_result(difference=2e-6, baseline=0, peak=5 * 10**8)))
    assert dict(zip(header, row)) == {
        "Cell": "cell",
        "Ours": "600 ms (500-700)",
        "Throughput": "5.00 images/s",
        "Of bound": "50%",
        "peer": "1.60 s (1.50-1.70), n=2",
        "ratio": "2.71x (2.43-3.00)",
        "Difference": "2.0e-06",
        "Memory": "200 MB; peer 500 MB",
        "Goal": "2x fastest (peer): met",
    }


def test_table_leaves_out_what_no_row_has_and_says_what_was_not_run():
    result = a_result(peer=(), error="not run: no such library")
    result.bound_seconds = None
    header, row = report.table(a_record(result))
    assert header == ["Cell", "Ours", "Throughput", "peer", "Memory", "Goal"]
    assert row[3] == "not run" and row[-1] == "2x fastest: not measured"


def test_table_says_what_every_form_of_ours_reaches():
    result = a_result(peer=(0.9, 0.9))
    result.measurements.append(Measurement("ours_fused", "newest", [0.3, 0.3, 0.3], [0, 1, 2]))
    row = dict(zip(*report.table(a_record(result))))
    assert row["Of bound"] == "50%; ours_fused 100%"
    assert row["Goal"] == "2x fastest (peer): missed; ours_fused met"


def test_page_has_notes_of_failures_and_of_a_machine_that_was_not_quiet():
    record = a_record(a_result(peer=(), error="failed: first\nsecond"), notes=["One | two."])
    page = report.markdown(record)
    assert "- One | two." in page and "- cell, peer: failed: first / second" in page
    assert "matrix multiply in float32: 4 before and 3 GFLOP/s after" in page
    assert "differ by 25%: the machine was not quiet" in page


def test_page_has_a_table_of_more_figures():
    record = a_record(a_result(figures={"error": 0.00012345, "kernel": "a | b"}))
    page = report.markdown(record)
    assert "| Cell | Contestant | error | kernel |" in page and "| cell | peer | 0.0001234 | a \\| b |" in page


def test_picture_needs_a_ratio():
    assert plot(a_record(a_result(peer=()))) is None
    assert plot(a_record(a_result(), a_result("slow", peer=(60.0, 70.0)))).startswith(b"\x89PNG")


def test_page_names_the_commit_of_rows_that_an_earlier_run_has_left():
    new, old = a_result("new"), a_result("old")
    new.commit, old.commit = "2222222222", "1111111111"
    heading, *rows = report.table(a_record(new, old, commit="2222222222"))
    assert heading[-1] == "Commit"
    assert [row[-1] for row in rows] == ["-", "1111111111"]
    assert "another run" in report.markdown(a_record(new, old, commit="2222222222"))
    assert "Commit" not in report.table(a_record(new, commit="2222222222"))[0]
