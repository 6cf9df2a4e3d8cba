"""The suite of linear layers: its cells, and its contestants on two small weights."""

import pytest
from contestants.linear_kernels import CONTESTANTS
from harness.cells import Measurement, NotRun, Options, Result
from harness.samples import difference
from suites import linear


def test_weights_of_a_cell_do_not_stay_in_a_cache():
    assert all(cell.settings["weights"] >= 2 for cell in linear.cells(Options()))


@pytest.mark.parametrize("rows", [1, 2, 12, 50])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in linear.CONTESTANTS if name != "read"])
def test_kernels_compute_the_same(tmp_path, name, dtype, rows):
    settings = {"in_features": 37, "out_features": 53, "rows": rows, "dtype": dtype, "weights": 2}
    outputs = {}
    for each in ("torch", name):
        try:
            contestant = CONTESTANTS[each](settings, tmp_path)
        except NotRun as reason:
            pytest.skip(str(reason))
        contestant.result = contestant.run()
        assert contestant.result.shape == (rows, 53)
        outputs[each] = contestant.outputs()
    assert difference(outputs[name], outputs["torch"])[0] < (1e-5 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize("name", ["ours", "ours_fused"])
def test_bound_counts_each_weight_once(tmp_path, name):
    settings = {"in_features": 37, "out_features": 53, "rows": 4, "dtype": "float32", "weights": 3}
    try:
        bound = CONTESTANTS[name](settings, tmp_path).bound()
    except NotRun as reason:
        pytest.skip(str(reason))
    assert bound == {"flops": 2 * 4 * 3 * 37 * 53, "bytes": 4 * 3 * 37 * 53, "dtype": "float32"}


def test_reading_is_no_product(tmp_path):
    settings = {"in_features": 37, "out_features": 53, "rows": 4, "dtype": "float32", "weights": 3}
    read = CONTESTANTS["read"](settings, tmp_path)
    assert read.run().shape == ()
    assert read.outputs() is None


def test_notes_say_what_share_of_the_bound_reading_alone_reaches():
    cell = next(cell for cell in linear.cells(Options()) if cell.settings["rows"] == 1)
    measurements = [Measurement("ours", "newest", seconds=[4.0]), Measurement("read", "newest", seconds=[2.0, 2.0])]
    [note] = linear.notes([Result(cell, measurements, bound_seconds=1.0), Result(cell, measurements[:1])])
    assert "float32: 50% (512 to 512)." in note
