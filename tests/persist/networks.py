"""Small networks that are quick to inject, and a pickle that runs code."""

import os

import torch
from torch import nn

from tests.networks import Network

EXAMPLE = torch.zeros(1, 3, 16, 16)


class Mixed(nn.Module):
    """Its product is what no module returns or alone reads, so SimAM stands inside its forward."""

    def __init__(self, channels=4):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.tail = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        y = self.mix(self.conv(x))
        return self.tail(y) + y.mean()

    def mix(self, x):
        return x * 2.0

    def overwrite(self, path):
        """What a file must not be able to run."""
        return self.mix(path) * Mixed.calls.append(path)

    calls = []  # noqa: RUF012 (one list for the class: what ran)


class Malicious:
    """Its pickle makes a folder where it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


INSIDE = {"rules": [{"block": "Mixed", "after": "mul"}]}

RECIPE = {"name": "two", "e_lambda": 0.02, "rules": [{"block": "BasicBlock", "after": "conv2"}]}


def mixed(seed=0):
    torch.manual_seed(seed)
    return Mixed().eval()


def net(seed=0, **options):
    torch.manual_seed(seed)
    return Network(**{"channels": 4, **options}).eval()
