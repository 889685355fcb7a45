"""Networks that export in seconds, with the block structures that matter."""

import torch
from torch import nn

from simam_inject import inject
from tests.networks import Network


class Pyramid(Network):
    """Returns a dict, and runs its first block twice."""

    def forward(self, x, scale=None):
        fine = self.stem(x)
        coarse = self.blocks[0](self.blocks[0](fine))
        if scale is not None:
            coarse = coarse * scale
        return {"fine": fine, "coarse": coarse, "last": self.blocks[1](coarse)}


class Doubling(nn.Module):
    """Its product is what no module returns or alone reads: SimAM stands inside the forward itself."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.tail = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, scale=None):
        y = self.stem(x) * 2.0
        if scale is not None:
            y = y * scale
        return self.tail(y) + y.mean()


def image(batch: int = 1, side: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def attended(recipe="after basicblock.conv2", network=Network, **arguments) -> nn.Module:
    torch.manual_seed(0)
    return inject(network(**arguments), recipe, example_inputs=image(), verify=False)


def doubling() -> nn.Module:
    return attended({"rules": [{"block": "Doubling", "after": "mul"}]}, Doubling)
