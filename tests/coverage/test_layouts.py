"""Where the channels are, through reshapes, permutations, attention and blocks that decide on a shape."""

import pytest
import torch
from torch import nn

from simam_inject import plan


class Shuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        n, c, h, w = self.conv(x).shape
        return self.conv(x).view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


class LastAndBack(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.LayerNorm(8)

    def forward(self, x):
        halves = self.norm(self.conv(x).permute(0, 2, 3, 1)).chunk(2, -1)
        last = halves[0] * halves[1]
        return last.movedim(-1, 1)


class TokenBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Decoder(nn.Module):
    """A layer of RT-DETR's decoder: attention over tokens, and a norm behind the add."""

    def __init__(self):
        super().__init__()
        self.attention, self.dropout, self.norm = nn.MultiheadAttention(8, 2), nn.Dropout(0.1), nn.LayerNorm(8)

    def forward(self, x):
        moved = x.transpose(0, 1)
        x = x + self.dropout(self.attention(moved, moved, moved)[0].transpose(0, 1))
        return self.norm(x)


class Adding(nn.Module):
    """Nothing reads its input as tokens but a norm behind an add."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(x + x.relu())


class Tokens(nn.Module):
    """Decides on a shape, as MobileViT's blocks do, and gives its children tokens."""

    def __init__(self, *blocks):
        super().__init__()
        self.conv, self.blocks = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(*blocks)

    def forward(self, x):
        x = self.conv(x)
        if x.shape[-1] % 2:
            x = x[..., :-1]
        return self.blocks(x.flatten(2).transpose(1, 2))


class PatchEmbedding(nn.Module):
    """Checks a shape, and returns tokens of what its convolution wrote."""

    def __init__(self, projection=None):
        super().__init__()
        self.projection, self.last = projection or nn.Conv2d(3, 8, 2, 2), nn.Identity()

    def forward(self, x):
        if x.shape[-1] % 2:
            raise ValueError("odd width")
        y = self.projection(x)
        return self.last(y.flatten(2).transpose(1, 2) if y.dim() == 4 else y)


def embedding(*inner):
    return lambda: nn.Sequential(PatchEmbedding(*(make() for make in inner)), nn.Identity())


@pytest.mark.parametrize(
    ("build", "rule", "dims"),
    [
        (Shuffle, {"block": "Shuffle", "after": "output"}, {"": 1}),
        (LastAndBack, {"path": "{norm,mul,movedim}", "after": "output"}, {"norm": -1, "mul": -1, "movedim": 1}),
        (
            lambda: Tokens(TokenBlock(), TokenBlock()),
            {"block": "TokenBlock", "after": "output"},
            {"blocks.0": -1, "blocks.1": -1},
        ),
        (
            lambda: Tokens(Decoder(), Decoder()),
            {"block": "Decoder", "before": "residual"},
            {"blocks.0.dropout": -1, "blocks.1.dropout": -1},
        ),
        (lambda: Tokens(Adding()), {"path": "blocks.0", "after": {"op": "relu"}}, {"blocks.0.relu": -1}),
        (embedding(), {"path": "0", "after": "output"}, {"0": -1}),
        (embedding(PatchEmbedding), {"path": "0", "after": "output"}, {"0": -1}),
        (embedding(PatchEmbedding), {"path": "0.projection", "after": "output"}, {"0.projection": -1}),
        (embedding(PatchEmbedding), {"path": "0.last", "after": "output"}, {"0.last": -1}),
    ],
)
def test_the_channel_axis_is_that_of_the_value(build, rule, dims):
    planned = plan(build(), {"rules": [rule]}, example_inputs=torch.rand(1, 3, 16, 16))
    assert {insertion.path: insertion.channel_dim for insertion in planned.insertions} == dims
