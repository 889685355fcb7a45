"""Modules that make the results of a network do not count as blocks.

Each net has neighbours that are built alike and must stay.
"""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn

from tests.nets.parts import Kwik, c1, c3
from tests.nets.test_structures import Darn, Sleeve, check, double


class Ravine(nn.Module):
    """An encoder that returns its maps, and a decoder that joins them."""

    def __init__(self, decoder):
        super().__init__()
        self.one, self.two, self.decoder = Kwik(3, 8), Kwik(8, 8, stride=2), decoder

    def forward(self, x):
        one = self.one(x)
        return self.decoder([one, self.two(one)])


class Labels(nn.Module):
    """A decoder that ends in the labels, as DeepLab's, or in features."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, maps):
        high, low = maps
        return self.parts(torch.cat([high, F.interpolate(low, scale_factor=2)], 1))


class Matte(nn.Module):
    """A decoder that joins twice, and ends in a matte."""

    def __init__(self):
        super().__init__()
        self.near, self.mix, self.end = Kwik(3, 8), Kwik(16, 8), nn.Sequential(Kwik(11, 4), c1(4, 1))

    def forward(self, image, low):
        high = F.avg_pool2d(self.near(image), 2)
        y = self.mix(torch.cat([F.interpolate(low, scale_factor=2), high], 1))
        return self.end(torch.cat([F.interpolate(y, scale_factor=2), image], 1)).sigmoid()


class Matting(nn.Module):
    def __init__(self):
        super().__init__()
        self.low, self.matte = nn.Sequential(Kwik(3, 8, stride=2), Kwik(8, 8, stride=2)), Matte()

    def forward(self, x):
        return self.matte(x, self.low(x))


class Ink(nn.Module):
    """Makes an image of a map, and adds a smaller image: a generator's decoder of three channels."""

    def __init__(self):
        super().__init__()
        self.ink = c1(8, 3)

    def forward(self, x, image):
        return self.ink(x) + F.interpolate(image, scale_factor=2)


class Printing(nn.Module):
    def __init__(self):
        super().__init__()
        self.start, self.first, self.bodies = c3(3, 8, 4), c1(8, 3), nn.ModuleList([Darn(), Darn()])
        self.inks = nn.ModuleList([Ink(), Ink()])

    def forward(self, x):
        x = self.start(x)
        image = self.first(x)
        for body, ink in zip(self.bodies, self.inks, strict=True):
            x = body(F.interpolate(x, scale_factor=2))
            image = ink(x, image)
        return image


class Second(nn.Module):
    """A coarse result, perhaps returned, from which the network computes a weight for each class and a finer one."""

    def __init__(self, *, is_returned):
        super().__init__()
        self.is_returned, self.one, self.two = is_returned, Kwik(3, 8), Kwik(8, 8, stride=2)
        self.coarse = nn.Sequential(c3(16, 8), nn.ReLU(), c1(8, 5))
        self.feats, self.fine = nn.Sequential(Kwik(16, 8), Kwik(8, 8)), c1(13, 5)

    def forward(self, x):
        one = self.one(x)
        x = torch.cat([one, F.interpolate(self.two(one), scale_factor=2)], 1)
        coarse = self.coarse(x)
        fine = self.fine(torch.cat([self.feats(x), coarse], 1))
        return (coarse, fine) if self.is_returned else fine


class Verdict(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.kwik, self.out, self.up = Kwik(8, 8), c1(8, 5), nn.Upsample(scale_factor=scale)

    def forward(self, x):
        return self.up(self.out(self.kwik(x)))


class Watched(nn.Module):
    """A head for each of three maps, of one class."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks = c3(3, 8, 2), nn.ModuleList(Darn() for _ in range(3))
        self.heads = nn.ModuleList(Verdict(2) for _ in range(3))

    def forward(self, x):
        x, found = self.stem(x), []
        for block, head in zip(self.blocks, self.heads, strict=True):
            x = block(x)
            found.append(head(x))
        return found


class Bare(nn.Module):
    """A block without a skip connection that ends in a plain 1x1 convolution."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = Kwik(8, 16), c1(16, 8)

    def forward(self, x):
        return self.narrow(self.wide(x))


class Pyre(Bare):
    def forward(self, x):
        return x + super().forward(x)


class Backbone(nn.Module):
    """Returns what each of its blocks makes, or only the last ones."""

    def __init__(self, kind, returned=3):
        super().__init__()
        self.stem, self.blocks, self.returned = c3(3, 8), nn.ModuleList(kind() for _ in range(3)), returned

    def forward(self, x):
        found = [self.stem(x)]
        for block in self.blocks:
            found.append(block(F.max_pool2d(found[-1], 2)))
        return found[-self.returned :]


class Kept(nn.Module):
    """Blocks, each with a gate of a convolution that is also returned, or only kept, besides."""

    def __init__(self, *, is_returned):
        super().__init__()
        self.is_returned, self.stem = is_returned, c3(3, 8)
        self.body, self.mask = nn.ModuleList([Darn(), Darn()]), nn.ModuleList([Seen(), Seen()])

    def forward(self, x):
        x, seen = self.stem(x), []
        for block, mask in zip(self.body, self.mask, strict=True):
            x = block(x)
            gate = mask(x)
            x = x * gate
            seen.append(gate)
        return (x, *seen) if self.is_returned else x


class Seen(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Kwik(8, 8), c3(8, 8)

    def forward(self, x):
        return self.b(self.a(x)).sigmoid()


class Group(nn.Module):
    """The last stage of a restoring network: groups of blocks, and additions of earlier maps."""

    def __init__(self, kind):
        super().__init__()
        self.g1, self.g2 = kind(), kind()

    def forward(self, x, earlier):
        x = self.g1(x) + earlier
        return self.g2(x) + earlier


class Pack(nn.Module):
    def __init__(self, kind=Darn):
        super().__init__()
        self.body = nn.Sequential(kind(), kind(), c3(8, 8))

    def forward(self, x):
        return x + self.body(x)


class Relay(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.stem, self.one, self.two = c3(3, 8), nn.Sequential(Darn(), Darn()), Group(kind)
        self.tail = c3(8, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.tail(self.two(x, self.one(x)))


class Denoiser(nn.Module):
    """A chain of convolutions that estimates noise."""

    def __init__(self):
        super().__init__()
        self.chain = nn.Sequential(c3(3, 8), nn.ReLU(), c3(8, 8), nn.ReLU(), c3(8, 3))

    def forward(self, x):
        return x - self.chain(x)


class Trailing(nn.Module):
    """Two blocks of one class, and one of another before the last convolution."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.last, self.out = c3(3, 8), Darn(), Darn(), Pyre(), c1(8, 5)

    def forward(self, x):
        return self.out(self.last(self.b(self.a(self.stem(x)))))


class Context(nn.Module):
    """Returns two maps, of which it has perhaps enlarged one."""

    def __init__(self, scale):
        super().__init__()
        self.one, self.two = Kwik(3, 8, stride=2), Kwik(8, 8, stride=2)
        self.up, self.mix = nn.Upsample(scale_factor=scale), Kwik(8, 8)

    def forward(self, x):
        one = self.one(x)
        two = self.two(one)
        return self.mix(self.up(two)), two


class Fused(nn.Module):
    """Joins the two maps that it is given."""

    def __init__(self):
        super().__init__()
        self.mix = Kwik(16, 8)

    def forward(self, x, other):
        return self.mix(torch.cat([x, other], 1))


class TwoPaths(nn.Module):
    """A path of context and one of details, as in BiSeNet: the former has enlarged its map, or the latter has not."""

    def __init__(self, scale, stride):
        super().__init__()
        self.context, self.fuse, self.head = Context(scale), Fused(), c1(8, 5)
        self.detail = nn.Sequential(Kwik(3, 8, stride=2), Kwik(8, 8, stride=stride))

    def forward(self, x):
        x, other = self.detail(x), self.context(x)
        return self.head(self.fuse(x, other[0])), other[1]


class Side(nn.Module):
    """An auxiliary head of two 3x3 convolutions, of which the last one makes fewer channels, but more than four."""

    def __init__(self):
        super().__init__()
        self.first, self.second = c3(8, 8), c3(8, 6)

    def forward(self, x):
        return self.second(F.relu(self.first(x)))


class Judged(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body = c3(3, 8), nn.ModuleList(Darn() for _ in range(4))
        self.sides = nn.ModuleList(Side() for _ in range(2))

    def forward(self, x):
        x = self.stem(x)
        maps = [x := block(x) for block in self.body]
        return [side(each) for side, each in zip(self.sides, maps[1::2], strict=True)]


class Rise(nn.Module):
    """A decoder block whose last convolution makes fewer channels, as a head's does."""

    def __init__(self, below, skip, channels):
        super().__init__()
        self.join, self.out = c3(below + skip, 2 * channels), c3(2 * channels, channels)

    def forward(self, x, skip):
        x = F.interpolate(x, scale_factor=2)
        return self.out(F.relu(self.join(torch.cat([x, skip], 1))))


class Risen(nn.Module):
    """A U-Net that returns the map of its last decoder block."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = Kwik(3, 16), Kwik(16, 24, stride=2), Kwik(24, 32, stride=2)
        self.low, self.high = Rise(32, 24, 16), Rise(16, 16, 8)

    def forward(self, x):
        one = self.one(x)
        two = self.two(one)
        return self.high(self.low(self.three(two), two), one)


class Narrows(nn.Module):
    """Its last stage is one block of another class."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two, self.last = c3(3, 8), Darn(), Darn(), Stride()

    def forward(self, x):
        return self.last(self.two(self.one(self.stem(x)))).mean((2, 3))


class Stride(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = c3(8, 8, 2), c3(8, 8)

    def forward(self, x):
        return F.relu(self.second(F.relu(self.first(x))))


class Grove(nn.Module):
    """A tree of blocks, which may contain trees."""

    def __init__(self, depth):
        super().__init__()
        self.left, self.right = (Grove(depth - 1) if depth else Darn() for _ in range(2))
        self.root = c1(16, 8)

    def forward(self, x):
        left = self.left(x)
        return self.root(torch.cat([left, self.right(left)], 1))


class Keypoints(nn.Module):
    """Blocks and heads are plain Sequentials, as in XFeat."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = double(3, 8), double(8, 8), double(8, 8)
        self.scores = nn.Sequential(c3(8, 8), nn.ReLU(), c1(8, 1), nn.Sigmoid())
        self.points = nn.Sequential(c3(8, 8), nn.ReLU(), c1(8, 9))

    def forward(self, x):
        x = self.three(self.two(self.one(x)))
        return torch.cat([self.scores(x), self.points(x)], 1)


def unalike():
    return nn.Sequential(c3(8, 8), nn.ReLU(), c3(8, 8), nn.Tanh(), c3(8, 8), nn.ReLU(), c3(8, 3))


class Rounds(nn.Module):
    """Each part adds to the image; the network returns what the last one made."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Sequential(c3(3, 8), nn.ReLU(), c3(8, 8), nn.ReLU(), c3(8, 3)) for _ in range(3))

    def forward(self, x):
        for part in self.parts:
            x = x + part(x)
        return x


CASES = [
    (Rounds, "block-output", "parts.{0,1,2}"),
    (Rounds, "paper", "parts.{0,1,2}.4"),
    (lambda: nn.Sequential(double(3, 8), unalike()), "block-output", "{0,1}"),
    (Keypoints, "block-output", "one two three"),
    (Keypoints, "paper", "{one,two,three}.2"),
    (Judged, "block-output", "body.{0,1,2,3}"),
    (Narrows, "block-output", "one two last"),
    (lambda: nn.Sequential(c3(3, 8), Grove(1), Grove(1)), "block-output", "{1,2}.{left,right}.{left,right}"),
    (lambda: TwoPaths(2, 1), "unet", "fuse"),
    (lambda: TwoPaths(1, 2), "unet", ""),
    (lambda: Ravine(Labels(c3(16, 8), nn.ReLU(), c1(8, 5))), "unet", ""),
    (lambda: Sleeve(Ravine(Labels(c3(16, 8), nn.ReLU(), c1(8, 5)))), "unet", ""),
    (lambda: Ravine(Labels(c3(16, 8), nn.ReLU(), c3(8, 8), nn.ReLU())), "unet", "decoder"),
    (lambda: nn.Sequential(Ravine(Labels(c3(16, 8), nn.ReLU(), c1(8, 8))), c1(8, 5)), "unet", "0.decoder"),
    (Matting, "unet", "matte.mix"),
    (Printing, "unet", ""),
    (lambda: Second(is_returned=True), "unet", "feats coarse"),
    (lambda: Second(is_returned=False), "unet", "feats coarse"),
    (Watched, "block-output", "blocks.{0,1,2}"),
    (lambda: Sleeve(Watched()), "paper", "net.blocks.{0,1,2}.second"),
    (lambda: Backbone(Bare), "block-output", "blocks.{0,1,2}"),
    (lambda: Backbone(Bare, 1), "block-output", "blocks.{0,1,2}"),
    (lambda: Backbone(Pyre), "block-output", "blocks.{0,1,2}"),
    (lambda: Kept(is_returned=False), "block-output", "body.{0,1}"),
    (lambda: Kept(is_returned=True), "block-output", "body.{0,1}"),
    (lambda: Relay(Pack), "block-output", "one.{0,1} two.{g1,g2}.body.{0,1}"),
    (lambda: Relay(lambda: Pack(Pyre)), "block-output", "one.{0,1}"),
    (Trailing, "block-output", "a b"),
    (lambda: Sleeve(Trailing()), "block-output", "net.a net.b"),
    (lambda: nn.Sequential(c3(3, 8), nn.Sequential(Darn(), Darn(), Pyre())), "block-output", "1.{0,1,2}"),
    (Risen, "unet", "low high"),
    (Denoiser, "paper", ""),
    (lambda: Sleeve(Denoiser()), "paper", ""),
    (lambda: Sleeve(Sleeve(Denoiser())), "block-output", ""),
]


@pytest.mark.parametrize(("factory", "recipe", "places"), CASES)
def test_sites(factory, recipe, places):
    check(factory, recipe, places)


class Maps(nn.Module):
    """A backbone that returns two maps."""

    def __init__(self):
        super().__init__()
        self.one, self.two = Kwik(3, 8), Kwik(8, 8, stride=2)

    def forward(self, x):
        one = self.one(x)
        return one, self.two(one)


class Twice(nn.Module):
    """The backbone runs on an image and on a smaller one: of one call, the last map is never used."""

    def __init__(self, order):
        super().__init__()
        self.base, self.order = Maps(), order

    def forward(self, x):
        images = [x, F.avg_pool2d(x, 2)]
        maps = [self.base(images[place]) for place in self.order]
        return maps[0][0].mean((2, 3)) + maps[1][1].mean((2, 3))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_map_that_only_a_later_call_uses(order):
    check(lambda: Twice(order), {"rules": [{"block": "Kwik", "after": "output"}]}, "base.{one,two}")
