"""Networks with their recipes and the places of their sites by hand, and the comparison of three outputs."""

import copy
from contextlib import ExitStack
from functools import partial

import timm
import torch
import torchvision
from torch import nn

from tests.networks import Network
from tests.oracle import distance, hooked

LIMITS = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Largest distance from the oracle. Where it rounds otherwise than the package, everything behind differs a little."""
TF32 = 4e-3
"""The same with TensorFloat-32, which has the precision of float16."""
MARGIN = 4
"""How many of these distances the network without SimAM is away at least."""


class Halved(nn.Module):
    """Its site is an operation, so its forward is rewritten."""

    def __init__(self):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        y = self.stem(x)
        y = torch.mul(y, 0.5)
        return self.last(y).mean((2, 3))


class ChannelsLast(nn.Module):
    """Its site has the channels in the last dimension."""

    def __init__(self):
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.mix(self.stem(x).movedim(1, -1)).mean((1, 2)))


class Volumes(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.last = nn.Conv3d(3, 8, 3, padding=1), nn.Conv3d(8, 8, 3)

    def forward(self, x):
        return self.last(self.stem(x)).mean((2, 3, 4))


class Decoder(nn.Module):
    """Transposed convolutions, which add up in any order on a GPU unless told otherwise."""

    def __init__(self):
        super().__init__()
        self.stem, self.up = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ConvTranspose2d(16, 16, 4, 2, 1)
        self.again, self.last = nn.ConvTranspose2d(16, 16, 3, 2), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        return self.last(self.again(self.up(self.stem(x)).relu()))


LAMBDA = 0.03
RESNET = [f"layer{stage}.{block}.conv2" for stage in range(1, 5) for block in range(2)]
TIMM = ["layer1.0.conv1", "layer2.0.conv1", "layer4.0.conv1"]  # the third layer has blocks of another class
EXAMPLE = (2, 3, 64, 64)  # of a map of one position there is nothing to attend
CASES = {
    "resnet18": (torchvision.models.resnet18, "after basicblock.conv2", RESNET, EXAMPLE),
    "timm": (partial(timm.create_model, "test_resnet"), "after basicblock.conv1", TIMM, EXAMPLE),
    "rewritten": (Halved, "after halved.mul", [">last"], EXAMPLE),
    "channels in the last dimension": (ChannelsLast, "after channelslast.mix", {"mix": -1}, EXAMPLE),
    "volumes": (Volumes, "after volumes.stem", ["stem"], (2, 3, 6, 8, 8)),
    "decoder": (Decoder, "after decoder.up", ["up"], EXAMPLE),
}
"""Constructor, recipe, places for the oracle, and the shape of the example."""


def make(name="resnet18"):
    """A network with batch statistics of its own, its recipe, its places and an example, all on the CPU."""
    torch.manual_seed(1)
    build, recipe, places, shape = CASES[name]
    model = with_statistics(build()).eval()
    return model, recipe, places, torch.randn(shape, generator=torch.Generator().manual_seed(2))


def with_statistics(model):
    """The model, with norms that do something."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)  # timm starts with zeros at the end of a block
    return model


def small():
    """A network that compiles in seconds."""
    torch.manual_seed(1)
    model = with_statistics(Network(blocks=1)).eval()
    nn.init.constant_(model.blocks[0].bn2.weight, 3.0)  # what is attended counts more than the skip
    return model


SMALL = "after basicblock.bn2"
SMALL_PLACES = ["blocks.0.bn2"]


def stock_of(model):
    """A copy that stays as it is."""
    return copy.deepcopy(model)


def outputs_of(stock, places, x, **options):
    """What the oracle computes, and what the network computes without SimAM."""
    with torch.no_grad(), ExitStack() as stack:
        plain = stock(x)
        stack.enter_context(hooked(stock, places, LAMBDA, **options))
        return stock(x), plain


def assert_pair(found, expected, plain, limit):
    """Equal to the oracle, and far from the network without SimAM."""
    far, near = distance(plain, expected), distance(found, expected)
    assert far > MARGIN * limit, f"the oracle is not far from the plain network: {far}"
    assert near < limit, f"not the oracle's output: {near} (the plain network is {far} away)"


def assert_attends(model, stock, places, x, limit=None, **options):
    """The model computes of x what the stock network does with SimAM."""
    with torch.no_grad():
        found = model(x)
    assert_pair(found, *outputs_of(stock, places, x, **options), limit or LIMITS[x.dtype])


def gradients(model, loss):
    """Of all parameters, as one vector in float64."""
    found = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([gradient.double().flatten() for gradient in found])
