"""The user's own hooks: a boundary attends what forward returns, before them; an edit of the caller, after them."""

import copy
import pickle

import torch

from simam_inject import eject, inject, injected, simam, verify
from tests.engine.blocks import Block, HasOptional, Net
from tests.engine.oracle import same_bits

X = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(2))


def double(_module, _args, output):
    return 2 * output


def network(block=None):
    torch.manual_seed(1)
    return Net(Block() if block is None else block).eval()


def test_a_boundary_attends_before_the_hooks_of_its_module():
    model = network()
    with torch.no_grad():
        plain = model(X)
    model.block.register_forward_hook(double)
    inject(model, "after block", example_inputs=X)
    assert injected(model)[0].means == "boundary"
    assert verify(model, example_inputs=X).ok
    with torch.no_grad():
        assert torch.equal(model(X), 2 * simam(plain))


def test_an_edit_of_the_caller_attends_after_the_hooks_of_the_child():
    model = network()
    model.block.a.register_forward_hook(double)
    inject(model, "after block.a", example_inputs=X)
    assert injected(model)[0].means == "forward"
    assert verify(model, example_inputs=X).ok
    with torch.no_grad():
        block = model.block
        inner = block.a(model.stem(X))
        assert torch.equal(model(X), block.b(simam(inner)))


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
