"""The list of nets, and the small modules that several of them have. No class is named as a library names it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

NETS = {}


@dataclass(frozen=True)
class Net:
    """A network in the style of public repositories."""

    name: str
    factory: Any
    shapes: tuple
    """Shapes of the example inputs."""

    def build(self):
        """Float64, eval mode, norm statistics that matter."""
        noise = torch.Generator().manual_seed(5)
        torch.manual_seed(5)
        model = self.factory().double().eval()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.running_mean.copy_(torch.rand(module.running_mean.shape, generator=noise) - 0.5)
                    module.running_var.copy_(torch.rand(module.running_var.shape, generator=noise) + 0.5)
        return model

    def inputs(self, seed=1, grow=0):
        """At the example's size, or with every spatial size larger by `grow`."""
        noise = torch.Generator().manual_seed(seed)
        sizes = [shape[:2] + tuple(side + grow for side in shape[2:]) for shape in self.shapes]
        return tuple(torch.randn(size, generator=noise, dtype=torch.float64) for size in sizes)


def net(name, *shapes):
    """Registers the class below under a name."""

    def register(factory):
        NETS[name] = Net(name, factory, shapes or ((2, 3, 32, 32),))
        return factory

    return register


class Kwik(nn.Module):
    """Convolution, norm, activation."""

    def __init__(self, before, after, kernel=3, stride=1, groups=1, act=True):
        super().__init__()
        self.filt = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.nrm = nn.BatchNorm2d(after)
        self.nonlin = nn.SiLU() if act else nn.Identity()

    def forward(self, x):
        return self.nonlin(self.nrm(self.filt(x)))


class Tally(nn.Module):
    """Mean over the map and a linear layer."""

    def __init__(self, channels, classes=5):
        super().__init__()
        self.lin = nn.Linear(channels, classes)

    def forward(self, x):
        return self.lin(x.flatten(2).mean(-1))


def c3(before, after, stride=1, **options):
    return nn.Conv2d(before, after, 3, stride, 1, **options)


def c1(before, after, stride=1, **options):
    return nn.Conv2d(before, after, 1, stride, **options)
