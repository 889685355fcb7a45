"""Networks in float64 with one rule, against the oracle."""

import torch
from torch import nn

from simam_inject import bypass
from tests.engine.blocks import run
from tests.oracle import E_LAMBDA, assert_attended, same_bits


def image(*shape, seed=1):
    return torch.randn(shape or (2, 6, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rule(**keys):
    return {"e_lambda": E_LAMBDA, "rules": [keys]}


def conv(before=6, after=6, kernel=3, **options):
    return nn.Conv2d(before, after, kernel, padding=kernel // 2, **options)


def assert_like_hooks(model, stock, places, *args):
    args = args or (image(),)
    assert_attended(run(model, *args), stock, places, *args)
    with bypass(model):
        assert same_bits(run(model, *args), run(stock, *args))
