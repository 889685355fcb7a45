"""Small blocks, at module level so that they pickle."""

import torch
from torch import nn


def conv(c_in=4, c_out=4, **options):
    return nn.Conv2d(c_in, c_out, 3, padding=1, **options)


def build(factory, *args):
    torch.manual_seed(4)
    return factory(*args).double().eval()


def run(model, *args):
    with torch.no_grad():
        return model(*args)


class Block(nn.Module):
    """b(a(x)); others change one thing."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(), conv()

    def forward(self, x):
        return self.b(self.a(x))


class Net(nn.Module):
    """A network around one block."""

    def __init__(self, block):
        super().__init__()
        self.stem = conv(3, 4)
        self.block = block

    def forward(self, x):
        return self.block(self.stem(x))


class HasOptional(Block):
    def forward(self, x, skip=None):
        y = self.a(x)
        return self.b(y) if skip is None else self.b(y) + skip


class Net2(nn.Module):
    """A block in a block."""

    def __init__(self):
        super().__init__()
        self.inner = Block()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.inner(x)) + x


def network():
    """Two blocks in blocks behind a convolution."""
    torch.manual_seed(1)
    return nn.Sequential(conv(3, 4), Net2(), Net2()).eval()
