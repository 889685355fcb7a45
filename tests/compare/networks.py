"""A small network, a stand-in for the engine, and training functions for the tests of compare."""

import random

import numpy as np
import torch
from torch import nn

from simam_inject import simam
from simam_inject.errors import NoMatchError


def make_model(seed=0):
    """Two convolutions and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


class Attended(nn.Module):
    def __init__(self, inner, attention):
        super().__init__()
        self.inner, self.attention = inner, attention

    def forward(self, x):
        return self.attention(self.inner(x))


class Gate(nn.Module):
    def __init__(self, e_lambda):
        super().__init__()
        self.e_lambda = 1e-4 if e_lambda is None else e_lambda

    def forward(self, x):
        return simam(x, self.e_lambda)


def stand_in_inject(model, recipe, *, example_inputs=None, e_lambda=None, attention=None, **_):
    """What `inject` does, for recipes that name one convolution."""
    if recipe not in dict(model.named_modules()):
        raise NoMatchError(f"recipe {recipe!r} matches no site")
    inner = model.get_submodule(recipe)
    gate = Gate(e_lambda) if attention is None else attention(inner.out_channels)
    model.set_submodule(recipe, Attended(inner, gate))
    return model


def noisy(model, seed, report):
    """No training: noise of the seed, and of the network's weights."""
    draw = random.Random(seed)
    for epoch in range(3):
        report(epoch, 50 + 5 * epoch)
    value = 60 + draw.gauss(0, 1)
    right = np.random.default_rng(seed).random(200) < value / 100
    report.samples(right)
    return value


def attended_by(model):
    """Class name of the attention in the model, or ''."""
    return next((type(m.attention).__name__ for m in model.modules() if isinstance(m, Attended)), "")


def example():
    return torch.zeros(2, 1, 12, 12)
