"""The user's own hooks: they see the attended map, and what they leave of the arguments is what is attended."""

import copy
import pickle

import torch

from simam_inject import eject, inject, simam, verify
from tests.engine.blocks import Block, HasOptional, Net
from tests.oracle import same_bits

X = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(2))


def double(_module, _args, output):
    return 2 * output


def network(block=None):
    torch.manual_seed(1)
    return Net(Block() if block is None else block).eval()


def test_the_hooks_of_a_block_see_the_attended_map():
    model = network()
    with torch.no_grad():
        plain = model(X)
    model.block.register_forward_hook(double)
    inject(model, "after block", example_inputs=X)
    assert verify(model, example_inputs=X).ok
    with torch.no_grad():
        assert torch.equal(model(X), 2 * simam(plain))


def test_the_hooks_of_a_child_see_the_attended_map():
    model = network()
    model.block.a.register_forward_hook(double)
    with torch.no_grad():
        stock = copy.deepcopy(model)
        stock.block.a._forward_hooks.clear()
        expected = stock.block.b(2 * simam(stock.block.a(stock.stem(X))))
    inject(model, "after block.a", example_inputs=X)
    model.block.a.register_forward_hook(lambda _module, _args, output: output + 1)
    with torch.no_grad():
        found = model(X)
        model.block.a._forward_hooks.popitem()
        assert same_bits(model(X), expected)
    assert not same_bits(found, expected)
    assert verify(model, example_inputs=X).ok


def add_skip(_module, args):
    return (args[0], 2.0)


def add_keyword(_module, args, kwargs):
    return args, {**kwargs, "skip": args[0]}


def test_a_pre_hook_that_adds_an_argument():
    model = network(HasOptional())
    model.block.register_forward_pre_hook(add_keyword, with_kwargs=True)
    with torch.no_grad():
        plain = model(X)
    inject(model, {"rules": [{"block": "HasOptional", "after": "a"}]}, example_inputs=X)
    assert verify(model, example_inputs=X).ok
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            assert same_bits(twin(X), model(X))
    with torch.no_grad():
        assert same_bits(eject(model)(X), plain)


def test_a_pre_hook_that_changes_an_argument():
    model = network(HasOptional())
    model.block.register_forward_pre_hook(add_skip)
    inject(model, {"rules": [{"block": "HasOptional", "after": "a"}]}, example_inputs=X)
    assert verify(model, example_inputs=X).ok
    with torch.no_grad():
        assert same_bits(pickle.loads(pickle.dumps(model))(X), model(X))
    assert len(model.block._forward_pre_hooks) == 1
