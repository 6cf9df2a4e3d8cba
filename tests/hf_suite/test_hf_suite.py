"""transformers' own tests over every public class; what takes long is marked slow (`make test-hf` runs all)."""

import pytest
from hf_suite import our_cases, upstream
from hf_suite.cases import Case
from hf_suite.suites import UPSTREAM, make_suite


CASES = {
    name: case
    for name, case in vars(our_cases).items()
    if not name.startswith("_") and isinstance(case, type) and issubclass(case, Case) and case.suites
    if case.__module__ == our_cases.__name__
}


def _test_classes():
    for case in CASES.values():
        for suite in case.suites:
            if upstream.is_fetched() or suite not in UPSTREAM:
                for test_class in make_suite(suite, case):
                    yield f"Test{test_class.__name__}_{suite}", test_class


globals().update(_test_classes())


@pytest.mark.skipif(
    not upstream.is_fetched(), reason="`make test-hf` fetches transformers' tests, which no wheel holds"
)
def test_upstream_suites_are_collected():
    assert "TestCoCa_common" in globals()
