"""UNets of several kinds, and networks that go down and up in other ways."""

import math

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn

from tests.nets.parts import Kwik, c1, c3, net


class Pair(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.both = nn.Sequential(
            c3(before, after, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True),
            c3(after, after, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x):
        return self.both(x)


class Sink(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.pooled = nn.Sequential(nn.MaxPool2d(2), Pair(before, after))

    def forward(self, x):
        return self.pooled(x)


class Rise(nn.Module):
    def __init__(self, before, skip, after):
        super().__init__()
        self.grow, self.pair = nn.ConvTranspose2d(before, before // 2, 2, 2), Pair(before // 2 + skip, after)

    def forward(self, low, high):
        low = self.grow(low)
        dy, dx = high.size(2) - low.size(2), high.size(3) - low.size(3)
        low = F.pad(low, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.pair(torch.cat([high, low], dim=1))


@net("unet-classes")
class RiseNet(nn.Module):
    """The popular one: classes for the ways down and up, padding to the skip."""

    def __init__(self):
        super().__init__()
        self.inc, self.d1, self.d2 = Pair(3, 8), Sink(8, 12), Sink(12, 16)
        self.u1, self.u2, self.outc = Rise(16, 12, 12), Rise(12, 8, 8), c1(8, 2)

    def forward(self, x):
        a = self.inc(x)
        b = self.d1(a)
        c = self.d2(b)
        return self.outc(self.u2(self.u1(c, b), a))


@net("unet-flat")
class FlatNet(nn.Module):
    """Everything in one forward: pooling, transposed convolutions and concatenations."""

    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(2, 2)
        self.enc1, self.enc2, self.mid = Pair(3, 8), Pair(8, 12), Pair(12, 16)
        self.grow2, self.dec2 = nn.ConvTranspose2d(16, 12, 2, 2), Pair(24, 12)
        self.grow1, self.dec1 = nn.ConvTranspose2d(12, 8, 2, 2), Pair(16, 8)
        self.last = c1(8, 1)

    def forward(self, x):
        e1 = self.enc1(x)
        e2 = self.enc2(self.pool(e1))
        mid = self.mid(self.pool(e2))
        d2 = self.dec2(torch.cat((self.grow2(mid), e2), dim=1))
        d1 = self.dec1(torch.cat((self.grow1(d2), e1), dim=1))
        return torch.sigmoid(self.last(d1))


class Stair(nn.Module):
    """A residual block of a residual UNet."""

    def __init__(self, before, after, stride=1):
        super().__init__()
        self.path = nn.Sequential(
            nn.BatchNorm2d(before), nn.ReLU(), c3(before, after, stride),
            nn.BatchNorm2d(after), nn.ReLU(), c3(after, after),
        )  # fmt: skip
        self.side = nn.Sequential(c3(before, after, stride), nn.BatchNorm2d(after))

    def forward(self, x):
        return self.path(x) + self.side(x)


@net("unet-residual")
class StairNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.first_side = nn.Sequential(c3(3, 8), nn.BatchNorm2d(8), nn.ReLU(), c3(8, 8)), c3(3, 8)
        self.down1, self.bridge = Stair(8, 12, 2), Stair(12, 16, 2)
        self.grow1, self.up1 = nn.ConvTranspose2d(16, 16, 2, 2), Stair(28, 12)
        self.grow2, self.up2 = nn.ConvTranspose2d(12, 12, 2, 2), Stair(20, 8)
        self.last = c1(8, 1)

    def forward(self, x):
        a = self.first(x) + self.first_side(x)
        b = self.down1(a)
        c = self.bridge(b)
        x = self.up1(torch.cat([self.grow1(c), b], 1))
        x = self.up2(torch.cat([self.grow2(x), a], 1))
        return self.last(x)


class Heed(nn.Module):
    """Attention gate of a UNet."""

    def __init__(self, gate, skip, inner):
        super().__init__()
        self.wg, self.wx = c1(gate, inner), c1(skip, inner)
        self.psi = nn.Sequential(c1(inner, 1), nn.Sigmoid())

    def forward(self, g, x):
        return x * self.psi(F.relu(self.wg(g) + self.wx(x)))


class Lift(nn.Module):
    """Resize, then convolve."""

    def __init__(self, before, after):
        super().__init__()
        self.steps = nn.Sequential(nn.Upsample(scale_factor=2), c3(before, after), nn.BatchNorm2d(after), nn.ReLU(True))

    def forward(self, x):
        return self.steps(x)


@net("unet-attention")
class HeedNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(2, 2)
        self.c1, self.c2, self.c3 = Pair(3, 8), Pair(8, 12), Pair(12, 16)
        self.l3, self.h3, self.p3 = Lift(16, 12), Heed(12, 12, 4), Pair(24, 12)
        self.l2, self.h2, self.p2 = Lift(12, 8), Heed(8, 8, 4), Pair(16, 8)
        self.last = c1(8, 1)

    def forward(self, x):
        x1 = self.c1(x)
        x2 = self.c2(self.pool(x1))
        x3 = self.c3(self.pool(x2))
        d3 = self.l3(x3)
        d3 = self.p3(torch.cat((self.h3(d3, x2), d3), 1))
        d2 = self.l2(d3)
        d2 = self.p2(torch.cat((self.h2(d2, x1), d2), 1))
        return self.last(d2)


class Clock(nn.Module):
    """Sinusoidal embedding of a time."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, time):
        half = self.width // 2
        rates = torch.exp(torch.arange(half, device=time.device, dtype=time.dtype) * -(math.log(1000) / (half - 1)))
        angles = time[:, None] * rates[None]
        return torch.cat((angles.sin(), angles.cos()), -1)


class Noted(nn.Module):
    """Convolution, group norm, and scale and shift from the time."""

    def __init__(self, before, after):
        super().__init__()
        self.proj, self.norm, self.act = c3(before, after), nn.GroupNorm(4, after), nn.SiLU()

    def forward(self, x, moved=None):
        x = self.norm(self.proj(x))
        if moved is not None:
            scale, shift = moved
            x = x * (scale + 1) + shift
        return self.act(x)


class Timed(nn.Module):
    """The residual block of a diffusion UNet."""

    def __init__(self, before, after, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * after))
        self.one, self.two = Noted(before, after), Noted(after, after)
        self.side = c1(before, after) if before != after else nn.Identity()

    def forward(self, x, time):
        moved = self.mlp(time)[:, :, None, None].chunk(2, dim=1)
        h = self.one(x, moved)
        h = self.two(h)
        return h + self.side(x)


class Around(nn.Module):
    """A skip around any module."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x, *args):
        return self.inside(x, *args) + x


class Linearly(nn.Module):
    """Linear attention over the map."""

    def __init__(self, channels, heads=2, width=4):
        super().__init__()
        self.heads, self.to_qkv = heads, c1(channels, 3 * heads * width, bias=False)
        self.to_out = c1(heads * width, channels)

    def forward(self, x):
        n, _, h, w = x.shape
        q, k, v = (each.reshape(n, self.heads, -1, h * w) for each in self.to_qkv(x).chunk(3, 1))
        context = torch.einsum("bhdn,bhen->bhde", k.softmax(-1), v)
        return self.to_out(torch.einsum("bhde,bhdn->bhen", context, q.softmax(-2)).reshape(n, -1, h, w))


@net("diffusion-unet", (2, 3, 32, 32), (2,))
class TimedNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.init = nn.Conv2d(3, 8, 7, padding=3)
        self.clock = nn.Sequential(Clock(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 16))
        self.downs = nn.ModuleList(
            nn.ModuleList([Timed(a, a, 16), Timed(a, a, 16), Around(Linearly(a)), nn.Conv2d(a, b, 4, 2, 1)])
            for a, b in ((8, 12), (12, 16))
        )
        self.mid1, self.mid_look, self.mid2 = Timed(16, 16, 16), Around(Linearly(16)), Timed(16, 16, 16)
        self.ups = nn.ModuleList(
            nn.ModuleList([nn.ConvTranspose2d(b, a, 4, 2, 1), Timed(2 * a, a, 16), Around(Linearly(a))])
            for a, b in ((12, 16), (8, 12))
        )
        self.last, self.out = Timed(16, 8, 16), c1(8, 3)

    def forward(self, x, time):
        x = self.init(x)
        first, t, kept = x.clone(), self.clock(time), []
        for one, two, look, down in self.downs:
            x = one(x, t)
            x = look(two(x, t))
            kept.append(x)
            x = down(x)
        x = self.mid2(self.mid_look(self.mid1(x, t)), t)
        for up, one, look in self.ups:
            x = look(one(torch.cat((up(x), kept.pop()), 1), t))
        return self.out(self.last(torch.cat((x, first), 1), t))


class Nest(nn.Module):
    """Pre-activation bottleneck of a stacked hourglass."""

    def __init__(self, channels):
        super().__init__()
        half = channels // 2
        self.bn1, self.k1 = nn.BatchNorm2d(channels), c1(channels, half)
        self.bn2, self.k2 = nn.BatchNorm2d(half), c3(half, half)
        self.bn3, self.k3 = nn.BatchNorm2d(half), c1(half, channels)

    def forward(self, x):
        out = self.k1(F.relu(self.bn1(x)))
        out = self.k2(F.relu(self.bn2(out)))
        out = self.k3(F.relu(self.bn3(out)))
        out += x
        return out


class Glass(nn.Module):
    """Recursive: lists of lists of blocks, walked by a helper method."""

    def __init__(self, channels, depth=2):
        super().__init__()
        self.depth = depth
        self.hg = nn.ModuleList(
            nn.ModuleList(Nest(channels) for _ in range(4 if level == 0 else 3)) for level in range(depth)
        )

    def _down_and_up(self, level, x):
        up1 = self.hg[level - 1][0](x)
        low = self.hg[level - 1][1](F.max_pool2d(x, 2, stride=2))
        low = self._down_and_up(level - 1, low) if level > 1 else self.hg[0][3](low)
        low = self.hg[level - 1][2](low)
        return up1 + F.interpolate(low, scale_factor=2)

    def forward(self, x):
        return self._down_and_up(self.depth, x)


@net("hourglass")
class GlassNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.glass, self.after, self.score = Glass(8), Nest(8), c1(8, 4)

    def forward(self, x):
        return self.score(self.after(self.glass(self.stem(x))))


class Span(nn.Module):
    """Atrous spatial pyramid pooling."""

    def __init__(self, before, after):
        super().__init__()
        self.point = Kwik(before, after, 1)
        self.holes = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=rate, dilation=rate), nn.BatchNorm2d(after), nn.ReLU())
            for rate in (2, 4)
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), c1(before, after), nn.ReLU())
        self.project = Kwik(4 * after, after, 1)

    def forward(self, x):
        maps = [self.point(x), *(hole(x) for hole in self.holes)]
        maps.append(F.interpolate(self.pooled(x), size=x.shape[-2:], mode="bilinear", align_corners=False))
        return self.project(torch.cat(maps, 1))


@net("aspp")
class SpanNet(nn.Module):
    """DeepLabV3+ in small: dictionary of outputs."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = Kwik(3, 8, 3, 2), nn.Sequential(Stair(8, 12, 2), Stair(12, 12))
        self.span, self.low, self.fuse, self.last = Span(12, 8), Kwik(8, 4, 1), Kwik(12, 8), c1(8, 2)

    def forward(self, x):
        stem = self.stem(x)
        deep = self.span(self.body(stem))
        deep = F.interpolate(deep, size=stem.shape[2:], mode="bilinear", align_corners=False)
        out = self.last(self.fuse(torch.cat([self.low(stem), deep], 1)))
        return {"out": F.interpolate(out, size=x.shape[2:], mode="bilinear", align_corners=False), "deep": deep}
