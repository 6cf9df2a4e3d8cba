"""The simulated plan of a data set: bounds that it must keep, and its table."""

import importlib.util
import random
from pathlib import Path

import pytest


EXAMPLE = Path(__file__).parents[2] / "examples" / "plan_dataset.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("plan_dataset", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("how", ["simulate_actors", "simulate_ranks"])
def test_plan_without_failures_is_bound_by_the_longest_share(example, how):
    plan = example.Plan(10_300, 100, 4, rate=10, hours_between_failures=1e9, restart=60)
    outcome = getattr(example, how)(plan, random.Random(0))
    assert outcome.seconds == pytest.approx(26 * 10)  # of 104 shards each takes 26
    assert (outcome.failures, outcome.repeated) == (0, 0)


@pytest.mark.parametrize("how", ["simulate_actors", "simulate_ranks"])
def test_plan_pays_for_failures(example, how):
    plan = example.Plan(100_000, 100, 5, rate=10, hours_between_failures=0.5, restart=60)
    outcome = getattr(example, how)(plan, random.Random(0))
    assert outcome.failures > 3
    least = 2000 + outcome.repeated / plan.rate / plan.workers
    most = 2000 + outcome.failures * (60 + plan.seconds_of_shard) * 2
    assert least < outcome.seconds + plan.seconds_of_shard < most
    assert 0 < outcome.repeated < outcome.failures * plan.workers * plan.shard_size


def test_plan_is_a_table(example):
    lines = example.table([example.Plan(1000, 100, 2, 10, 24, 60)], dim=16, seed=0)
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 3
    assert "| 10 | 2 | 0.0 h |" in lines[2]
    assert 32 < example.bytes_of_row(16) < 64  # two bytes a number, and the key
