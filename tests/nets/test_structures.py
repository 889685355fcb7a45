"""Wrappers, recursions, plain Sequentials and residual U-Nets: structure where modules are no ready-made blocks.

Every site is written by hand, and outputs are compared with plain hooks at these sites.
"""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn
from torchvision.ops import DeformConv2d, deform_conv2d

from simam_inject import inject, injected, plan
from simam_inject.errors import NoMatchError
from tests.goldens.freeze import spread
from tests.nets.parts import c1, c3
from tests.oracle import E_LAMBDA, assert_right, hooked


class Sleeve(nn.Module):
    """What a LightningModule or a normalizing wrapper does."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.1))

    def forward(self, x):
        return self.net(x - self.mean)


class Handed(nn.Module):
    """Runs a network that it keeps in a list, so that it has no children."""

    def __init__(self, net):
        super().__init__()
        self.nets = [net]

    def forward(self, x):
        return self.nets[0](x)


class Behind(nn.Module):
    """The forward of a network is run by a module beside it."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.run = Handed(net)

    def forward(self, x):
        return self.run(x)


class Darn(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first, self.second = c3(width, width), c3(width, width)

    def forward(self, x):
        return x + self.second(F.relu(self.first(x)))


class Sharpen(nn.Module):
    """Super-resolution: all maps have one size."""

    def __init__(self):
        super().__init__()
        self.head, self.body = c3(3, 8), nn.Sequential(Darn(), Darn(), Darn())
        self.tail = nn.Sequential(c3(8, 12), nn.PixelShuffle(2))

    def forward(self, x):
        return self.tail(self.body(self.head(x)))


def double(before, after):
    return nn.Sequential(c3(before, after), nn.ReLU(), c3(after, after), nn.ReLU())


class Basin(nn.Module):
    """A U-Net of plain Sequentials in one forward."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.deep = double(3, 8), double(8, 12), double(12, 16)
        self.grow2, self.up2 = nn.ConvTranspose2d(16, 12, 2, 2), double(24, 12)
        self.grow1, self.up1 = nn.ConvTranspose2d(12, 8, 2, 2), double(16, 8)
        self.last = c1(8, 1)

    def forward(self, x):
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.deep(F.max_pool2d(two, 2))
        x = self.up2(torch.cat([F.elu(self.grow2(x)), two], 1))
        return self.last(self.up1(torch.cat([F.leaky_relu(self.grow1(x)), one], 1)))


class Stitch(nn.Module):
    """Restoration: decoder stages are Sequentials of residual blocks, after an addition or a 1x1 convolution."""

    def __init__(self):
        super().__init__()
        self.head, self.enc1, self.enc2 = c3(3, 8), nn.Sequential(Darn(), Darn()), nn.Sequential(Darn(16), Darn(16))
        self.shrink1, self.shrink2 = nn.Conv2d(8, 16, 2, 2), nn.Conv2d(16, 32, 2, 2)
        self.deep = nn.Sequential(Darn(32))
        self.grow2, self.dec2 = nn.Sequential(c1(32, 64), nn.PixelShuffle(2)), nn.Sequential(Darn(16), Darn(16))
        self.grow1, self.fuse = nn.Sequential(c1(16, 32), nn.PixelShuffle(2)), c1(16, 8)
        self.dec1, self.tail = nn.Sequential(Darn(), Darn()), c3(8, 3)

    def forward(self, x):
        one = self.enc1(self.head(x))
        two = self.enc2(self.shrink1(one))
        y = self.dec2(self.grow2(self.deep(self.shrink2(two))) + two)
        y = self.dec1(self.fuse(torch.cat([self.grow1(y), one], 1)))
        return self.tail(y) + x


class Onion(nn.Module):
    """One level of a generator: its peel around the next level."""

    def __init__(self, outside, inside, core=None, *, is_outermost=False):
        super().__init__()
        self.is_outermost = is_outermost
        width = inside if core is None else 2 * inside
        grow = [nn.ReLU(), nn.ConvTranspose2d(width, 3 if is_outermost else outside, 4, 2, 1)]
        down = nn.Conv2d(3 if is_outermost else outside, inside, 4, 2, 1)
        self.peel = nn.Sequential(down, nn.LeakyReLU(0.2), *([] if core is None else [core]), *grow)

    def forward(self, x):
        return self.peel(x) if self.is_outermost else torch.cat([x, self.peel(x)], 1)


class Veil(nn.Module):
    """Attention that scales a map by a gate from it and a deeper one."""

    def __init__(self, width):
        super().__init__()
        self.deep, self.here, self.gate = c1(width, width), c1(width, width), nn.Sequential(c1(width, 1), nn.Sigmoid())

    def forward(self, deep, x):
        return x * self.gate(F.relu(self.deep(deep) + self.here(x)))


class Hooded(nn.Module):
    """One level of an attention U-Net, which is given one map and contains the next level."""

    def __init__(self, outside, inside, core=None):
        super().__init__()
        self.veil, self.merge = Veil(outside), c3(2 * outside, outside)
        down = nn.Sequential(c3(outside, inside, 2), nn.ReLU(), c3(inside, inside), nn.ReLU())
        self.core = down if core is None else nn.Sequential(*down, core)
        self.grow = nn.Sequential(nn.ConvTranspose2d(inside, outside, 2, 2), nn.ReLU())

    def forward(self, x):
        low = self.grow(self.core(x))
        return self.merge(torch.cat([self.veil(low, x), low], 1))


class Ladle(nn.Module):
    """A residual U-Net in one forward: each join is read by what enlarges it for the next one."""

    def __init__(self):
        super().__init__()
        self.head, self.tail = c3(3, 8), c3(8, 3)
        self.down1, self.down2 = nn.Sequential(Darn(), c3(8, 16, 2)), nn.Sequential(Darn(16), c3(16, 16, 2))
        self.body = Darn(16)
        self.up2 = nn.Sequential(nn.ConvTranspose2d(16, 16, 2, 2), Darn(16))
        self.up1 = nn.Sequential(nn.ConvTranspose2d(16, 8, 2, 2), Darn())

    def forward(self, x):
        one = self.head(x)
        two = self.down1(one)
        three = self.down2(two)
        return self.tail(self.up1(self.up2(self.body(three) + three) + two) + one)


class Given(nn.Module):
    """What joins the two maps that it is given, of which the network has enlarged one."""

    def __init__(self, before, after):
        super().__init__()
        self.pair = double(before, after)

    def forward(self, x, skip):
        return self.pair(torch.cat([x, skip], 1))


class Meld(nn.Module):
    """The addition of two maps, the smaller one after a convolution in a block of its own."""

    def __init__(self, before, after):
        super().__init__()
        self.far = nn.Sequential(c3(before, after), nn.BatchNorm2d(after), nn.ReLU())
        self.near = nn.Sequential(c1(after, after), nn.BatchNorm2d(after))

    def forward(self, x, skip):
        return F.relu(self.far(F.interpolate(x, scale_factor=2)) + self.near(skip))


class Crop(Meld):
    """Its convolution has no padding, and the earlier map is cropped."""

    def __init__(self, before, after):
        super().__init__(before, after)
        self.far[0].padding = (0, 0)

    def forward(self, x, skip):
        x = self.far(F.interpolate(x, scale_factor=2))
        return F.relu(x + self.near(skip)[..., : x.shape[-2], : x.shape[-1]])


class Ascent(nn.Module):
    """A U-Net whose decoder has blocks of any kind."""

    def __init__(self, kind):
        super().__init__()
        self.down1, self.down2, self.deep = double(3, 8), double(8, 12), double(12, 16)
        self.up2, self.up1, self.last = kind(16, 12), kind(12, 8), c1(8, 1)

    def forward(self, x):
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.deep(F.max_pool2d(two, 2))
        return self.last(self.climb(self.up1, self.climb(self.up2, x, two), one))

    def climb(self, up, x, skip):
        return up(x, skip)


class Enlarging(Ascent):
    def climb(self, up, x, skip):
        return up(F.interpolate(x, scale_factor=2), skip)


class Aligning(Ascent):
    """Interpolates both maps to the size that they have: with images of other sizes, they differ."""

    def climb(self, up, x, skip):
        size = skip.shape[2:]
        return up(F.interpolate(F.interpolate(x, scale_factor=2), size=size), F.interpolate(skip, size=size))


class Swelling(Ascent):
    """What enlarges a map ends in a block of another class."""

    def __init__(self, kind):
        super().__init__(kind)
        self.swell = nn.ModuleDict(
            {str(width): nn.Sequential(nn.Upsample(scale_factor=2), Rim(width, width)) for width in (12, 16)}
        )

    def climb(self, up, x, skip):
        return up(self.swell[str(x.shape[1])](x), skip)


class Joining(Ascent):
    def climb(self, up, x, skip):
        return up(torch.cat([F.interpolate(x, scale_factor=2), skip], 1))


class Chalice(nn.Module):
    """One level of an hourglass, which contains the next one."""

    def __init__(self, depth):
        super().__init__()
        self.side, self.before = Darn(), Darn()
        self.inner = Chalice(depth - 1) if depth > 1 else nn.Sequential(Darn(), Darn())
        self.after = Darn()

    def forward(self, x):
        low = self.after(self.inner(self.before(F.max_pool2d(x, 2))))
        return self.side(x) + F.interpolate(low, scale_factor=2)


class Rim(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.filt, self.norm = c3(before, after), nn.BatchNorm2d(after)

    def forward(self, x):
        return F.relu(self.norm(self.filt(x)))


class Funnel(nn.Module):
    """A U-Net of three sizes with a skip connection around it."""

    def __init__(self, before):
        super().__init__()
        self.inlet, self.e1, self.e2, self.e3 = Rim(before, 8), Rim(8, 4), Rim(4, 4), Rim(4, 4)
        self.d2, self.d1 = Rim(8, 4), Rim(8, 8)

    def forward(self, x):
        x = self.inlet(x)
        one = self.e1(x)
        two = self.e2(F.max_pool2d(one, 2))
        y = F.interpolate(self.e3(F.max_pool2d(two, 2)), scale_factor=2)
        y = F.interpolate(self.d2(torch.cat([y, two], 1)), scale_factor=2)
        return self.d1(torch.cat([y, one], 1)) + x


class Distil(nn.Module):
    def __init__(self):
        super().__init__()
        self.f1, self.f2, self.f3 = Funnel(3), Funnel(8), Funnel(8)
        self.g2, self.g1, self.last = Funnel(16), Funnel(16), c1(8, 1)

    def forward(self, x):
        one = self.f1(x)
        two = self.f2(F.max_pool2d(one, 2))
        x = F.interpolate(self.f3(F.max_pool2d(two, 2)), scale_factor=2)
        x = F.interpolate(self.g2(torch.cat([x, two], 1)), scale_factor=2)
        return self.last(self.g1(torch.cat([x, one], 1)))


class Bloom(nn.Module):
    """A generator's residual block: both operands of its addition are upsampled."""

    def __init__(self):
        super().__init__()
        self.k1, self.k2, self.side = c3(8, 8), c3(8, 8), c1(8, 8)

    def forward(self, x):
        y = self.k2(F.relu(self.k1(F.interpolate(F.relu(x), scale_factor=2))))
        return y + self.side(F.interpolate(x, scale_factor=2))


def generator():
    return nn.Sequential(c3(3, 8), Bloom(), Bloom(), c3(8, 3))


class Flat(nn.Module):
    """A U-Net that makes maps smaller along some dimensions only, as for spectrograms, or pads what it skips."""

    def __init__(self, stride, *, canvas=False):
        super().__init__()
        self.stride, self.canvas, self.act = stride, canvas, OwnLike()
        self.first, self.deep, self.d, self.last = double(3, 8), double(8, 8), double(16, 8), c1(8, 1)

    def forward(self, x):
        one = self.act(self.first(x))
        up = F.interpolate(self.deep(F.max_pool2d(one, self.stride)), scale_factor=self.stride)
        if self.canvas:
            one, inner = one.new_zeros(one.shape), one
            one[:, :, 1:-1] = inner[:, :, 1:-1]
        return self.last(self.d(torch.cat([up, one], 1)))


class OwnLike(nn.Module):
    def forward(self, x):
        return x.relu() * x


class Grainy(nn.Module):
    """Adds noise, or a constant, to what it has upsampled."""

    def __init__(self, noise):
        super().__init__()
        self.noise, self.body = noise, nn.Sequential(nn.Upsample(scale_factor=2), c3(8, 8), nn.ReLU(), c3(8, 8))

    def forward(self, x):
        x = self.body(x)
        return F.relu(x + 0.1 * self.noise(x))


def separable(before, after, stride=1):
    return nn.Sequential(c3(before, before, stride, groups=before), nn.ReLU(), c1(before, after), nn.ReLU())


def separables():
    layers = [nn.Sequential(c3(3, 8, 2), nn.ReLU()), separable(8, 12), separable(12, 16, 2), separable(16, 16)]
    return Sleeve(nn.Sequential(*layers))


def onion():
    core = Onion(16, 16)
    core = Onion(8, 16, Onion(16, 16, core))
    return Sleeve(Onion(3, 8, core, is_outermost=True))


class Shelf(nn.Module):
    """Its only blocks, two of its head, have few of its convolutions."""

    def __init__(self):
        super().__init__()
        layers = [part for step in range(6) for part in (c3(8 if step else 3, 8, 1 + step % 2), nn.ReLU())]
        self.trunk, self.box, self.kind = nn.Sequential(*layers), double(8, 4), double(8, 4)

    def forward(self, x):
        x = self.trunk(x)
        return self.box(x), self.kind(x)


class FitSize(nn.Module):
    """Without children: resizes a map to the size of another one, of whose content it takes nothing."""

    def forward(self, like, x):
        return F.interpolate(x, size=like.shape[2:])


class Widen(nn.Module):
    """The same after a convolution, so that the operations can be seen."""

    def __init__(self):
        super().__init__()
        self.mix = c3(8, 8)

    def forward(self, like, x):
        return F.interpolate(self.mix(x), size=like.shape[2:])


class Riser(nn.Module):
    """A decoder block whose own forward adds the upsampled map and the earlier one."""

    def __init__(self, grow):
        super().__init__()
        self.grow, self.body = grow(), Darn()

    def forward(self, earlier, x):
        return self.body(earlier + self.grow(earlier, x))


class Finder(nn.Module):
    """A decoder block that finds the earlier map in an object, where a hook on the encoder stores it (fastai)."""

    def __init__(self, store):
        super().__init__()
        self.store, self.norm, self.merge = store, nn.BatchNorm2d(8), double(16, 8)

    def forward(self, x):
        return self.merge(F.relu(torch.cat([F.interpolate(x, scale_factor=2), self.norm(self.store.map)], 1)))


class Store:
    def __init__(self, module):
        module.register_forward_hook(self.keep)

    def keep(self, _module, _args, output):
        self.map = output


def finding():
    encoder = nn.Sequential(double(3, 8), nn.MaxPool2d(2), Darn(), nn.MaxPool2d(2), Darn())
    return nn.Sequential(encoder, Finder(Store(encoder[2])), Finder(Store(encoder[0])), c1(8, 2))


class Weighed(nn.Module):
    """A decoder block that scales the upsampled map by a gate from both maps before it joins them."""

    def __init__(self):
        super().__init__()
        self.low, self.high, self.merge = c1(8, 8), c1(8, 8), double(16, 8)

    def forward(self, earlier, x):
        x = F.interpolate(x, scale_factor=2)
        gate = self.low(x.mean((2, 3), True)).sigmoid() + self.high(earlier.mean((2, 3), True)).sigmoid()
        x = x * gate
        return self.merge(torch.cat([x, earlier], 1))


class Joined(nn.Module):
    """A decoder block that joins as many maps as it is given."""

    def __init__(self, count):
        super().__init__()
        self.merge = double(8 * count, 8)

    def forward(self, x, others):
        return self.merge(torch.cat([F.interpolate(x, scale_factor=2), others], 1))


class Woven(nn.Module):
    """A UNet++ whose decoder joins the maps of one size by itself."""

    def __init__(self):
        super().__init__()
        self.e1, self.e2, self.e3, self.decoder, self.last = c3(3, 8), c3(8, 8), c3(8, 8), Weave(), c1(8, 1)

    def forward(self, x):
        one = self.e1(x)
        two = self.e2(F.max_pool2d(one, 2))
        return self.last(self.decoder([one, two, self.e3(F.max_pool2d(two, 2))]))


class Weave(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = Joined(2), Joined(2), Joined(3)

    def forward(self, maps):
        one, two, three = maps
        across = self.a(two, one)
        return self.c(self.b(three, two), torch.cat([across, one], 1))


class Stairs(nn.Module):
    def __init__(self, riser):
        super().__init__()
        self.head, self.e1, self.e2, self.e3, self.last = c3(3, 8), Darn(), Darn(), Darn(), c1(8, 1)
        self.d2, self.d1 = riser(), riser()

    def forward(self, x):
        one = self.e1(self.head(x))
        two = self.e2(F.max_pool2d(one, 2))
        return self.last(self.d1(one, self.d2(two, self.e3(F.max_pool2d(two, 2)))))


class Landing(nn.Module):
    """A decoder block that upsamples in a child, as the last one without an earlier map."""

    def __init__(self, width=16):
        super().__init__()
        self.up, self.body = nn.Sequential(nn.Upsample(scale_factor=2), c3(8, 8)), double(width, 8)

    def forward(self, earlier, x):
        return self.body(self.up(x) if earlier is None else torch.cat([self.up(x), earlier], 1))


class Roofed(Stairs):
    def __init__(self):
        super().__init__(Landing)
        self.d0 = Landing(8)

    def forward(self, x):
        one = self.e1(self.head(F.max_pool2d(x, 2)))
        two = self.e2(F.max_pool2d(one, 2))
        return self.last(self.d0(None, self.d1(one, self.d2(two, self.e3(F.max_pool2d(two, 2))))))


class Scales(nn.Module):
    """Attention with a gate over channels and one over places."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.place = nn.Linear(8, 4), nn.Linear(4, 8), c1(8, 1)

    def forward(self, x):
        gate = self.b(F.relu(self.a(x.mean((2, 3))))).sigmoid()
        return x * gate[:, :, None, None] + x * self.place(x).sigmoid()


class Scaled(nn.Module):
    """A block that ends in such attention."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.end = c3(8, 8), c3(8, 8), Scales()

    def forward(self, x):
        return self.end(x + self.b(F.relu(self.a(x))))


class Around(nn.Module):
    """A skip connection around any part."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return x + self.part(x)


class Cell(nn.Module):
    """One convolution and a pooling; where it makes the map smaller, one more after the pooling."""

    def __init__(self, stride=1):
        super().__init__()
        self.stride, self.conv = stride, c3(8, 8, stride)
        self.side = c1(8, 8) if stride > 1 else nn.Identity()

    def forward(self, x):
        return F.relu(self.conv(x) + self.side(F.max_pool2d(x, 3, self.stride, 1)))


class Scaled3x3(nn.Module):
    """A convolution without children whose weights are scaled at run time, as generators have them."""

    def __init__(self, before, after, stride=1):
        super().__init__()
        self.weight, self.stride = nn.Parameter(torch.randn(after, before, 3, 3)), stride

    def forward(self, x):
        return F.conv2d(x, self.weight / 9, None, self.stride, 1)


class Blur(nn.Module):
    """Without parameters: a filter, no layer."""

    def forward(self, x):
        return F.conv2d(x, x.new_full((x.shape[1], 1, 3, 3), 1 / 9), None, 1, 1, 1, x.shape[1])


class Judge(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.blur, self.b, self.side = Scaled3x3(8, 8), Blur(), Scaled3x3(8, 8, 2), nn.AvgPool2d(2)

    def forward(self, x):
        return self.b(self.blur(F.relu(self.a(x)))) + self.side(x)


def judges():
    return nn.Sequential(Scaled3x3(3, 8), Judge(), Judge(), c1(8, 2))


class Envelope(nn.Module):
    """A layer as those of transformers: it returns a tuple of one map, and its second half has both convolutions."""

    def __init__(self):
        super().__init__()
        self.mix, self.mlp = nn.AvgPool2d(3, 1, 1), nn.Sequential(c1(8, 16), nn.ReLU(), c1(16, 8))

    def forward(self, x):
        x = x + self.mix(x)
        return (x + self.mlp(x),)


class Letters(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.layers = c3(3, 8), nn.ModuleList([Envelope(), Envelope()])

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            (x,) = layer(x)
        return x


class Fold(nn.Module):
    """A ConvNeXt block without its name."""

    def __init__(self):
        super().__init__()
        self.around, self.even = nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.LayerNorm(8)
        self.wide, self.narrow, self.scale = nn.Linear(8, 16), nn.Linear(16, 8), nn.Parameter(torch.full((8,), 0.5))

    def forward(self, x):
        y = self.even(self.around(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.narrow(F.gelu(self.wide(y)))).permute(0, 3, 1, 2)


class Glance(nn.Module):
    """A block of matrix products alone, unless it makes the map smaller."""

    def __init__(self, before, after, stride=1):
        super().__init__()
        self.reduce = nn.Conv2d(before, after, stride, stride) if stride > 1 else nn.Identity()
        self.wide, self.narrow = nn.Linear(after, 16), nn.Linear(16, after)

    def forward(self, x):
        x = self.reduce(x)
        return x + self.narrow(F.gelu(self.wide(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


class Step(nn.Module):
    """A block of an encoder that returns the smaller map and the one to join later; the last one only the latter."""

    def __init__(self, before, after, is_last=False):
        super().__init__()
        self.pair, self.is_last = double(before, after), is_last

    def forward(self, x):
        x = torch.tanh(self.pair(x)) + x[:, :1]
        return x if self.is_last else (F.max_pool2d(x, 2), x)


class Steps(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([Step(3, 8), Step(8, 8), Step(8, 8, is_last=True)])
        self.up = nn.ModuleList([double(16, 8), double(16, 8)])

    def forward(self, x):
        x, first = self.down[0](x)
        x, second = self.down[1](x)
        x = self.down[2](x)
        for up, one in zip(self.up, (second, first), strict=True):
            x = up(torch.cat((F.interpolate(x, scale_factor=2), one), 1))
        return x


class Lantern(nn.Module):
    """A U-Net that is given two maps, and joins none of them."""

    def __init__(self):
        super().__init__()
        self.enter, self.down, self.rise = c3(3, 8), c3(8, 8, 2), nn.ConvTranspose2d(8, 8, 2, 2)
        self.deep, self.join, self.mix = Darn(), c1(16, 8), Darn()

    def forward(self, x, light):
        x = self.enter(x) + light
        return self.mix(self.join(torch.cat((self.rise(self.deep(self.down(x))), x), 1)))


class Lit(nn.Module):
    def __init__(self):
        super().__init__()
        self.light, self.lantern, self.out = c3(3, 8), Lantern(), c1(8, 3)

    def forward(self, x):
        return self.out(self.lantern(x, self.light(x)))


class Ebb(nn.Module):
    """A block of an encoder that also returns the indices of its pooling."""

    def __init__(self, before, after):
        super().__init__()
        self.pair, self.pool = double(before, after), nn.MaxPool2d(2, return_indices=True)

    def forward(self, x):
        return self.pool(self.pair(x))


class Surge(nn.Module):
    """A stage that hands these indices on."""

    def __init__(self, width):
        super().__init__()
        self.first, self.rest = Ebb(width, width), nn.Sequential(Darn(width), Darn(width))

    def forward(self, x):
        x, where = self.first(x)
        return self.rest(x), where


class Flow(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.pair, self.unpool = double(before, after), nn.MaxUnpool2d(2)

    def forward(self, x, where):
        return self.pair(self.unpool(x, where))


class Tides(nn.Module):
    def __init__(self):
        super().__init__()
        self.e1, self.e2, self.deep, self.d2, self.d1 = Ebb(3, 8), Surge(8), Darn(), Flow(8, 8), Flow(8, 8)

    def forward(self, x):
        x, first = self.e1(x)
        x, second = self.e2(x)
        return self.d1(self.d2(self.deep(x), second), first)


class Factor(nn.Module):
    """As in MLFN: a residual block that also returns a vector, a 1x1 map or a token."""

    def __init__(self, side):
        super().__init__()
        self.body, self.side = Darn(), side

    def forward(self, x):
        x = F.relu(self.body(x))
        return x, self.side(x)


class Factors(nn.Module):
    def __init__(self, side):
        super().__init__()
        self.stem, self.blocks = c3(3, 8), nn.ModuleList(Factor(side) for _ in range(3))

    def forward(self, x):
        x, factors = self.stem(x), 0
        for block in self.blocks:
            x, factor = block(x)
            factors = factors + factor
        return x, factors


class Echo(nn.Module):
    """A later stage reads a copy of the image, too, which is smaller, or interpolated to its own size."""

    def __init__(self, stride):
        super().__init__()
        self.stride, self.stem, self.stage = stride, c3(3, 5, stride), nn.Sequential(Darn(), Darn())

    def forward(self, x):
        return self.stage(torch.cat([self.stem(x), F.interpolate(x, scale_factor=1 / self.stride)], 1))


class Row(nn.Module):
    """A container of the user's own; its last part may make the map smaller."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x


def rows():
    """Stages in the class that also holds two plain convolutions at the end."""
    return nn.Sequential(Row(c3(3, 8), Darn()), Row(Darn(), Darn()), Row(Darn(), Darn()), Row(c3(8, 8), c1(8, 2)))


def shrinking(count, *last):
    stages = (Row(*(Darn() for _ in range(count)), *last) for _ in range(2))
    return nn.Sequential(c3(3, 8), *stages, c1(8, 2))


class Cast(Row):
    def forward(self, x):
        return super().forward(x).contiguous().to(x.dtype)


class Poured(nn.Module):
    """A decoder block with an operation after the upsampling."""

    def __init__(self, then):
        super().__init__()
        self.then, self.merge = then, double(16, 8)

    def forward(self, earlier, x):
        return self.merge(torch.cat([self.then(F.interpolate(x, scale_factor=2)), earlier], 1))


class Spread(Darn):
    """Adds its input, or the mean of it, after an interpolation, as BiSeNet and PAN do."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        other = F.interpolate(F.adaptive_avg_pool2d(x, self.size), size=x.shape[2:])
        return self.second(F.relu(self.first(x))) + other


class Faded(Darn):
    """Its skip connection is multiplied by a number or a parameter."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor + self.second(F.relu(self.first(x)))


class Dimmed(Darn):
    """Its branch is multiplied by a gate of its size."""

    def __init__(self, squash):
        super().__init__()
        self.gate, self.squash = c3(8, 8), squash

    def forward(self, x):
        y = self.second(F.relu(self.first(x)))
        return x + y * self.squash(self.gate(y))


class Heeding(nn.Module):
    """Attention and a convolution beside it, none of which is a skip connection."""

    def __init__(self):
        super().__init__()
        self.qkv, self.places = c1(8, 24), c3(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(x).flatten(2).mT.chunk(3, 2)
        y = F.scaled_dot_product_attention(q, k, v)
        return y.mT.view(x.shape) + self.places(v.mT.reshape(x.shape))


def between(make, argument):
    """Two blocks between a stem and a head."""
    return nn.Sequential(c3(3, 8), make(argument), make(argument), c1(8, 2))


class Shortened(nn.Module):
    """A residual block of separable convolutions that makes the map smaller, as in Xception."""

    def __init__(self):
        super().__init__()
        thin = (Row(nn.Conv2d(8, 8, 3, padding=1, groups=8), c1(8, 8)) for _ in range(2))
        self.body, self.skip = nn.Sequential(*thin, nn.MaxPool2d(2)), c1(8, 8, 2)

    def forward(self, x):
        return self.body(x) + self.skip(x)


class Choice(nn.Module):
    """A block with a gate for each of two branches, computed from both, as in a selective kernel."""

    def __init__(self):
        super().__init__()
        self.near, self.far, self.gate, self.end = c3(8, 8), c3(8, 8), c1(8, 16), c1(8, 8)

    def forward(self, x):
        near, far = F.relu(self.near(x)), F.relu(self.far(x))
        gates = self.gate((near + far).mean((2, 3), keepdim=True)).unflatten(1, (2, 8)).softmax(1)
        return x + self.end(near * gates[:, 0] + far * gates[:, 1])


class Cup(nn.Module):
    """A U-Net whose head reads the last join."""

    def __init__(self, *head):
        super().__init__()
        self.a, self.b, self.c, self.mix = c3(3, 8), c3(8, 12, 2), c3(12, 16, 2), nn.Sequential(c3(24, 16), nn.ReLU())
        self.up2, self.up1 = nn.ConvTranspose2d(16, 12, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.head = nn.Sequential(*head)

    def forward(self, x):
        a = self.a(x)
        b = self.b(a)
        x = self.mix(torch.cat([self.up2(self.c(b)), b], 1).contiguous())
        return torch.sigmoid(2 * F.interpolate(self.head(torch.cat([self.up1(x), a], 1)), scale_factor=2))


class Spilt(Cup):
    """It rearranges what its head returns."""

    def forward(self, x):
        y = super().forward(x)[..., :30, :30]
        return torch.cat([1 - y, y], 1).flatten(2).contiguous()


class Masked(nn.Module):
    """Most of the network estimates a mask of its features, as in Conv-TasNet."""

    def __init__(self, *parts):
        super().__init__()
        self.enter, self.part, self.leave = c3(3, 8), nn.Sequential(*parts), c3(8, 3)

    def forward(self, x):
        x = self.enter(x)
        return self.leave(x * self.part(x))


class Product(nn.Module):
    """A residual block whose branch is the product of two, as in WaveNet."""

    def __init__(self, left, right):
        super().__init__()
        self.left, self.right = nn.Sequential(c3(8, 8), left), nn.Sequential(c3(8, 8), right)

    def forward(self, x):
        return x + self.left(x) * self.right(x)


def products(*ends):
    return nn.Sequential(c3(3, 8), Product(*ends), Product(*ends), c1(8, 2))


class Primer(nn.Module):
    """The start of a pre-activation block, which returns the skip connection, too."""

    def __init__(self, before, after):
        super().__init__()
        self.norm, self.side = nn.BatchNorm2d(before), c1(before, after)

    def forward(self, x):
        x = F.relu(self.norm(x))
        return x, self.side(x)


class Primed(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.primer, self.a, self.b = Primer(before, after), c3(before, after), c3(after, after)

    def forward(self, x):
        x, side = self.primer(x)
        return self.b(F.relu(self.a(x))) + side


class Binary(nn.Module):
    """A residual block of one convolution, as in BiRealNet: where it projects, both operands have one."""

    def __init__(self, before, after, stride=1):
        super().__init__()
        self.conv = nn.Sequential(c3(before, after, stride), nn.Tanh())
        self.side = nn.Identity() if before == after else c1(before, after, stride)

    def forward(self, x):
        return self.conv(x) + self.side(x)


class Padded(nn.Module):
    """Its skip connection is pooled and padded with zeros, as in ENet and PyramidNet."""

    def __init__(self):
        super().__init__()
        self.first, self.second = c3(8, 16, 2), c3(16, 16)

    def forward(self, x):
        y = F.max_pool2d(x, 2)
        y = torch.cat([y, torch.zeros(y.shape, dtype=y.dtype)], 1)
        return (y + self.second(F.relu(self.first(x))))[:, 4:12]


class Gated(nn.Module):
    """Residual blocks, after each a module that returns a gate of the size of the map, also beside its mean."""

    def __init__(self, is_pair=False):
        super().__init__()
        self.is_pair = is_pair
        self.stem, self.blocks = c3(3, 8), nn.ModuleList(Darn() for _ in range(2))
        self.gates = nn.ModuleList(Judging(is_pair) for _ in range(2))

    def forward(self, x):
        x = self.stem(x)
        for block, gate in zip(self.blocks, self.gates, strict=True):
            x = block(x)
            x = x * (gate(x)[0] if self.is_pair else gate(x))
        return x


class Judging(nn.Module):
    def __init__(self, is_pair):
        super().__init__()
        self.is_pair = is_pair
        self.a, self.b = c3(8, 8), c1(8, 8)

    def forward(self, x):
        gate = torch.sigmoid(self.b(F.relu(self.a(x))))
        return (gate, gate.mean((2, 3))) if self.is_pair else gate


class Tap(nn.Module):
    """A layer that returns its map and a summand of the network's output, as in WaveNet."""

    def __init__(self):
        super().__init__()
        self.near, self.out, self.tap = c3(8, 8), c1(8, 8), c1(8, 8)

    def forward(self, x):
        y = torch.tanh(self.near(x))
        return x + self.out(y), self.tap(y)


class Taps(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.taps = c3(3, 8), nn.ModuleList(Tap() for _ in range(3))

    def forward(self, x):
        x, total = self.taps[0](self.stem(x))
        for tap in self.taps[1:]:
            x, one = tap(x)
            total = total + one
        return total


class Crossing(nn.Module):
    """Each of two streams gets the other, as in HRNet."""

    def __init__(self):
        super().__init__()
        self.down, self.up = c3(8, 8, 2), c1(8, 8)

    def forward(self, fine, coarse):
        up = F.interpolate(self.up(coarse), size=fine.shape[-2:])
        return fine + up, coarse + self.down(fine)


class Sum(nn.Module):
    """Like the next four, a module without children that joins its inputs, under a name of its own."""

    def forward(self, a, b):
        return a + b


class RectifiedSum(nn.Module):
    def forward(self, a, b):
        return F.relu(a + b)


class ListSum(nn.Module):
    def forward(self, *given):
        return given[0] + given[1]


class Stacked(nn.Module):
    def forward(self, a, b):
        return torch.cat((a, b), 1)


class Times(nn.Module):
    def forward(self, a, b):
        return a * b


class Merging(nn.Module):
    """A residual block with a gate, each join of which is a module; its shortcut has as many convolutions."""

    def __init__(self, merge):
        super().__init__()
        self.first, self.second, self.side, self.gate = c3(8, 8, 2), c3(8, 8), c3(8, 8, 2), c3(8, 8)
        self.merge, self.factor = merge(), Times()

    def forward(self, x):
        y = self.second(F.relu(self.first(x)))
        return self.merge(self.factor(y, torch.sigmoid(self.gate(y))), self.side(x))


class Sewn(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.up, self.merge = double(3, 8), c3(8, 8, 2), nn.ConvTranspose2d(8, 8, 2, 2), Stacked()
        self.mix, self.head = double(16, 8), c1(8, 2)

    def forward(self, x):
        a = self.a(x)
        return self.head(self.mix(self.merge(self.up(self.b(a)), a)))


class Logged(nn.Module):
    """A residual block whose spatial gate is also stored, returned, or read by an operation."""

    def __init__(self, log):
        super().__init__()
        self.log, self.first, self.second, self.gate = log, c3(8, 8), c3(8, 8), c3(2, 1)

    def forward(self, x):
        y = self.second(F.relu(self.first(x)))
        gate = torch.sigmoid(self.gate(torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)))
        self.seen = self.log(gate)
        return x + y * gate


class Reverse(nn.Module):
    """Reverse attention: each mask scales an earlier map, and is added to the next mask (PraNet, CaraNet)."""

    def __init__(self, *, is_returned):
        super().__init__()
        self.is_returned, self.stem = is_returned, c3(3, 8)
        self.levels, self.mask = nn.ModuleList(nn.Sequential(Darn(), Darn()) for _ in range(3)), c1(8, 1)
        self.refine = nn.ModuleList(c3(8, 1) for _ in range(2))

    def forward(self, x):
        maps = [self.levels[0](self.stem(x))]
        for level in self.levels[1:]:
            maps.append(level(F.max_pool2d(maps[-1], 2)))
        masks = [self.mask(maps[-1])]
        for low, refine in zip(maps[-2::-1], self.refine, strict=True):
            up = F.interpolate(masks[-1], scale_factor=2)
            masks.append(refine((1 - torch.sigmoid(up)).expand(-1, 8, -1, -1) * low) + up)
        return tuple(masks) if self.is_returned else masks[-1]


class Linear(nn.Module):
    """Linear attention: the sum over all positions is added at each of them."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.end = c1(8, 2), c1(8, 2), c1(8, 8), nn.Identity()

    def forward(self, x):
        q, k, v = (one(x).flatten(2) for one in (self.q, self.k, self.v))
        y = v.sum(-1, keepdim=True).expand_as(v) + torch.einsum("bmn,bcm->bcn", q, torch.einsum("bmn,bcn->bcm", k, v))
        return x + self.end((y / v.shape[-1]).view_as(x))


class Streams(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.crossings = c3(3, 8), nn.ModuleList([Crossing(), Crossing()])
        self.fine, self.coarse = (nn.ModuleList([Darn(), Darn()]) for _ in range(2))

    def forward(self, x):
        fine = self.stem(x)
        coarse = F.avg_pool2d(fine, 2)
        for first, second, crossing in zip(self.fine, self.coarse, self.crossings, strict=True):
            fine, coarse = crossing(first(fine), second(coarse))
        return fine.mean((2, 3)) + coarse.mean((2, 3))


LEVELS = "net.peel.2 net.peel.2.peel.2 net.peel.2.peel.2.peel.2"
TRUNK = "1.part.{0,1}.second"
CHALICE = "1.{side,before,after} 1.inner.{side,before,after} 1.inner.inner.{0,1}"
CASES = [
    (lambda: Cup(c1(16, 2), nn.Sigmoid()), "unet", "mix"),
    (lambda: Cup(c3(16, 8), nn.ReLU(), c1(8, 2)), "unet", "mix"),
    (lambda: Cup(c3(16, 8), nn.ReLU(), c1(8, 20)), "unet", "mix"),
    (lambda: Cup(c3(16, 8), nn.ReLU(), c1(8, 1), nn.Softplus()), "unet", "mix"),
    (lambda: Cup(c3(16, 8), nn.ReLU(), c1(8, 2), nn.BatchNorm2d(2)), "unet", "mix"),
    (lambda: Cup(c3(16, 3), nn.ReLU(), c3(3, 3)), "unet", "mix"),
    (lambda: Cup(c3(16, 8), nn.ReLU(), c3(8, 8), nn.ReLU()), "unet", "mix head"),
    (lambda: Cup(c3(16, 8), nn.ReLU(), c1(8, 8), nn.BatchNorm2d(8)), "unet", "mix head"),
    (lambda: Cup(Rim(16, 8)), "unet", "mix head"),
    (lambda: nn.Sequential(Binary(3, 8), Binary(8, 8), Binary(8, 12, 2)), "residual", "{0,1,2}.conv"),
    (lambda: nn.Sequential(c3(3, 8), Padded(), Padded()), "residual", "{1,2}.second"),
    (Gated, "block-output", "blocks.{0,1}"),
    (Gated, "paper", "blocks.{0,1}.second"),
    (lambda: Gated(is_pair=True), "block-output", "blocks.{0,1}"),
    (Taps, "residual", "taps.{0,1}.out"),
    *[(lambda kind=kind: between(Merging, kind), "paper", "{1,2}.second") for kind in (Sum, RectifiedSum, ListSum)],
    *[(lambda kind=kind: between(Merging, kind), "residual", "{1,2}.factor") for kind in (Sum, RectifiedSum, ListSum)],
    (Sewn, "unet", "mix"),
    (lambda: between(Logged, lambda gate: gate.detach().cpu()), "paper", "{1,2}.second"),
    (lambda: between(Logged, lambda gate: gate.mean().abs()), "paper", "{1,2}.second"),
    (lambda: between(Logged, lambda gate: -(gate * gate.log()).sum()), "paper", "{1,2}.second"),
    (lambda: Reverse(is_returned=True), "block-output", "levels.{0,1,2}.{0,1}"),
    (lambda: Reverse(is_returned=False), "paper", "levels.{0,1,2}.{0,1}.second"),
    (lambda: nn.Sequential(c3(3, 8, 4), Linear(), c1(8, 2)), "residual", "1.end"),
    (Streams, "paper", "{fine,coarse}.{0,1}.second"),
    (judges, "every-conv", "0 {1,2}.{a,b} 3"),
    (judges, "paper", "{1,2}.b"),
    (judges, "residual", "{1,2}.b"),
    (lambda: Stairs(lambda: Riser(FitSize)), "unet", "d2 d1"),
    (lambda: Stairs(lambda: Riser(Widen)), "unet", "d2 d1"),
    (lambda: Stairs(Weighed), "unet", "d2 d1"),
    (Woven, "unet", "decoder.{a,b,c}"),
    (finding, "unet", "{1,2}"),
    (lambda: Stairs(lambda: Riser(Widen)), "residual", "{e1,e2,e3}.second {d2,d1}.body.second"),
    (lambda: nn.Sequential(c3(3, 8), Scaled(), Scaled(), c1(8, 2)), "paper", "{1,2}.b"),
    (lambda: nn.Sequential(c3(3, 8), Scaled(), Scaled(), c1(8, 2)), "block-output", "{1,2}"),
    (lambda: nn.Sequential(c3(3, 8), Choice(), Choice(), c1(8, 2)), "paper", "{1,2}.far"),
    (lambda: nn.Sequential(c3(3, 8), Around(nn.Sequential(Darn(), Darn(), c3(8, 8))), c3(8, 3)), "paper", TRUNK),
    (lambda: nn.Sequential(c3(3, 8), Around(nn.Sequential(Darn(), c3(8, 8))), c3(8, 3)), "block-output", "1"),
    (lambda: nn.Sequential(c3(3, 8), Cell(), Cell(2), Cell(), Cell(2), Cell(), c1(8, 2)), "paper", "{1,2,3,4,5}.conv"),
    (Sharpen, "block-output", "body.{0,1,2}"),
    (lambda: Sleeve(Sharpen()), "block-output", "net.body.{0,1,2}"),
    (lambda: Sleeve(Sleeve(Sharpen())), "paper", "net.net.body.{0,1,2}.second"),
    (Basin, "paper", "{down1,down2,deep,up2,up1}.2"),
    (Basin, "unet", "up2 up1"),
    (lambda: Sleeve(Basin()), "unet", "net.up2 net.up1"),
    (lambda: Behind(Basin()), "unet", "net.up2 net.up1"),
    (Stitch, "unet", "dec2 dec1"),
    (lambda: Sleeve(Stitch()), "unet", "net.dec2 net.dec1"),
    (lambda: Sleeve(Stitch()), "block-output", "net.{enc1,enc2,dec2,dec1}.{0,1} net.deep.0"),
    (Stitch, "residual", "{enc1,enc2,dec2,dec1}.{0,1}.second deep.0.second tail"),
    (onion, "unet", LEVELS),
    (lambda: nn.Sequential(double(3, 8), Hooded(8, 8, Hooded(8, 8)), c1(8, 2)), "unet", "1 1.core.4"),
    (Ladle, "unet", "up2 up1"),
    (lambda: Sleeve(Ladle()), "unet", "net.up2 net.up1"),
    (lambda: Enlarging(lambda before, after: Given(before + after, after)), "unet", "up2 up1"),
    (lambda: Joining(lambda before, after: Rim(before + after, after)), "unet", "up2 up1"),
    (lambda: Swelling(lambda before, after: Given(before + after, after)), "unet", "up2 up1"),
    (lambda: Aligning(lambda before, after: Given(before + after, after)), "unet", "up2 up1"),
    (Roofed, "unet", "d2 d1 d0"),
    (lambda: Flat((1, 2)), "unet", "d"),
    (lambda: Flat((2, 2), canvas=True), "unet", "d"),
    (lambda: Ascent(Meld), "unet", "up2 up1"),
    (lambda: Ascent(Crop), "unet", "up2 up1"),
    (lambda: nn.Sequential(c3(3, 8), Chalice(2), c1(8, 2)), "block-output", CHALICE),
    (Distil, "block-output", "f1 f2 f3 g2 g1"),
    (Distil, "residual", "{f1,f2,f3,g2,g1}.d1"),
    (Distil, "unet", "g2 g1"),
    (generator, "residual", "{1,2}.k2"),
    (generator, "unet", ""),
    (lambda: between(Grainy, torch.rand_like), "unet", ""),
    (lambda: between(Grainy, lambda x: torch.ones(x.shape)), "unet", ""),
    (lambda: nn.Sequential(c3(3, 8), Darn(), Spread(1), c1(8, 2)), "residual", "1.second"),
    (lambda: nn.Sequential(c3(3, 8), Darn(), Spread((None, None)), c1(8, 2)), "residual", "1.second"),
    (Shelf, "block-output", ""),
    (lambda: nn.Sequential(c3(3, 8, 2), Fold(), Fold(), c1(8, 2)), "convnext", "{1,2}.around"),
    (Letters, "block-output", "layers.{0,1}:0"),
    (lambda: nn.Sequential(c3(3, 8), Glance(8, 8, 2), Glance(8, 8), Glance(8, 8)), "block-output", "{1,2,3}"),
    (Steps, "paper", "down.{0,1,2}.pair.2"),
    (Steps, "block-output", "down.{0,1}:0 down.{0,1}:1 down.2"),
    (Lit, "unet", "lantern.mix"),
    (Tides, "paper", "{e1,e2.first,d2,d1}.pair.2 {e2.rest.0,e2.rest.1,deep}.second"),
    (Tides, "block-output", "{e1,e2.first}:0 e2.rest.{0,1} deep d2 d1"),
    (lambda: Factors(lambda x: x.mean((2, 3))), "block-output", "blocks.{0,1,2}:0"),
    (lambda: Factors(lambda x: x.mean((2, 3), keepdim=True)), "paper", "blocks.{0,1,2}.body.second"),
    (lambda: Factors(lambda x: x.mean((2, 3))[:, None]), "block-output", "blocks.{0,1,2}:0"),
    (lambda: Factors(lambda x: x.mean((2, 3))[:, None, None]), "block-output", "blocks.{0,1,2}:0"),
    (lambda: Factors(lambda x: x.mean((2, 3)).unflatten(1, (2, 4))), "block-output", "blocks.{0,1,2}:0"),
    (lambda: Masked(Darn(), Darn(), c1(8, 8), nn.Sigmoid()), "paper", "part.{0,1}.second"),
    (lambda: Masked(Darn(), Darn(), c1(8, 1), nn.Sigmoid()), "block-output", "part.{0,1}"),
    (lambda: products(nn.Tanh(), nn.Sigmoid()), "paper", "{1,2}.left.0"),
    (lambda: products(nn.ReLU6(), nn.ReLU6()), "paper", "{1,2}.right.0"),
    (lambda: nn.Sequential(c3(3, 8), Primed(8, 8), Primed(8, 12)), "residual", "{1,2}.b"),
    (lambda: Spilt(c3(16, 8), nn.ReLU(), c1(8, 2)), "unet", "mix"),
    (lambda: Echo(2), "unet", ""),
    (lambda: Echo(1), "unet", ""),
    (separables, "paper", "net.{1,2,3}.0"),
    (separables, "block-output", "net.{1,2,3}"),
    (rows, "block-output", "0.parts.1 {1,2}.parts.{0,1}"),
    (lambda: shrinking(2, c3(8, 8, 2)), "paper", "{1,2}.parts.{0,1}.second"),
    (lambda: shrinking(2, nn.MaxPool2d(2)), "block-output", "{1,2}.parts.{0,1}"),
    (lambda: shrinking(1, nn.MaxPool2d(2)), "block-output", "{1,2}"),
    (lambda: nn.Sequential(c3(3, 8), Shortened(), Shortened(), c1(8, 2)), "block-output", "{1,2}"),
    (lambda: shrinking(2, nn.Identity()), "block-output", "{1,2}.parts.{0,1}"),
    (lambda: shrinking(2, nn.Dropout(0.1), nn.Sequential()), "paper", "{1,2}.parts.{0,1}.second"),
    (lambda: between(lambda count: Cast(*(Darn() for _ in range(count))), 2), "block-output", "{1,2}.parts.{0,1}"),
    (
        lambda: nn.Sequential(c3(3, 8), Around(Row(Darn(), Darn(), c3(8, 8))), c3(8, 3)),
        "paper",
        "1.part.parts.{0,1}.second",
    ),
    (lambda: Stairs(lambda: Poured(lambda x: x.float().to(x.dtype))), "unet", "d2 d1"),
    (lambda: Stairs(lambda: Poured(lambda x: x.clone().type_as(x))), "unet", "d2 d1"),
    (lambda: Stairs(lambda: Poured(lambda x: x / 2)), "unet", "d2 d1"),
    (lambda: nn.Sequential(c3(3, 8), Darn(), Heeding(), c1(8, 2)), "residual", "1.second"),
    (lambda: between(Faded, 0.5), "residual", "{1,2}.second"),
    (lambda: between(Faded, nn.Parameter(torch.rand(8, 1, 1))), "residual", "{1,2}.second"),
    (lambda: between(Dimmed, lambda x: x.float().sigmoid().to(x.dtype)), "paper", "{1,2}.second"),
    (lambda: between(Dimmed, lambda x: x.flatten(2).softmax(1).view_as(x)), "paper", "{1,2}.second"),
    (lambda: between(Dimmed, lambda x: F.relu6(x + 3) / 6), "paper", "{1,2}.second"),
]


@pytest.mark.parametrize(("factory", "recipe", "places"), CASES)
def test_sites(factory, recipe, places):
    check(factory, recipe, places)


def check(factory, recipe, places):
    """The sites, and the outputs of plain hooks at them."""
    torch.manual_seed(2)
    stock = factory().double().eval()
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    if not places:
        with pytest.raises(NoMatchError, match=r"no module (joins an upsampled|that returns one) feature map"):
            plan(stock, recipe, example_inputs=image)
        return
    model = inject(copy.deepcopy(stock), recipe, example_inputs=image, e_lambda=E_LAMBDA, verify=False)
    places = spread(places)
    assert {one.path for one in injected(model)} == set(places)
    with torch.no_grad():
        with hooked(stock, places):
            expected = stock(image)
        assert_right(model(image), expected, stock(image))


class Warp(nn.Module):
    """A deformable convolution; one convolution computes its offsets and its mask."""

    def __init__(self):
        super().__init__()
        self.where, self.sample = c3(8, 27), DeformConv2d(8, 8, 3, padding=1)

    def forward(self, x):
        *offsets, mask = self.where(x).chunk(3, 1)
        return self.sample(x, torch.cat(offsets, 1), mask.sigmoid())


class Warped(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.warp, self.out = c1(8, 8), Warp(), c1(8, 8)

    def forward(self, x):
        return x + self.out(F.relu(self.warp(F.relu(self.into(x)))))


@pytest.mark.parametrize(
    ("recipe", "places"), [("paper", "{1,2}.warp.sample"), ("residual", "{1,2}.out"), ("block-output", "{1,2}")]
)
def test_deformable_convolutions(recipe, places):
    check(lambda: nn.Sequential(c3(3, 8), Warped(), Warped(), c1(8, 2)), recipe, places)


class Elsewhere(nn.Module):
    """A network of its own computes the offsets; or they are a result, as in RepPoints."""

    def __init__(self, is_result):
        super().__init__()
        self.is_result, self.stem, self.side = is_result, c3(3, 8), c3(3, 8)
        self.off, self.where = nn.Sequential(Darn(), Darn()), c3(8, 18)
        self.sample = DeformConv2d(8, 8, 3, padding=1)

    def forward(self, x):
        maps = self.stem(x)
        where = self.where(self.off(maps if self.is_result else self.side(x)))
        found = self.sample(maps, where)
        return torch.cat([found, where], 1) if self.is_result else found


@pytest.mark.parametrize("is_result", [False, True])
def test_blocks_that_do_not_compute_offsets_alone(is_result):
    check(lambda: Elsewhere(is_result), "block-output", "off.{0,1}")


class Whole(nn.Module):
    """A module without children, whose own parameters compute the offsets too."""

    def __init__(self):
        super().__init__()
        self.where, self.weight = nn.Parameter(torch.randn(18, 8, 3, 3) / 8), nn.Parameter(torch.randn(8, 8, 3, 3) / 8)

    def forward(self, x):
        return deform_conv2d(x, F.conv2d(x, self.where, padding=1), self.weight, padding=1)


class Thick(Darn):
    def __init__(self):
        super().__init__()
        self.second = Whole()


def test_a_module_that_is_a_deformable_convolution_with_its_offsets():
    check(lambda: nn.Sequential(c3(3, 8), Thick(), Thick(), c1(8, 2)), "paper", "{1,2}.second")


class Waves(nn.Module):
    def __init__(self):
        super().__init__()
        self.filters, self.head = nn.Conv1d(1, 8, 8, 4), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.filters(x[:, None]).mean(2))


@pytest.mark.parametrize("name", ["Speech", "SpeechConvNet", "ConvSpeech"])
def test_the_name_of_a_network_does_not_change_the_reduction(name):
    net = type(name, (Waves,), {})().eval()
    (found,) = plan(net, "every-conv", example_inputs=torch.rand(2, 512)).insertions
    assert found.reduction == 4


class Sampled(Warp):
    """The same by the function, with its parameters in the module."""

    def forward(self, x):
        *offsets, mask = self.where(x).chunk(3, 1)
        options = {"bias": self.sample.bias, "stride": 2, "padding": 1, "mask": mask.sigmoid()[:, :, ::2, ::2]}
        return deform_conv2d(x, torch.cat(offsets, 1)[:, :, ::2, ::2], self.sample.weight, **options)


def test_a_deformable_convolution_has_the_facts_of_a_convolution():
    net, image = nn.Sequential(c3(3, 8), Sampled(), c1(8, 2)), torch.rand(2, 3, 16, 16)
    rule = {"path": "*", "after": {"op": "conv", "kernel": 3, "stride": 2, "groups": 1, "dilation": 1}}
    found = plan(net, {"rules": [rule]}, example_inputs=image)
    assert [one.path for one in found.insertions] == ["1.deform_conv2d"]


class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = c3(8, 8)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), c1(8, 4), nn.ReLU(), c1(4, 8), nn.Sigmoid())

    def forward(self, x):
        x = self.wide(x)
        return x * self.gate(x)


def test_convolutions_of_1x1_maps_make_no_main_block():
    with pytest.raises(NoMatchError, match="has two convolutions of maps larger than 1x1"):
        plan(nn.Sequential(c3(3, 8), Squeezed(), Squeezed()), "paper", example_inputs=torch.rand(2, 3, 16, 16))


class Frames(nn.Module):
    """Frames are folded into the batch, in a net of one size."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(c3(3, 8, 2), Darn(), Darn(), nn.Flatten(), nn.Linear(8 * 8 * 8, 2))

    def forward(self, x):
        return self.net(x.flatten(0, 1)).unflatten(0, x.shape[:2])


@pytest.mark.parametrize("recipe", ["paper", "block-output", "stage-end"])
def test_blocks_whose_axes_cannot_be_used_are_named_with_the_reason(recipe):
    with pytest.raises(NoMatchError, match=r"(?m)^  net\.1.*: its first dimension grows by 3"):
        plan(Frames(), recipe, example_inputs=torch.rand(2, 3, 3, 16, 16))


class Auxiliary(nn.Module):
    """One block, whose output only training uses."""

    def __init__(self):
        super().__init__()
        self.stem, self.aux, self.head = c3(3, 8, 2), Darn(), c3(8, 2)

    def forward(self, x):
        x = self.stem(x)
        extra = self.aux(x)
        return (self.head(x), extra) if self.training else self.head(x)


@pytest.mark.parametrize("recipe", ["paper", "block-output"])
def test_a_block_that_only_training_uses_is_named_with_the_reason(recipe):
    with pytest.raises(NoMatchError, match=r"aux.*: (its output is never used|no output of the model depends on it)"):
        plan(Auxiliary().eval(), recipe, example_inputs=torch.rand(2, 3, 16, 16))


def test_an_operation_that_nothing_computes():
    volume = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 4, 3, padding=1))
    image = torch.rand(1, 1, 8, 8, 8)
    for recipe in ("mobile", {"rules": [{"path": "*", "after": "conv2d"}]}):
        with pytest.raises(NoMatchError, match=r"nothing at '\*' computes conv2d; .* conv3d \(2\), relu \(1\)"):
            plan(volume, recipe, example_inputs=image)
    with pytest.raises(NoMatchError, match="has no value at 'layr"):
        plan(volume, {"rules": [{"path": "layr.*", "after": {"op": "conv2d"}}]}, example_inputs=image)
