import pytest

from simam_inject.compare import variants
from tests.compare.networks import stand_in_inject


@pytest.fixture
def engine(monkeypatch):
    """The stand-in for `inject`, so that these tests are about the comparison alone."""
    monkeypatch.setattr(variants, "inject", stand_in_inject)
