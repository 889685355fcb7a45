"""Networks of several scales, and of other dimensions and inputs."""

from collections import OrderedDict

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn

from tests.nets.classifiers import Fork, Quorn
from tests.nets.parts import Kwik, Tally, c1, c3, net


class Trunk(nn.Module):
    """A backbone that returns three maps."""

    def __init__(self):
        super().__init__()
        self.stem = Kwik(3, 8, 3, 2)
        self.p3 = nn.Sequential(Kwik(8, 8, 3, 2), Fork(8, 8, 1))
        self.p4 = nn.Sequential(Kwik(8, 12, 3, 2), Fork(12, 12, 1))
        self.p5 = nn.Sequential(Kwik(12, 16, 3, 2), Fork(16, 16, 1))

    def forward(self, x):
        a = self.p3(self.stem(x))
        b = self.p4(a)
        return {"p3": a, "p4": b, "p5": self.p5(b)}


class Crossing(nn.Module):
    """A PAFPN in one module: down, up again, three maps in a tuple."""

    def __init__(self):
        super().__init__()
        self.trunk = Trunk()
        self.lateral5, self.lateral4 = Kwik(16, 12, 1), Kwik(12, 8, 1)
        self.top4, self.top3 = Fork(24, 12, 1, False), Fork(16, 8, 1, False)
        self.down3, self.down4 = Kwik(8, 8, 3, 2), Kwik(12, 12, 3, 2)
        self.low4, self.low5 = Fork(16, 12, 1, False), Fork(24, 16, 1, False)

    def forward(self, x):
        maps = self.trunk(x)
        p3, p4, p5 = (maps[name] for name in ("p3", "p4", "p5"))
        l5 = self.lateral5(p5)
        t4 = self.top4(torch.cat([F.interpolate(l5, scale_factor=2), p4], 1))
        l4 = self.lateral4(t4)
        out3 = self.top3(torch.cat([F.interpolate(l4, scale_factor=2), p3], 1))
        out4 = self.low4(torch.cat([self.down3(out3), l4], 1))
        out5 = self.low5(torch.cat([self.down4(out4), l5], 1))
        return out3, out4, out5


class Aim(nn.Module):
    """A decoupled head over all levels."""

    def __init__(self):
        super().__init__()
        self.stems = nn.ModuleList(Kwik(width, 8, 1) for width in (8, 12, 16))
        self.towers = nn.ModuleList(Kwik(8, 8) for _ in range(3))
        self.kinds, self.boxes = nn.ModuleList(c1(8, 3) for _ in range(3)), nn.ModuleList(c1(8, 4) for _ in range(3))

    def forward(self, maps):
        found = []
        for level, x in enumerate(maps):
            y = self.towers[level](self.stems[level](x))
            found.append(torch.cat([self.boxes[level](y), self.kinds[level](y)], 1).flatten(2))
        return torch.cat(found, 2)


@net("yolo-pafpn", (2, 3, 64, 64))
class CrossingNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.neck, self.head = Crossing(), Aim()

    def forward(self, x):
        return self.head(self.neck(x))


class Terrace(nn.Module):
    """A top-down pyramid of named maps."""

    def __init__(self, widths=(8, 12, 16), after=8):
        super().__init__()
        self.inner = nn.ModuleList(c1(width, after) for width in widths)
        self.outer = nn.ModuleList(c3(after, after) for _ in widths)

    def forward(self, maps):
        names, values = list(maps), list(maps.values())
        last = self.inner[-1](values[-1])
        found = [self.outer[-1](last)]
        for index in (1, 0):
            side = self.inner[index](values[index])
            last = side + F.interpolate(last, size=side.shape[-2:], mode="nearest")
            found.insert(0, self.outer[index](last))
        return OrderedDict(zip(names, found, strict=True))


@net("fpn-dict", (2, 3, 64, 64))
class TerraceNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Kwik(3, 8, 3, 2)
        self.l1, self.l2 = nn.Sequential(Quorn(8, 8), Quorn(8, 8)), nn.Sequential(Quorn(8, 12, 2), Quorn(12, 12))
        self.l3, self.fpn = nn.Sequential(Quorn(12, 16, 2), Quorn(16, 16)), Terrace()

    def forward(self, x):
        a = self.l1(self.stem(x))
        b = self.l2(a)
        return self.fpn(OrderedDict(a=a, b=b, c=self.l3(b)))


class Parallel(nn.Module):
    """A module of a high-resolution network: two branches, and their exchange; a list of maps in and out."""

    def __init__(self, widths=(8, 12)):
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(Quorn(width, width), Quorn(width, width)) for width in widths)
        self.up = nn.Sequential(c1(12, 8, bias=False), nn.BatchNorm2d(8), nn.Upsample(scale_factor=2))
        self.down = nn.Sequential(c3(8, 12, 2, bias=False), nn.BatchNorm2d(12))
        self.relu = nn.ReLU()

    def forward(self, maps):
        high, low = (branch(x) for branch, x in zip(self.branches, maps, strict=True))
        return [self.relu(high + self.up(low)), self.relu(low + self.down(high))]


@net("hrnet")
class ParallelNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(c3(3, 8, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.first = nn.Sequential(Quorn(8, 8), Quorn(8, 8))
        self.split = nn.ModuleList([nn.Identity(), Kwik(8, 12, 3, 2)])
        self.m1, self.m2, self.last = Parallel(), Parallel(), c1(20, 3)

    def forward(self, x):
        x = self.first(self.stem(x))
        high, low = self.m2(self.m1([part(x) for part in self.split]))
        return self.last(torch.cat([high, F.interpolate(low, size=high.shape[2:])], 1))


class Beat(nn.Module):
    """The block of a 1-D residual network for ECG: pooled and padded skip, dropout."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.bn1, self.k1 = nn.BatchNorm1d(before), nn.Conv1d(before, after, 7, stride, 3)
        self.bn2, self.k2 = nn.BatchNorm1d(after), nn.Conv1d(after, after, 7, 1, 3)
        self.drop, self.stride, self.more = nn.Dropout(0.2), stride, after - before

    def forward(self, x):
        skip = F.max_pool1d(x, self.stride) if self.stride > 1 else x
        if self.more:
            skip = F.pad(skip, (0, 0, 0, self.more))
        out = self.k1(F.relu(self.bn1(x)))
        out = self.k2(self.drop(F.relu(self.bn2(out))))
        return out + skip


@net("ecg-1d", (2, 4, 128))
class BeatNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(4, 8, 7, padding=3), nn.BatchNorm1d(8), nn.ReLU())
        self.beats = nn.ModuleList([Beat(8, 8, 1), Beat(8, 12, 2), Beat(12, 12, 1), Beat(12, 16, 2)])
        self.out = Tally(16)

    def forward(self, x):
        x = self.first(x)
        for beat in self.beats:
            x = beat(x)
        return self.out(x)


class Frame(nn.Module):
    """Space and time apart, as in R(2+1)D."""

    def __init__(self, before, after, stride=1):
        super().__init__()
        self.space1 = nn.Conv3d(before, after, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.time1, self.n1 = nn.Conv3d(after, after, (3, 1, 1), padding=(1, 0, 0), bias=False), nn.BatchNorm3d(after)
        self.space2 = nn.Conv3d(after, after, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.time2, self.n2 = nn.Conv3d(after, after, (3, 1, 1), padding=(1, 0, 0), bias=False), nn.BatchNorm3d(after)
        self.side = None if before == after else nn.Conv3d(before, after, 1, (1, stride, stride))

    def forward(self, x):
        out = F.relu(self.n1(self.time1(self.space1(x))))
        out = self.n2(self.time2(self.space2(out)))
        return F.relu(out + (x if self.side is None else self.side(x)))


@net("video-3d", (2, 3, 4, 16, 16))
class FrameNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, 8, (3, 5, 5), (1, 2, 2), (1, 2, 2)), nn.BatchNorm3d(8), nn.ReLU())
        self.f1, self.f2 = nn.Sequential(Frame(8, 8), Frame(8, 8)), nn.Sequential(Frame(8, 12, 2), Frame(12, 12))
        self.out = Tally(12)

    def forward(self, x):
        return self.out(self.f2(self.f1(self.stem(x))))


class Twin(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Kwik(3, 8, 3, 2)
        self.a, self.b, self.out = Quorn(8, 8), Quorn(8, 12, 2), Tally(12, 6)

    def forward(self, x):
        return self.out(self.b(self.a(self.stem(x))))


@net("siamese", (2, 3, 32, 32), (2, 3, 32, 32))
class TwinNet(nn.Module):
    """One encoder, called twice in one forward."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = Twin(), nn.Linear(6, 1)

    def forward(self, one, two):
        return self.head((self.encoder(one) - self.encoder(two)).abs())


class Memory(nn.Module):
    """The cell of a convolutional LSTM."""

    def __init__(self, before, hidden):
        super().__init__()
        self.hidden, self.gates = hidden, c3(before + hidden, 4 * hidden)

    def forward(self, x, state):
        h, c = state
        i, f, o, g = torch.split(self.gates(torch.cat([x, h], 1)), self.hidden, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return h, c


@net("convlstm", (2, 3, 3, 12, 12))
class MemoryNet(nn.Module):
    """(N, T, C, H, W) in; the cell is called once for each time."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = Memory(3, 6), c3(6, 2)

    def forward(self, x):
        h = x.new_zeros(len(x), 6, *x.shape[3:])
        c = torch.zeros_like(h)
        for time in range(x.shape[1]):
            h, c = self.cell(x[:, time], (h, c))
        return self.head(h)
