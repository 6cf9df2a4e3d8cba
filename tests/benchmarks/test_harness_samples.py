"""Who is measured when, what follows from samples, and what the machine allows."""

import math

import pytest
from harness import ceilings, report, samples
from harness.cells import Cell, Measurement, Options, Result
from harness.rounds import calibrate, repeats_for, rotated, rounds_for, take_samples, warm_up
from harness.workers import WorkerError


class Clock:
    """A contestant that takes the given seconds, then the last of them; remembers how often it ran."""

    def __init__(self, name, *seconds, calls=None):
        self.name, self.seconds, self.repeats = name, list(seconds), []
        self.calls = [] if calls is None else calls

    def __call__(self, repeats):
        self.calls.append(self.name)
        self.repeats.append(repeats)
        seconds = self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]
        if seconds is None:
            raise WorkerError("broken")
        return seconds * repeats


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr("harness.rounds.PAUSE_SECONDS", 0)


def result_of(ours, peer, goal=None, rounds=None, **cell):
    measured = [Measurement("ours", "newest", ours, list(range(len(ours))))]
    measured.append(Measurement("peer", "newest", peer, rounds or list(range(len(peer)))))
    return Result(Cell("suite", "cell", {}, ("ours", "peer"), goal=goal, **cell), measured)


@pytest.mark.parametrize(
    ("seconds", "runs"),
    [((3.0, 1.0, 1.05, 1.0), 3), ((1.0, 1.05, 9.0), 2), ((3.0, 2.0, 1.0, 1.0), 3), ((60.0, 1.0), 1)],
    ids=["steady_at_last", "steady_at_once", "never_steady", "slow"],
)
def test_warm_up_ends_when_runs_are_steady(seconds, runs):
    clock = Clock("ours", *seconds)
    assert warm_up(clock) == seconds[runs - 1]
    assert len(clock.calls) == runs


def test_short_runs_are_repeated_in_a_sample_and_long_ones_are_not():
    options = Options()
    assert repeats_for(0.03, options) == 4 and repeats_for(0.1, options) == repeats_for(7.0, options) == 1
    seconds, repeats = calibrate(Clock("ours", 0.02, 0.02, 0.01), options)
    assert (seconds, repeats) == (0.01, 10)


@pytest.mark.parametrize(
    ("seconds", "rounds"),
    [(1.0, {0, 1, 2, 3, 4}), (15.0, {0, 1, 2, 3, 4}), (20.0, {0, 1, 2, 3, 4}), (24.0, {0, 1, 2, 3}), (90.0, {0, 2})],
    ids=["fast", "within", "just_within", "one_less", "slowest"],
)
def test_slow_contestants_take_part_in_fewer_rounds_but_two(seconds, rounds):
    found = rounds_for(seconds, 100.0, Options(rounds=5))
    assert len(found) == len(rounds) and found <= set(range(5)) and 0 in found
    if len(rounds) in (2, 5):
        assert found == rounds


@pytest.mark.parametrize(("budget", "count"), [(120.0, 1), (500.0, 1), (600.0, 2), (900.0, 3)])
def test_contestant_that_takes_long_takes_turns_where_its_share_has_room(budget, count):
    runs = {"ours": Clock("ours", 1.0), "long": Clock("long", 150.0)}
    taken = take_samples(runs, Options(rounds=5, budget=budget))
    assert taken["long"].seconds == [150.0] * count and len(taken["ours"].seconds) == 5
    assert len(runs["long"].calls) == (1 if count == 1 else 1 + count)


def test_contestants_take_turns_in_an_order_that_rotates():
    calls = []
    runs = {name: Clock(name, 1.0, calls=calls) for name in "abc"}
    taken = take_samples(runs, Options(rounds=3))
    assert "".join(calls) == "aabbcc" + "abc" + "bca" + "cab"
    assert all(own.seconds == [1.0] * 3 and own.rounds == [0, 1, 2] for own in taken.values())
    assert rotated(["a", "b"], 3) == ["b", "a"]


def test_contestant_that_fails_is_out_and_the_others_go_on():
    runs = {"early": Clock("early", None), "late": Clock("late", 1.0, 1.0, 1.0, None), "ours": Clock("ours", 1.0)}
    taken = take_samples(runs, Options(rounds=4))
    assert str(taken["early"].error) == "broken" and not taken["early"].seconds
    assert taken["late"].error and taken["late"].rounds == [0]
    assert taken["ours"].error is None and len(taken["ours"].seconds) == 4


def test_spread_is_quartiles_or_extremes():
    assert samples.spread([5.0, 1.0, 3.0, 2.0, 4.0]) == samples.Spread(3.0, 2.0, 4.0, 5)
    assert samples.spread([7.0, 1.0, 2.0]) == samples.Spread(2.0, 1.0, 7.0, 3)
    assert samples.spread([]) is None


def test_ratio_is_of_the_same_rounds():
    paired = samples.ratio(*result_of([1.0, 2.0, 4.0], [8.0, 8.0], rounds=[0, 2]).measurements)
    assert (paired.median, paired.low, paired.high, paired.count) == (5.0, 2.0, 8.0, 2)
    apart = samples.ratio(*result_of([1.0, 3.0], [6.0], rounds=[5]).measurements)
    assert (apart.median, apart.count) == (3.0, 0)
    assert samples.ratio(*result_of([1.0], []).measurements) is None


@pytest.mark.parametrize(
    ("goal", "outcome"),
    [(None, {}), (1.9, {"ours": "met"}), (2.3, {"ours": "within noise"}), (2.6, {"ours": "missed"})],
    ids=["none", "met", "noise", "missed"],
)
def test_goal_is_judged_by_the_ratio_and_its_spread(goal, outcome):
    assert samples.verdicts(result_of([1.0] * 3, [1.8, 2.0, 2.5], goal)) == outcome


def test_goal_is_against_the_fastest_peer_and_not_another_form_of_ours():
    result = result_of([1.0], [3.0], goal=2.0)
    for name, seconds in (("ours_fused", 0.5), ("faster_peer", 2.5)):
        result.measurements.append(Measurement(name, "newest", [seconds], [0]))
    assert samples.goal_peer(result) == "faster_peer"


def test_goal_is_judged_for_every_form_of_ours_but_the_one_it_is_against():
    result = result_of([1.0], [1.5], goal=2.0)
    result.measurements.append(Measurement("ours_fused", "newest", [0.5], [0]))
    assert samples.verdicts(result) == {"ours": "missed", "ours_fused": "met"}
    result = result_of([1.0], [1.5], goal=2.0, reference="ours_fused")
    result.measurements.append(Measurement("ours_fused", "newest", [2.5], [0]))
    assert samples.verdicts(result) == {"ours": "met"}


def test_goal_without_its_peer_was_not_measured():
    assert samples.verdicts(result_of([1.0], [], goal=2.0)) == {"ours": "not measured"}
    assert samples.verdicts(result_of([1.0], [2.0], goal=2.0, reference="other")) == {"ours": "not measured"}


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([[1.0, 2.0], [3.0]], [[1.0, 2.5], [5.0]], (2.0 / 5.0, False)),
        ([1.0], [1.0, 2.0], (math.inf, False)),
        ([math.nan], [1.0], (math.inf, False)),
        ([[3, 4], [5, 6]], [[3, 4], [5, 7]], (0.25, True)),
        (["a cat"], ["a cat", "a dog"], (0.5, True)),
        ([], [], (0.0, True)),
    ],
    ids=["values", "shapes", "not_finite", "tokens", "strings", "nothing"],
)
def test_difference_of_outputs(ours, theirs, expected):
    assert samples.difference(ours, theirs) == expected


def test_bound_is_the_slower_of_operations_and_bytes_of_each_step():
    rates = {"matmul_float32": 100.0, "matmul_bfloat16": 400.0, "bandwidth": 10.0}
    steps = [{"flops": 300, "bytes": 20}, {"flops": 400, "bytes": 50, "dtype": "bfloat16"}, {"bytes": 10}]
    assert ceilings.bound_seconds(steps, rates) == 3.0 + 5.0 + 1.0
    assert ceilings.bound_seconds([{"flops": 1, "dtype": "int8"}], rates) is None
    assert ceilings.bound_seconds([], rates) is None


def test_ceilings_are_measured_and_the_best_count():
    rates = ceilings.measure(quick=True)
    assert rates.keys() == {"matmul_float32", "matmul_bfloat16", "bandwidth"} and min(rates.values()) > 0
    assert ceilings.best_of([{"a": 1.0, "b": 5.0}, {"a": 2.0}]) == {"a": 2.0, "b": 5.0}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(123.4, "123 s (123-123)"), (1.2345, "1.23 s (1.23-1.23)"), (0.0456, "45.6 ms (45.6-45.6)")]
    + [(7.8e-6, "7.80 µs (7.80-7.80)")],
    ids=["minutes", "seconds", "milliseconds", "microseconds"],
)
def test_time_is_printed_in_the_unit_that_suits_it(seconds, text):
    assert report.seconds_text(samples.spread([seconds])) == text
