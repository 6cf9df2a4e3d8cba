"""The suites that take little time, over every case, and transformers' tests of models over three models."""

import unittest
from unittest import mock

import pytest
from hf_suite import upstream
from hf_suite.our_cases import CASES, Clip, CoCa, Text
from hf_suite.suites import UPSTREAM, make_suite
from transformers import AutoModel, DynamicCache, PreTrainedConfig

from open_clip_transformers.configuration.configuration_open_clip import OpenClipConfig
from open_clip_transformers.modeling.modeling_layers import ResidualAttentionBlock
from open_clip_transformers.modeling.modeling_open_clip import OpenClipModel


FAST = {"auto", "backbone", "config", "image_processor", "pipeline", "processor", "tokenizer"}
WITH_COMMON = {Clip, CoCa, Text}

globals().update(
    named
    for case in CASES
    for suite in case.suites
    if suite in FAST or (suite == "common" and case in WITH_COMMON)
    if upstream.is_fetched() or suite not in UPSTREAM
    for named in make_suite(suite, case)
)


def _leak(forward):
    """Let every row of a batch see the others."""

    def new(self, hidden_states, *args, **kwargs):
        hidden_states = forward(self, hidden_states, *args, **kwargs)
        return hidden_states + hidden_states.mean(0, keepdim=True)

    return new


def _lose_a_field(to_diff_dict):
    return lambda self: {k: v for k, v in to_diff_dict(self).items() if k != "hidden_size"}


def _refuse(*args):
    raise NotImplementedError


FAULTS = {
    "batch": (Clip, "common", "test_batching_equivalence", ResidualAttentionBlock, "forward", _leak),
    "beams": (
        CoCa,
        "generation",
        "test_beam_scores_equal_recomputed_scores",
        DynamicCache,
        "reorder_cache",
        lambda old: lambda self, beam_idx: None,
    ),
    "configuration": (
        Text,
        "config",
        "test_config_from_and_save_pretrained",
        PreTrainedConfig,
        "to_diff_dict",
        _lose_a_field,
    ),
    "embeddings": (
        Clip,
        "common",
        "test_resize_tokens_embeddings",
        OpenClipModel,
        "set_input_embeddings",
        lambda old: _refuse,
    ),
}


def _fails(case, suite, test) -> bool:
    _, test_class = next(make_suite(suite, case))
    result = unittest.TestResult()
    unittest.TestSuite([test_class(test)]).run(result)
    assert result.testsRun == 1 and not result.skipped
    return not result.wasSuccessful()


@pytest.mark.skipif(not upstream.is_fetched(), reason="transformers' tests are not here: `make test-hf` fetches them")
@pytest.mark.parametrize("case, suite, test, owner, name, make", FAULTS.values(), ids=FAULTS)
def test_suites_notice_a_fault(case, suite, test, owner, name, make):
    assert not _fails(case, suite, test)
    with mock.patch.object(owner, name, make(getattr(owner, name))):
        assert _fails(case, suite, test)


def test_auto_suite_notices_a_missing_registration():
    mapping = AutoModel._model_mapping._extra_content
    assert not _fails(Clip, "auto", "test_from_config")
    with mock.patch.dict(mapping, {k: v for k, v in mapping.items() if k is not OpenClipConfig}, clear=True):
        assert _fails(Clip, "auto", "test_from_config")
