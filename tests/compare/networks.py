"""A small network, and training functions for the tests of compare."""

import random

import numpy as np
from torch import nn

RECIPE = "after sequential.0"
"""After the convolution."""


def make_model(seed=0):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def noisy(model, seed, report):
    """No training: noise of the seed."""
    draw = random.Random(seed)
    for epoch in range(3):
        report(epoch, 50 + 5 * epoch)
    value = 60 + draw.gauss(0, 1)
    right = np.random.default_rng(seed).random(200) < value / 100
    report.samples(right)
    return value


def attention_of(model):
    """The attention module in the network, or None."""
    return getattr(model[0], "simam", None)


def attended_by(model):
    """Class name of the attention in the model, or ''."""
    return "" if attention_of(model) is None else type(attention_of(model)).__name__
