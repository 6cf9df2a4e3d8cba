"""Fixtures of the tests of models."""

import logging

import pytest
import torch
from transformers.utils import logging as transformers_logging


@pytest.fixture
def memory_of_nans(monkeypatch):
    """Memory that torch hands out without a value holds NaNs, so that a forgotten parameter shows."""

    def with_nans(make):
        def make_with_nans(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return make_with_nans

    with torch.device("cpu"):  # at the first such use torch makes a list of its constructors: not of those below
        torch.empty(0)
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, with_nans(getattr(torch, name)))


@pytest.fixture
def warnings_of_transformers(caplog):
    """Records of what transformers and we warn about; transformers' own handler does not propagate."""
    transformers_logging.enable_propagation()
    caplog.set_level(logging.WARNING)
    yield caplog
    transformers_logging.disable_propagation()
