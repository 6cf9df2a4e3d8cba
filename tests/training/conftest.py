"""Trainer collects garbage at the end of each training, and would look through all that was imported."""

import gc

import pytest


@pytest.fixture(autouse=True, scope="session")
def frozen_imports():
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
