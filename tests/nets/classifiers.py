"""Classifiers: residual, dense, parallel, re-parameterised and mobile networks."""

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn

from tests.nets.parts import Kwik, Tally, c1, c3, net


class Quorn(nn.Module):
    """The CIFAR basic block."""

    def __init__(self, before, after, stride=1):
        super().__init__()
        self.conv1, self.bn1 = c3(before, after, stride, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = c3(after, after, bias=False), nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(c1(before, after, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


@net("cifar-resnet")
class QuornNet(nn.Module):
    def __init__(self, unit=Quorn):
        super().__init__()
        self.conv1, self.bn1 = c3(3, 8, bias=False), nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(unit(8, 8), unit(8, 8))
        self.layer2 = nn.Sequential(unit(8, 12, 2), unit(12, 12))
        self.layer3 = nn.Sequential(unit(12, 16, 2), unit(16, 16))
        self.linear = nn.Linear(16, 5)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.avg_pool2d(out, 4)
        return self.linear(out.mean((2, 3)))


class Vleck(nn.Module):
    """Pre-activation, with a shortcut that exists only where it is needed."""

    def __init__(self, before, after, stride=1):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(before), c3(before, after, stride, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(after), c3(after, after, bias=False)
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(c1(before, after, stride, bias=False))

    def forward(self, x):
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        out += shortcut
        return out


@net("preact-cifar")
class VleckNet(QuornNet):
    def __init__(self):
        super().__init__(Vleck)


class Broad(nn.Module):
    """Wide residual network: the first activation is shared with the skip where channels differ."""

    def __init__(self, before, after, stride=1):
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(before), nn.ReLU(inplace=True)
        self.conv1 = c3(before, after, stride, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(after), nn.ReLU(inplace=True)
        self.conv2, self.rate = c3(after, after, bias=False), 0.3
        self.equal = before == after
        self.project = None if self.equal else c1(before, after, stride, bias=False)

    def forward(self, x):
        if not self.equal:
            x = self.relu1(self.bn1(x))
        else:
            out = self.relu1(self.bn1(x))
        out = self.relu2(self.bn2(self.conv1(out if self.equal else x)))
        if self.rate > 0:
            out = F.dropout(out, p=self.rate, training=self.training)
        out = self.conv2(out)
        return torch.add(x if self.equal else self.project(x), out)


class Band(nn.Module):
    """A stage as a class of its own."""

    def __init__(self, unit, before, after, stride):
        super().__init__()
        self.layer = nn.Sequential(unit(before, after, stride), unit(after, after))

    def forward(self, x):
        return self.layer(x)


@net("wide-resnet")
class BroadNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = c3(3, 8, bias=False)
        self.band1, self.band2 = Band(Broad, 8, 8, 1), Band(Broad, 8, 12, 2)
        self.bn1, self.relu, self.fc = nn.BatchNorm2d(12), nn.ReLU(inplace=True), nn.Linear(12, 5)

    def forward(self, x):
        out = self.band2(self.band1(self.conv1(x)))
        out = self.relu(self.bn1(out))
        return self.fc(F.avg_pool2d(out, 8).view(len(out), -1, 12).mean(1))


class Excite(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(channels, 4), nn.ReLU(), nn.Linear(4, channels), nn.Sigmoid())

    def forward(self, x):
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class Sextant(nn.Module):
    """Grouped bottleneck with squeeze-and-excitation."""

    def __init__(self, before, after, stride=1):
        super().__init__()
        self.squash, self.n1 = c1(before, 8, bias=False), nn.BatchNorm2d(8)
        self.spread, self.n2 = c3(8, 8, stride, groups=4, bias=False), nn.BatchNorm2d(8)
        self.lift, self.n3 = c1(8, after, bias=False), nn.BatchNorm2d(after)
        self.excite = Excite(after)
        self.side = None
        if stride != 1 or before != after:
            self.side = nn.Sequential(c1(before, after, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x):
        out = F.relu(self.n1(self.squash(x)))
        out = F.relu(self.n2(self.spread(out)))
        out = self.excite(self.n3(self.lift(out)))
        return F.relu(out + (x if self.side is None else self.side(x)))


@net("se-resnext", (2, 3, 48, 48))
class SextantNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.root = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.s1 = nn.Sequential(Sextant(8, 16), Sextant(16, 16))
        self.s2 = nn.Sequential(Sextant(16, 24, 2), Sextant(24, 24))
        self.out = Tally(24)

    def forward(self, x):
        return self.out(self.s2(self.s1(self.root(x))))


class Raw(nn.Module):
    """Weights as parameters, convolutions and norms as functions: no convolution is a module."""

    def __init__(self, channels):
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(channels, channels, 3, 3) * 0.1)
        self.w2 = nn.Parameter(torch.randn(channels, channels, 3, 3) * 0.1)
        self.g1, self.b1 = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("m1", torch.zeros(channels))
        self.register_buffer("v1", torch.ones(channels))
        self.act = nn.ReLU()

    def forward(self, x):
        out = F.conv2d(x, self.w1, padding=1)
        out = self.act(F.batch_norm(out, self.m1, self.v1, self.g1, self.b1, self.training))
        out = F.conv2d(out, self.w2, padding=1)
        return self.act(x + out)


@net("functional-resnet")
class RawNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(8, 3, 3, 3) * 0.2)
        self.units = nn.ModuleList(Raw(8) for _ in range(3))
        self.out = Tally(8)

    def forward(self, x):
        x = F.conv2d(x, self.first, stride=2, padding=1)
        for unit in self.units:
            x = unit(x)
        return self.out(x)


class Plume(nn.Module):
    """RepVGG: 3x3, 1x1 and identity in parallel."""

    def __init__(self, before, after, stride=1):
        super().__init__()
        self.same = nn.BatchNorm2d(before) if before == after and stride == 1 else None
        self.wide = nn.Sequential(c3(before, after, stride, bias=False), nn.BatchNorm2d(after))
        self.point = nn.Sequential(c1(before, after, stride, bias=False), nn.BatchNorm2d(after))
        self.act = nn.ReLU()

    def forward(self, x):
        same = 0 if self.same is None else self.same(x)
        return self.act(self.wide(x) + self.point(x) + same)


@net("repvgg")
class PlumeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stage1 = nn.Sequential(Plume(3, 8, 2), Plume(8, 8))
        self.stage2 = nn.Sequential(Plume(8, 12, 2), Plume(12, 12), Plume(12, 12))
        self.out = Tally(12)

    def forward(self, x):
        return self.out(self.stage2(self.stage1(x)))


class Ladder(nn.Module):
    """Res2Net: groups of channels, each reads the one before."""

    def __init__(self, channels, width=4, scale=4):
        super().__init__()
        self.enter, self.n1 = c1(channels, width * scale, bias=False), nn.BatchNorm2d(width * scale)
        self.rungs = nn.ModuleList(c3(width, width, bias=False) for _ in range(scale - 1))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(scale - 1))
        self.leave, self.n3 = c1(width * scale, channels, bias=False), nn.BatchNorm2d(channels)
        self.width, self.relu = width, nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.n1(self.enter(x)))
        parts, done, before = torch.split(out, self.width, 1), [], None
        for index, (rung, norm) in enumerate(zip(self.rungs, self.norms, strict=True)):
            before = parts[index] if before is None else before + parts[index]
            before = self.relu(norm(rung(before)))
            done.append(before)
        out = self.n3(self.leave(torch.cat([*done, parts[-1]], 1)))
        out += x
        return self.relu(out)


@net("res2net")
class LadderNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Kwik(3, 8, 3, 2)
        self.body = nn.Sequential(Ladder(8), Ladder(8), Ladder(8))
        self.out = Tally(8)

    def forward(self, x):
        return self.out(self.body(self.stem(x)))


class Manifold(nn.Module):
    """MobileOne: several branches of one kernel, and a scale branch."""

    def __init__(self, before, after, kernel=3, stride=1, groups=1):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False),
                          nn.BatchNorm2d(after))
            for _ in range(2)
        )  # fmt: skip
        self.skip = nn.BatchNorm2d(before) if before == after and stride == 1 else None
        self.act = nn.ReLU()

    def forward(self, x):
        out = 0 if self.skip is None else self.skip(x)
        for branch in self.branches:
            out = out + branch(x)
        return self.act(out)


@net("mobileone")
class ManifoldNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Kwik(3, 8, 3, 2)
        self.body = nn.Sequential(
            Manifold(8, 8, 3, 2, 8), Manifold(8, 12, 1), Manifold(12, 12, 3, 1, 12), Manifold(12, 12, 1)
        )
        self.out = Tally(12)

    def forward(self, x):
        return self.out(self.body(self.stem(x)))


class Phantom(nn.Module):
    """Half of the channels by a cheap depthwise convolution."""

    def __init__(self, before, after, act=True):
        super().__init__()
        half = after // 2
        self.primary = nn.Sequential(c1(before, half, bias=False), nn.BatchNorm2d(half))
        self.cheap = nn.Sequential(c3(half, half, groups=half, bias=False), nn.BatchNorm2d(half))
        self.act = nn.ReLU() if act else nn.Identity()

    def forward(self, x):
        one = self.act(self.primary(x))
        return torch.cat([one, self.act(self.cheap(one))], 1)


class Haunt(nn.Module):
    """Ghost bottleneck."""

    def __init__(self, before, middle, after, stride=1):
        super().__init__()
        self.widen, self.narrow = Phantom(before, middle), Phantom(middle, after, act=False)
        self.shrink = None
        if stride > 1:
            self.shrink = nn.Sequential(c3(middle, middle, stride, groups=middle, bias=False), nn.BatchNorm2d(middle))
        self.side = nn.Sequential()
        if stride > 1 or before != after:
            self.side = nn.Sequential(
                c3(before, before, stride, groups=before, bias=False), nn.BatchNorm2d(before),
                c1(before, after, bias=False), nn.BatchNorm2d(after),
            )  # fmt: skip

    def forward(self, x):
        out = self.widen(x)
        if self.shrink is not None:
            out = self.shrink(out)
        return self.narrow(out) + self.side(x)


@net("ghost")
class HauntNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Kwik(3, 8, 3, 2)
        self.body = nn.Sequential(Haunt(8, 16, 8), Haunt(8, 16, 12, 2), Haunt(12, 24, 12))
        self.out = Tally(12)

    def forward(self, x):
        return self.out(self.body(self.stem(x)))


class Gauge(nn.Module):
    """Squeeze-and-excitation of 1x1 convolutions."""

    def __init__(self, channels):
        super().__init__()
        self.pool, self.down, self.up = nn.AdaptiveAvgPool2d(1), c1(channels, 4), c1(4, channels)

    def forward(self, x):
        return x * F.hardsigmoid(self.up(F.relu(self.down(self.pool(x)))))


class Hourly(nn.Module):
    """MobileNetV3's inverted residual."""

    def __init__(self, before, middle, after, kernel, stride):
        super().__init__()
        self.grow = Kwik(before, middle, 1)
        self.depth = Kwik(middle, middle, kernel, stride, middle)
        self.gauge = Gauge(middle)
        self.shrink = Kwik(middle, after, 1, act=False)
        self.same = before == after and stride == 1

    def forward(self, x):
        out = self.shrink(self.gauge(self.depth(self.grow(x))))
        return x + out if self.same else out


@net("mobile-se")
class HourlyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Kwik(3, 8, 3, 2)
        self.units = nn.Sequential(
            Hourly(8, 16, 8, 3, 1), Hourly(8, 24, 12, 5, 2), Hourly(12, 24, 12, 5, 1), Hourly(12, 24, 12, 3, 1)
        )
        self.last, self.out = Kwik(12, 20, 1), Tally(20)

    def forward(self, x):
        return self.out(self.last(self.units(self.stem(x))))


class Layered(nn.Module):
    """An own LayerNorm for both layouts, as in the official ConvNeXt."""

    def __init__(self, channels, layout="last"):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels) * 0.8), nn.Parameter(torch.zeros(channels))
        self.layout, self.eps, self.shape = layout, 1e-6, (channels,)

    def forward(self, x):
        if self.layout == "last":
            return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)
        mean = x.mean(1, keepdim=True)
        spread = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(spread + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Fathom(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.dw, self.norm = nn.Conv2d(channels, channels, 7, padding=3, groups=channels), Layered(channels)
        self.one, self.act, self.two = nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
        self.gamma, self.drop = nn.Parameter(0.5 * torch.ones(channels)), nn.Identity()

    def forward(self, x):
        given = x
        x = self.dw(x)
        x = x.permute(0, 2, 3, 1)
        x = self.two(self.act(self.one(self.norm(x))))
        x = self.gamma * x
        x = x.permute(0, 3, 1, 2)
        return given + self.drop(x)


@net("official-convnext", (2, 3, 64, 64))
class FathomNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.shrinks = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(3, 8, 4, 4), Layered(8, "first")),
                nn.Sequential(Layered(8, "first"), nn.Conv2d(8, 12, 2, 2)),
            ]
        )
        self.stages = nn.ModuleList(nn.Sequential(Fathom(width), Fathom(width)) for width in (8, 12))
        self.norm, self.head = nn.LayerNorm(12, eps=1e-6), nn.Linear(12, 5)

    def forward(self, x):
        for shrink, stage in zip(self.shrinks, self.stages, strict=True):
            x = stage(shrink(x))
        return self.head(self.norm(x.mean([-2, -1])))


class Accrete(nn.Module):
    """A dense layer that is given all maps so far."""

    def __init__(self, before, growth):
        super().__init__()
        self.n1, self.k1 = nn.BatchNorm2d(before), c1(before, 8, bias=False)
        self.n2, self.k2 = nn.BatchNorm2d(8), c3(8, growth, bias=False)

    def forward(self, maps):
        out = self.k1(F.relu(self.n1(torch.cat(maps, 1))))
        return self.k2(F.relu(self.n2(out)))


class Sediment(nn.Module):
    """A dense block."""

    def __init__(self, before, count=3, growth=4):
        super().__init__()
        self.layers = nn.ModuleList(Accrete(before + growth * index, growth) for index in range(count))

    def forward(self, x):
        maps = [x]
        for layer in self.layers:
            maps.append(layer(maps))
        return torch.cat(maps, 1)


@net("dense")
class SedimentNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Kwik(3, 8, 3, 2)
        self.one, self.cut, self.two = Sediment(8), nn.Sequential(Kwik(20, 8, 1), nn.AvgPool2d(2)), Sediment(8)
        self.out = Tally(20)

    def forward(self, x):
        return self.out(self.two(self.cut(self.one(self.stem(x)))))


class Braid(nn.Module):
    """Inception: four branches."""

    def __init__(self, before):
        super().__init__()
        self.a = Kwik(before, 4, 1)
        self.b = nn.Sequential(Kwik(before, 4, 1), Kwik(4, 4, 3))
        self.c = nn.Sequential(Kwik(before, 4, 1), Kwik(4, 4, 5))
        self.d = nn.Sequential(nn.MaxPool2d(3, 1, 1), Kwik(before, 4, 1))

    def forward(self, x):
        return torch.cat([self.a(x), self.b(x), self.c(x), self.d(x)], 1)


@net("inception")
class BraidNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(Kwik(3, 8, 3, 2), nn.MaxPool2d(3, 2, 1))
        self.m1, self.m2, self.pool, self.m3 = Braid(8), Braid(16), nn.MaxPool2d(3, 2, 1), Braid(16)
        self.out = Tally(16)

    def forward(self, x):
        return self.out(self.m3(self.pool(self.m2(self.m1(self.stem(x))))))


class Nub(nn.Module):
    """The bottleneck of a cross-stage block."""

    def __init__(self, channels, add=True):
        super().__init__()
        self.p, self.q, self.add = Kwik(channels, channels, 1), Kwik(channels, channels, 3), add

    def forward(self, x):
        return x + self.q(self.p(x)) if self.add else self.q(self.p(x))


class Fork(nn.Module):
    """Cross-stage partial: half of the channels go around."""

    def __init__(self, before, after, count=2, add=True):
        super().__init__()
        half = after // 2
        self.left, self.right = Kwik(before, half, 1), Kwik(before, half, 1)
        self.inner = nn.Sequential(*(Nub(half, add) for _ in range(count)))
        self.join = Kwik(2 * half, after, 1)

    def forward(self, x):
        return self.join(torch.cat((self.inner(self.left(x)), self.right(x)), dim=1))


@net("csp", (2, 3, 64, 64))
class ForkNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Kwik(3, 8, 3, 2)
        self.dark2 = nn.Sequential(Kwik(8, 8, 3, 2), Fork(8, 8))
        self.dark3 = nn.Sequential(Kwik(8, 12, 3, 2), Fork(12, 12))
        self.out = Tally(12)

    def forward(self, x):
        return self.out(self.dark3(self.dark2(self.stem(x))))


class Apart(nn.Module):
    """Xception: separable convolutions, a projection on the skip."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.side, self.side_norm = c1(before, after, stride, bias=False), nn.BatchNorm2d(after)
        self.rep = nn.Sequential(
            c3(before, before, groups=before, bias=False), c1(before, after, bias=False), nn.BatchNorm2d(after),
            nn.ReLU(), c3(after, after, groups=after, bias=False), c1(after, after, bias=False), nn.BatchNorm2d(after),
            nn.MaxPool2d(3, stride, 1),
        )  # fmt: skip

    def forward(self, given):
        x = self.rep(given)
        skip = self.side_norm(self.side(given))
        x += skip
        return x


@net("xception")
class ApartNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Kwik(3, 8, 3, 2)
        self.e1, self.e2, self.e3 = Apart(8, 12, 2), Apart(12, 16, 2), Apart(16, 16, 1)
        self.out = Tally(16)

    def forward(self, x):
        return self.out(self.e3(self.e2(self.e1(self.stem(x)))))


class Attend(nn.Module):
    """A transformer layer on tokens."""

    def __init__(self, channels):
        super().__init__()
        self.n1, self.qkv = nn.LayerNorm(channels), nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.n2, self.f1, self.f2 = nn.LayerNorm(channels), nn.Linear(channels, 16), nn.Linear(16, channels)

    def forward(self, x):
        q, k, v = self.qkv(self.n1(x)).chunk(3, -1)
        x = x + self.proj((q @ k.transpose(1, 2) / 3).softmax(-1) @ v)
        return x + self.f2(F.gelu(self.f1(self.n2(x))))


@net("vit-hybrid")
class AttendNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Kwik(3, 8, 3, 2)
        self.body = nn.Sequential(Quorn(8, 8), Quorn(8, 12, 2))
        self.patch = nn.Conv2d(12, 8, 2, 2)
        self.place = nn.Parameter(torch.randn(1, 16, 8) * 0.1)
        self.layers = nn.ModuleList(Attend(8) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.patch(self.body(self.stem(x))).flatten(2).transpose(1, 2) + self.place
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))
