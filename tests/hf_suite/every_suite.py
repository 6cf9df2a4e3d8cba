"""Every suite over every case, which takes long: `make test-hf`, on the newest and on the oldest transformers."""

from hf_suite.our_cases import CASES
from hf_suite.suites import make_suite


globals().update(named for case in CASES for suite in case.suites for named in make_suite(suite, case))
