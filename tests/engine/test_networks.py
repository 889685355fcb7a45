"""Real networks of three libraries against the hook oracle: issue 2's "Done when", line by line."""

import pytest
import torch

from simam_inject import SimAM, bypass, eject, inject, injected, simam, verify
from tests.engine.networks import E_LAMBDA, NETWORKS, image, twin
from tests.oracle import distance, hooked, same_bits, tensors

LARGE = ("resnet50", "resnext50_32x4d", "resnetv2_50", "densenet121")


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


def test_float32_is_near_the_formula(pair):
    with hooked(pair.plain, pair.paths, E_LAMBDA):
        expected = run(pair.plain)
    assert distance(run(pair.injected), expected) < 2e-6


def test_other_sizes_and_batches_than_the_example(pair):
    for x in (image(1, 96, seed=5), image(3, 64, seed=6)):
        with hooked(pair.plain, pair.paths, E_LAMBDA, simam):
            expected = run(pair.plain, x)
        assert same_bits(run(pair.injected, x), expected)


def test_keys_and_strict_loading_both_ways(pair):
    ours, theirs = pair.injected.state_dict(), pair.plain.state_dict()
    assert list(ours) == list(theirs)
    plain, copied = pair.network.build(), twin(pair.injected)
    plain.load_state_dict(ours, strict=True)
    copied.load_state_dict(theirs, strict=True)
    assert same_bits(run(copied), run(pair.injected))
    assert same_bits(run(plain), run(pair.plain))


def test_eject_is_bit_equal(pair):
    copied = twin(pair.injected)
    classes = [type(module) for module in pair.plain.modules()]
    assert eject(copied) is copied
    assert [type(module) for module in copied.modules()] == classes
    assert list(dict(copied.named_modules())) == list(dict(pair.plain.named_modules()))
    assert same_bits(run(copied), run(pair.plain))
    assert injected(copied) == ()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_bypass_is_bit_equal(pair, training):
    plain, ours = twin(pair.plain).train(training), twin(pair.injected).train(training)
    outputs = []
    for model in (plain, ours):
        torch.manual_seed(1)
        with bypass(ours):
            outputs.append(run(model))
    assert same_bits(*outputs)
    assert all(map(torch.equal, plain.buffers(), ours.buffers()))  # the statistics moved in the same way
    torch.manual_seed(1)
    assert not same_bits(run(ours), outputs[0])


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_gradients_are_finite_and_equal_to_the_oracles(pair, training):
    x = image(dtype=torch.float64)
    plain, ours = twin(pair.plain).double().train(training), twin(pair.injected).double().train(training)
    with hooked(plain, pair.paths, E_LAMBDA):
        expected = gradients(plain, x)
    found = gradients(ours, x)
    assert found.keys() == expected.keys()
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    largest = max(gradient.norm().item() for gradient in expected.values())
    assert largest > 0
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm().item() <= 1e-6 * (gradient.norm().item() + 1e-6 * largest), name


def gradients(model, x):
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    sum((tensor.double() ** 2).mean() for tensor in tensors(model(x)) if tensor.requires_grad).backward()
    named = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"input": x.grad, **named}


def test_verify_agrees(pair):
    if pair.network.name in LARGE:
        pytest.skip("seconds of arithmetic that show nothing new")
    found = verify(pair.injected, example_inputs=image())
    assert found.ok
    assert [check.name for check in found.checks if check.ok is None] == []
