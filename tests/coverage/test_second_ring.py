"""A second ring that the engine was not written against. Needs the extra `zoo`; run with `pytest -m zoo`."""

import pytest

from benchmarks.coverage.second_ring import MODELS, PACKAGES
from tests.coverage.test_families import check

pytestmark = pytest.mark.zoo


@pytest.mark.parametrize("name", MODELS)
def test_second_ring(name):
    for package in PACKAGES:
        pytest.importorskip(package)
    check(f"second-ring:{name}", two_sizes=True)
