"""A small trained-looking network whose modules stand in another order than they run, and its values by hand."""

import copy
from functools import cache

import torch
from torch import nn

from simam_inject import calibrate, inject

E_LAMBDA = 1e-3


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_second = nn.BatchNorm2d(width)
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_first = nn.BatchNorm2d(width)

    def forward(self, x):
        y = self.norm_first(self.first(x)).relu()
        return (self.norm_second(self.second(y)) + x).relu()


class Network(nn.Module):
    def __init__(self, width=8, classes=5):
        super().__init__()
        self.head = nn.Linear(width, classes)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm = nn.BatchNorm2d(width)
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)

    def forward(self, x):
        x = self.blocks(self.norm(self.stem(x)).relu())
        return self.head(x.mean((2, 3)))


PATHS = ("blocks.0.first", "blocks.0.second", "blocks.1.first", "blocks.1.second")
"""In the order in which they run; `second` stands first among the modules."""
NORMS = ("norm", "blocks.0.norm_first", "blocks.0.norm_second", "blocks.1.norm_first", "blocks.1.norm_second")


def images(count=16, seed=3):
    """Smooth pictures of several brightnesses."""
    noise = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=noise)
    return nn.functional.interpolate(coarse, (16, 16), mode="bicubic") * torch.rand(count, 3, 1, 1, generator=noise) * 2


def plain():
    """The network with the batch statistics of many images."""
    return copy.deepcopy(_plain())


@cache
def _plain():
    torch.manual_seed(0)
    model = Network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    with torch.no_grad():
        for _ in range(60):
            model.train()(images(32, seed=11))
    return model.eval()


def attended():
    """The same with SimAM after both convolutions of each block."""
    return copy.deepcopy(_attended())


@cache
def _attended():
    recipe = {"rules": [{"block": "Block", "after": name} for name in ("first", "second")], "e_lambda": E_LAMBDA}
    return inject(plain(), recipe, example_inputs=torch.rand(1, 3, 16, 16), verify=False)


class Fork(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.a(x)
        return self.b(x) + self.c(x)


def forked():
    """One value with a SimAM for each of its two readers."""
    rules = [{"path": name, "before": "input"} for name in "bc"]
    return inject(Fork(), {"rules": rules}, example_inputs=images(1))


def calibrated():
    """The same with gains."""
    model = attended()
    calibrate(model, images(), norms=False)
    return model


def backward(model, x, run=None):
    """Outputs, gradients and buffers after a step; `run` is the model in another form, such as compiled."""
    output = (model if run is None else run)(x)
    model.zero_grad()
    output.square().sum().backward()
    return output, [parameter.grad.clone() for parameter in model.parameters()], list(model.buffers())


def gate(x):
    """The formula, in the dtype of x."""
    d = (x - x.mean((2, 3), keepdim=True)).square()
    v = d.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3] - 1)
    return torch.sigmoid(d / (4 * (v + E_LAMBDA)) + 0.5)


def fit_by_hand(model, x):
    """Gains in execution order, each fixed before the next is measured, and the outputs with them; `model` is plain."""
    gains = []

    def site(value):
        y = value * gate(value)
        gains.append(float((value * y).sum() / (y * y).sum()))
        return y * gains[-1]

    model = model.double()
    with torch.no_grad():
        x = model.norm(model.stem(x.double())).relu()
        for block in model.blocks:
            y = block.norm_first(site(block.first(x))).relu()
            x = (block.norm_second(site(block.second(y))) + x).relu()
        return gains, model.head(x.mean((2, 3)))
