"""The suite of linear layers: its cells, and its contestants on two small weights."""

import pytest
from contestants.linear_kernels import CONTESTANTS
from harness.cells import Measurement, NotRun, Options, Record, Result, difference
from suites import linear


SETTINGS = {"in_features": 37, "out_features": 53, "rows": 4, "dtype": "float32", "weights": 3}


def run(name: str, folder, **settings):
    """A contestant that has run."""
    try:
        contestant = CONTESTANTS[name]({**SETTINGS, **settings}, folder)
    except NotRun as reason:
        pytest.skip(str(reason))
    contestant.result = contestant.run()
    return contestant


def test_weights_of_a_cell_do_not_stay_in_a_cache():
    assert all(cell.settings["weights"] >= 2 for cell in linear.cells(Options()))


@pytest.mark.parametrize("rows", [1, 2, 12, 50])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in linear.CONTESTANTS if name != "read"])
def test_kernels_compute_the_same(tmp_path, name, dtype, rows):
    kernel, ours = (run(each, tmp_path, dtype=dtype, rows=rows) for each in (name, "ours"))
    assert kernel.result.shape == (rows, 53)
    assert difference(kernel.outputs(), ours.outputs())[0] < (1e-5 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize("name", ["ours", "onednn_packed"])
def test_bound_counts_each_weight_once(tmp_path, name):
    expected = {"flops": 2 * 4 * 3 * 37 * 53, "bytes": 4 * 3 * 37 * 53, "dtype": "float32"}
    assert run(name, tmp_path).bound() == expected


def test_reading_is_no_product(tmp_path):
    read = run("read", tmp_path)
    assert read.result.shape == () and read.outputs() is None


def test_notes_say_what_share_of_the_bound_reading_alone_reaches():
    cell = next(cell for cell in linear.cells(Options()) if cell.settings["rows"] == 1)
    measurements = [Measurement("ours", "newest", seconds=[4.0]), Measurement("read", "newest", seconds=[2.0, 2.0])]
    rows = [Result(cell, measurements, [{"bytes": 10}]), Result(cell, measurements[:1], [{"bytes": 10}])]
    [note] = linear.notes(Record("linear", "", {}, {}, {"before": {"bandwidth": 10.0}}, results=rows))
    assert "float32: 50% (512 to 512)." in note
