"""A second ring that the engine was not written against. Needs the extra `zoo`; run with `pytest -m zoo`."""

import pytest
import torch

from benchmarks.coverage.second_ring import MODELS, PACKAGES, build
from tests.coverage.test_families import awake, check_model

pytestmark = pytest.mark.zoo


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_the_second_ring_is_attended_and_ejected(name):
    for package in PACKAGES:
        pytest.importorskip(package)
    built = build(name)
    inputs = tuple(torch.rand(shape, dtype=torch.float64) for shape in built.input_shapes)
    for _ in check_model(name, awake(built.model.eval()), inputs):
        pass
