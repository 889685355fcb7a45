"""Where attention must run: a network whose sites have axes that are written by hand, against the oracle."""

import copy

from simam_inject import bypass, inject, injected
from tests.engine.blocks import build, run
from tests.oracle import E_LAMBDA, assert_attended, same_bits


def after(path):
    return {"e_lambda": E_LAMBDA, "rules": [{"path": path, "after": "output"}]}


def assert_like_hooks(factory, places, inputs, other, rules=None):
    """Injected at the places, the net equals the oracle with the axes of the places, at two sizes."""
    stock = build(factory)
    rules = rules or [{"path": place, "after": "output"} for place in places]
    recipe = {"e_lambda": E_LAMBDA, "rules": rules}
    model = inject(copy.deepcopy(stock), recipe, example_inputs=tuple(inputs))
    found = injected(model)
    assert {insertion.path: insertion.channel_dim for insertion in found} == places
    for args in (inputs, other):
        assert_attended(run(model, *args), stock, places, *args)
        with bypass(model):
            assert same_bits(run(model, *args), run(stock, *args))
    return model


def rows(x):
    return x.permute(0, 2, 3, 1)
