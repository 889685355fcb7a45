"""Real networks of three libraries against the hook oracle; `test_invariants` holds smaller ones to everything else."""

import pytest
import torch

from simam_inject import SimAM, inject, injected, simam
from tests.engine.networks import E_LAMBDA, NETWORKS, image, twin
from tests.oracle import distance, hooked, same_bits


class Pair:
    """One network twice, with the same weights: plain, and injected."""

    def __init__(self, network):
        self.network = network
        self.plain = network.build()
        self.paths = network.attended(self.plain)
        self.injected = inject(twin(self.plain), network.recipe, example_inputs=image(), verify=False)


@pytest.fixture(scope="module", params=NETWORKS, ids=str)
def pair(request):
    return Pair(request.param)


def run(model, x=None):
    with torch.no_grad():
        return model(image() if x is None else x)


def test_sites_are_the_named_modules(pair):
    there = injected(pair.injected)
    assert sorted(insertion.path for insertion in there) == sorted(pair.paths)
    assert len(there) == pair.network.count
    assert {insertion.e_lambda for insertion in there} == {E_LAMBDA}
    assert sum(isinstance(module, SimAM) for module in pair.injected.modules()) == pair.network.count


def test_output_is_bit_equal_to_hooks_that_use_the_operator(pair):
    with hooked(pair.plain, pair.paths, E_LAMBDA, simam):
        expected = run(pair.plain)
    assert same_bits(run(pair.injected), expected)


def test_output_is_near_the_formula_and_far_from_the_plain_model(pair):
    x = image(dtype=torch.float64, seed=12)
    plain, ours = twin(pair.plain).double(), twin(pair.injected).double()
    with hooked(plain, pair.paths, E_LAMBDA):
        expected = run(plain, x)
    found = run(ours, x)
    assert distance(found, expected) < 1e-6
    assert distance(run(plain, x), expected) > 1e-3
