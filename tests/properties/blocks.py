"""Blocks that write the same thing in as many ways as forwards are written. Each maps C channels to C channels.

Every block takes the number of spatial dimensions (1 to 3) and of channels (a multiple of 4), and keeps the size of the
map, so that any of them can follow any other.
"""

from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
MAX_POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
FUNCTION = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def conv(dims, before, after=None, kernel=3, **options):
    return CONV[dims](before, after or before, kernel, padding=kernel // 2, bias=False, **options)


class ConvNormAct(nn.Module):
    """With the alternative body of a fused model."""

    def __init__(self, dims, channels, after=None, kernel=3):
        super().__init__()
        self.conv = conv(dims, channels, after, kernel)
        self.bn = NORM[dims](after or channels)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))

    def forward_fuse(self, x):
        return self.act(self.conv(x))


class Basic(nn.Module):
    def __init__(self, dims, channels):
        super().__init__()
        self.conv1 = conv(dims, channels)
        self.bn1 = NORM[dims](channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(dims, channels)
        self.bn2 = NORM[dims](channels)
        self.downsample = None

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class PreActivation(nn.Module):
    def __init__(self, dims, channels):
        super().__init__()
        self.norm = NORM[dims](channels)
        self.conv1 = conv(dims, channels, channels // 2, 1)
        self.conv2 = conv(dims, channels // 2, channels)

    def forward(self, x):
        out = F.relu(self.norm(x))
        return torch.add(self.conv2(F.gelu(self.conv1(out))), x)


class Dense(nn.Module):
    def __init__(self, dims, channels):
        super().__init__()
        self.layers = nn.ModuleList(conv(dims, channels + 4 * i, 4) for i in range(3))
        self.squeeze = conv(dims, channels + 12, channels, 1)

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(F.relu(layer(torch.cat(features, 1)), inplace=True))
        return self.squeeze(torch.cat(features, dim=1))


class Inception(nn.Module):
    def __init__(self, dims, channels):
        super().__init__()
        self.branches = nn.ModuleDict(
            {
                "one": conv(dims, channels, channels // 2, 1),
                "three": nn.Sequential(conv(dims, channels, 4, 1), nn.ReLU(), conv(dims, 4, channels // 4)),
                "pool": nn.Sequential(MAX_POOL[dims](3, 1, 1), conv(dims, channels, channels // 4, 1)),
            }
        )

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches.values()], 1)


class SqueezeExcite(nn.Module):
    def __init__(self, dims, channels):
        super().__init__()
        self.body = conv(dims, channels)
        self.pool = POOL[dims](1)
        self.reduce = conv(dims, channels, channels // 4, 1)
        self.expand = conv(dims, channels // 4, channels, 1)

    def forward(self, x):
        x = self.body(x)
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(self.pool(x)))))


class ChunkCat(nn.Module):
    """Like C2f: a list made of chunks, extended by a generator; and the same for exporters with `split`."""

    def __init__(self, dims, channels):
        super().__init__()
        self.c = channels // 2
        self.cv1 = ConvNormAct(dims, channels, kernel=1)
        self.m = nn.ModuleList(ConvNormAct(dims, self.c) for _ in range(2))
        self.cv2 = ConvNormAct(dims, 4 * self.c, channels, 1)

    def forward(self, x):
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))

    def forward_split(self, x):
        y = self.cv1(x).split((self.c, self.c), 1)
        y = [y[0], y[1]]
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class Shared(nn.Module):
    def __init__(self, dims, channels):
        super().__init__()
        self.conv = conv(dims, channels)
        self.norms = nn.ModuleList(NORM[dims](channels) for _ in range(2))
        self.act = nn.ReLU()

    def forward(self, x):
        for norm in self.norms:
            x = self.act(norm(self.conv(x)))
        return x


class InPlace(nn.Module):
    def __init__(self, dims, channels):
        super().__init__()
        self.conv = conv(dims, channels)
        self.gain = nn.Parameter(torch.full((channels, *[1] * dims), 0.7))

    def forward(self, x):
        out = self.conv(x)
        out *= self.gain
        out.add_(x).clamp_(-5, 5)
        return F.relu_(out)


class ItemAssignment(nn.Module):
    def __init__(self, dims, channels):
        super().__init__()
        self.conv = conv(dims, channels // 2)

    def forward(self, x):
        half = x.shape[1] // 2
        out = x.clone()
        out[:, :half] = self.conv(x[:, :half])
        return out


class Named(NamedTuple):
    low: torch.Tensor
    high: torch.Tensor


class Splitting(nn.Module):
    """Returns a structure."""

    def __init__(self, dims, channels, form):
        super().__init__()
        self.low = conv(dims, channels)
        self.high = conv(dims, channels)
        self.form = form

    def forward(self, x):
        low, high = self.low(x), self.high(x)
        if self.form == "dict":
            return OrderedDict(low=low, high=high)
        return Named(low, high) if self.form == "named" else [low, high]


class Joining(nn.Module):
    def forward(self, *features, weight=1.0):
        out = features[0]
        for feature in features[1:]:
            out = out + weight * feature
        return out


class Structured(nn.Module):
    def __init__(self, dims, channels, form):
        super().__init__()
        self.split = Splitting(dims, channels, form)
        self.join = Joining()

    def forward(self, x):
        found = self.split(x)
        return self.join(*(found.values() if hasattr(found, "values") else found), weight=0.5)


class Functional(nn.Module):
    def __init__(self, dims, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, *[3] * dims) * 0.1)
        self.register_buffer("shift", torch.full((channels, *[1] * dims), 0.1))
        self.dims = dims

    def forward(self, x):
        out = FUNCTION[self.dims](x, self.weight, padding=1) + self.shift
        return F.interpolate(F.interpolate(out, scale_factor=2.0), size=x.shape[2:])


class Optional(nn.Module):
    """A parameter the caller never passes, one it passes by name, and a nested Sequential."""

    def __init__(self, dims, channels):
        super().__init__()
        self.inner = nn.Sequential(nn.Sequential(conv(dims, channels), NORM[dims](channels)), nn.ReLU(inplace=True))

    def forward(self, x, skip=None, *, scale: float = 1.0):
        out = self.inner(x) * scale
        return out if skip is None else out + skip


class Calling(nn.Module):
    def __init__(self, dims, channels):
        super().__init__()
        self.plain = Optional(dims, channels)
        self.skipped = Optional(dims, channels)

    def forward(self, x):
        return self.skipped(self.plain(x), skip=x, scale=0.5)


class Shuffling(nn.Module):
    def __init__(self, dims, channels):
        super().__init__()
        self.conv = conv(dims, channels, groups=2)

    def forward(self, x):
        n, c = x.shape[:2]
        out = self.conv(x)
        return out.view(n, 2, c // 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


class ChannelsLast(nn.Module):
    def __init__(self, dims, channels):
        super().__init__()
        self.dw = conv(dims, channels, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))
        self.gamma = nn.Parameter(torch.full((channels,), 0.3))

    def forward(self, x):
        out = self.mlp(self.norm(self.dw(x).movedim(1, -1)))
        return x + (self.gamma * out).movedim(-1, 1)


class Parametrized(nn.Module):
    def __init__(self, dims, channels):
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(conv(dims, channels))
        self.norm = nn.GroupNorm(2, channels)

    def forward(self, x):
        return F.leaky_relu(self.norm(self.conv(x)), 0.1)


class TrainingDependent(nn.Module):
    def __init__(self, dims, channels):
        super().__init__()
        self.conv = conv(dims, channels)
        self.extra = conv(dims, channels, kernel=1)
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        out = self.drop(self.conv(x))
        if self.training:
            out = out + 0.1 * self.extra(x)
        return F.dropout(out, 0.2, self.training) + x


class ShapeDependent(nn.Module):
    """No graph can stand for it."""

    def __init__(self, dims, channels):
        super().__init__()
        self.small = ConvNormAct(dims, channels)
        self.large = conv(dims, channels)

    def forward(self, x):
        return self.small(x) if x.shape[-1] < 6 else self.large(x)


class DataDependent(nn.Module):
    def __init__(self, dims, channels):
        super().__init__()
        self.conv = ConvNormAct(dims, channels)

    def forward(self, x):
        return self.conv(x) + (1 if float(x.sum()) > 0 else 2)


class Sandwich(nn.Sequential):
    def __init__(self, dims, channels):
        super().__init__(conv(dims, channels), NORM[dims](channels), nn.Hardswish(inplace=True), Joining())


BLOCKS = {
    "basic": Basic,
    "pre-activation": PreActivation,
    "conv-norm-act": ConvNormAct,
    "dense": Dense,
    "inception": Inception,
    "squeeze-excite": SqueezeExcite,
    "chunk-cat": ChunkCat,
    "shared": Shared,
    "in-place": InPlace,
    "item-assignment": ItemAssignment,
    "dict": lambda dims, channels: Structured(dims, channels, "dict"),
    "named-tuple": lambda dims, channels: Structured(dims, channels, "named"),
    "list": lambda dims, channels: Structured(dims, channels, "list"),
    "functional": Functional,
    "calling": Calling,
    "shuffling": Shuffling,
    "channels-last": ChannelsLast,
    "parametrized": Parametrized,
    "training-dependent": TrainingDependent,
    "shape-dependent": ShapeDependent,
    "data-dependent": DataDependent,
    "sandwich": Sandwich,
}
