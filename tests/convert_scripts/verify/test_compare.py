"""The rules by which two models are held together: relative differences in fp32, ratios in half precision."""

import pytest
import torch

from open_clip_transformers.convert_scripts.verify.compare import (
    FLOOR,
    RATIO,
    fp32_checks,
    half_precision_checks,
    measure_errors,
    relative_difference,
)


FEATURES, LOGITS, LOSS = ("features", "image features"), ("logits", "logits"), ("losses", "contrastive loss")
WEIGHT, BIAS = ("gradients", "vision_model.a.weight"), ("gradients", "vision_model.a.bias")


def running(values: dict):
    """Values that a run of a model hands to its caller."""

    def run(record):
        for key, value in values.items():
            record(key, value)

    return run


def only(checks):
    (check,) = checks
    return check


def test_relative_difference_is_that_of_the_largest_value():
    reference = torch.tensor([2.0, -4.0])
    assert relative_difference(torch.tensor([2.0, -3.0]), reference) == 0.25
    assert relative_difference(torch.tensor([2.0, -3.0]), reference, smallest=8.0) == 0.125
    assert relative_difference(reference, reference) == 0


@pytest.mark.parametrize(
    "ours",
    [torch.ones(3), torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("inf")])],
    ids=["shape", "nan", "infinite"],
)
def test_relative_difference_is_infinite_where_nothing_can_be_compared(ours):
    assert relative_difference(ours, torch.ones(2)) == float("inf")


def test_relative_difference_of_zeros():
    assert relative_difference(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_difference(torch.ones(2), torch.zeros(2)) == float("inf")


@pytest.mark.parametrize(
    ("key", "difference", "passed"),
    [(FEATURES, 1.9e-5, True), (FEATURES, 2.2e-5, False), (WEIGHT, 0.9e-4, True), (WEIGHT, 1.2e-4, False)],
    ids=["features", "features-off", "gradients", "gradients-off"],
)
def test_fp32_checks_bound_the_relative_difference(key, difference, passed):
    exact = {key: torch.tensor([1.0, 100.0], dtype=torch.float64)}
    ours = exact[key] + torch.tensor([100 * difference, 0], dtype=torch.float64)
    assert only(fp32_checks(exact, running({key: ours.float()}))).passed is passed


def test_fp32_checks_do_not_take_rounding_for_a_gradient():
    exact = {WEIGHT: torch.full((2,), 3.0), BIAS: torch.tensor([1e-9, -1e-9])}
    checks = list(fp32_checks(exact, running({WEIGHT: exact[WEIGHT], BIAS: -exact[BIAS]})))
    assert all(check.passed for check in checks)


def test_fp32_checks_do_not_take_the_rest_of_a_sum_for_a_gradient():
    scale, bias = ("gradients", "logit_scale"), ("gradients", "logit_bias")
    exact = {LOGITS: torch.tensor([20.0]), scale: torch.tensor(0.01), bias: torch.tensor(1e-9)}
    ours = {LOGITS: torch.tensor([20.0]), scale: torch.tensor(0.0119), bias: torch.tensor(9e-5)}
    assert [check.passed for check in fp32_checks(exact, running(ours))] == [True, True, True]
    ours = {LOGITS: torch.tensor([20.0]), scale: torch.tensor(0.0121), bias: torch.tensor(1.1e-4)}
    assert [check.passed for check in fp32_checks(exact, running(ours))] == [True, False, False]


def test_fp32_checks_name_what_one_model_alone_has():
    checks = list(fp32_checks({FEATURES: torch.ones(1)}, running({LOGITS: torch.ones(1)})))
    assert [(check.name, check.passed) for check in checks] == [("image features", False), ("logits", False)]
    assert [check.detail for check in checks] == ["open_clip's model alone has it", "our model alone has it"]


def half_check(exact, theirs, ours, dtype=torch.bfloat16):
    errors = [measure_errors(exact, running(values)) for values in (theirs, ours)]
    return list(half_precision_checks(*errors, dtype))


def test_half_precision_allows_twice_the_error_of_open_clip():
    eps = torch.finfo(torch.bfloat16).eps
    exact = {FEATURES: torch.tensor([3.0, 4.0])}
    theirs = {FEATURES: torch.tensor([3.3, 4.4])}
    largest = 0.1 * RATIO + FLOOR * eps
    for factor, passed in ((0.99, True), (1.01, False)):
        ours = {FEATURES: exact[FEATURES] * (1 - factor * largest)}
        check = only(half_check(exact, theirs, ours))
        assert check.bound == pytest.approx(largest)
        assert check.difference == pytest.approx(factor * largest)
        assert check.passed is passed
        assert check.detail == "open_clip's own error 1.0e-01"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_takes_a_rounded_number_where_open_clip_is_exact(dtype):
    exact = {FEATURES: torch.rand(100) + 1}
    ours = {FEATURES: exact[FEATURES].to(dtype)}
    assert only(half_check(exact, exact, ours, dtype)).passed
    zeros = {FEATURES: torch.zeros(3)}
    assert only(half_check(zeros, zeros, zeros, dtype)).passed
    assert only(half_check(zeros, zeros, {FEATURES: torch.ones(3)}, dtype)).passed is False


def test_half_precision_is_not_compared_where_open_clip_overflows():
    exact = {FEATURES: torch.tensor([1e6])}
    infinite = {FEATURES: torch.tensor([1e6]).half()}
    assert only(half_check(exact, infinite, infinite, torch.float16)).passed is None
    assert only(half_check(exact, exact, infinite, torch.float16)).passed is False


def test_half_precision_allows_a_loss_the_error_of_the_logits():
    # open_clip's loss is right by chance, its logits are off by 0.1.
    exact = {LOGITS: torch.tensor([2.0, 1.0]), LOSS: torch.tensor(2.0)}
    theirs = {LOGITS: torch.tensor([2.1, 1.0]), LOSS: torch.tensor(2.0)}
    for loss, passed in ((2.19, True), (2.25, False)):
        checks = half_check(exact, theirs, {LOGITS: theirs[LOGITS], LOSS: torch.tensor(loss)})
        assert [check.passed for check in checks] == [True, passed]


def test_half_precision_allows_logits_the_error_of_the_features():
    image, text = FEATURES, ("features", "text features")
    exact = {image: torch.tensor([10.0]), text: torch.tensor([10.0]), LOGITS: torch.tensor([2.0])}
    # By chance, the errors of open_clip's features cancel in its logits.
    theirs = {image: torch.tensor([10.3]), text: torch.tensor([10.4]), LOGITS: exact[LOGITS]}
    for logit, passed in ((2.19, True), (2.25, False)):
        checks = half_check(exact, theirs, {**theirs, LOGITS: torch.tensor([logit])})
        assert [check.passed for check in checks] == [True, True, passed]


def test_half_precision_allows_gradients_the_error_of_the_logits():
    exact = {LOGITS: torch.tensor([20.0]), WEIGHT: torch.tensor([3.0])}
    theirs = {LOGITS: torch.tensor([20.1]), WEIGHT: torch.tensor([3.0])}
    for gradient, passed in ((3.59, True), (3.65, False)):
        checks = half_check(exact, theirs, {**theirs, WEIGHT: torch.tensor([gradient])})
        assert [check.passed for check in checks] == [True, passed]


def test_half_precision_allows_gradients_what_the_features_differ_in():
    # Two images that are nearly the same: their difference is off by a tenth, although open_clip is right by chance.
    exact = {FEATURES: torch.tensor([[100.0, 0.0], [100.0, 2.0]]), WEIGHT: torch.tensor([3.0])}
    theirs = {FEATURES: torch.tensor([[100.0, 0.0], [100.0, 2.1]]), WEIGHT: torch.tensor([3.0])}
    allowed = RATIO * 0.1 / 2**0.5
    for factor, passed in ((0.98, True), (1.02, False)):
        checks = half_check(exact, theirs, {**theirs, WEIGHT: torch.tensor([3 * (1 + factor * allowed)])})
        assert [check.passed for check in checks] == [True, passed]


def test_half_precision_judges_gradients_by_part():
    text = ("gradients", "text_model.b")
    exact = {WEIGHT: torch.tensor([3.0]), BIAS: torch.tensor([4.0]), text: torch.ones(2)}
    exact["gradients", "logit_scale"] = torch.tensor(1.0)
    theirs = {**exact, BIAS: torch.tensor([4.5])}
    # The bias is right and the weight off: together no worse than open_clip.
    ours = {**exact, WEIGHT: torch.tensor([3.9])}
    checks = half_check(exact, theirs, ours)
    assert [(check.name, check.passed) for check in checks] == [("vision gradients", True), ("text gradients", True)]
    assert checks[0].difference == pytest.approx(0.9 / 5)
    checks = half_check(exact, theirs, {**ours, WEIGHT: torch.tensor([4.1])})
    assert [check.passed for check in checks] == [False, True]


def test_half_precision_fails_where_a_value_is_missing_or_of_another_shape():
    exact = {FEATURES: torch.ones(2), LOGITS: torch.ones(2)}
    checks = half_check(exact, exact, {FEATURES: torch.ones(3)})
    assert [check.passed for check in checks] == [False, False]
