"""Super-resolution, generators and discriminators."""

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn

from tests.nets.parts import c1, c3, net


class Mend(nn.Module):
    """EDSR's block: no norm, the branch scaled."""

    def __init__(self, channels, scale=0.5):
        super().__init__()
        self.body, self.scale = nn.Sequential(c3(channels, channels), nn.ReLU(True), c3(channels, channels)), scale

    def forward(self, x):
        res = self.body(x).mul(self.scale)
        res += x
        return res


class Enlarge(nn.Sequential):
    def __init__(self, channels):
        super().__init__(c3(channels, 4 * channels), nn.PixelShuffle(2))


@net("edsr", (2, 3, 16, 16))
class MendNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(c3(3, 8))
        self.body = nn.Sequential(Mend(8), Mend(8), Mend(8), c3(8, 8))
        self.tail = nn.Sequential(Enlarge(8), c3(8, 3))

    def forward(self, x):
        x = self.head(x)
        res = self.body(x)
        res += x
        return self.tail(res)


class Weigh(nn.Module):
    """Channel attention of 1x1 convolutions."""

    def __init__(self, channels):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(c1(channels, 4), nn.ReLU(True), c1(4, channels), nn.Sigmoid())

    def forward(self, x):
        return x * self.gate(self.pool(x))


class Knit(nn.Module):
    """RCAN's block."""

    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(c3(channels, channels), nn.ReLU(True), c3(channels, channels), Weigh(channels))

    def forward(self, x):
        res = self.body(x)
        res += x
        return res


class Guild(nn.Module):
    """RCAN's group of blocks, with a skip of its own."""

    def __init__(self, channels, count=2):
        super().__init__()
        self.body = nn.Sequential(*(Knit(channels) for _ in range(count)), c3(channels, channels))

    def forward(self, x):
        res = self.body(x)
        res += x
        return res


@net("rcan", (2, 3, 16, 16))
class GuildNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.body = c3(3, 8), nn.Sequential(Guild(8), Guild(8), c3(8, 8))
        self.tail = nn.Sequential(Enlarge(8), c3(8, 3))

    def forward(self, x):
        x = self.head(x)
        return self.tail(self.body(x) + x)


class Thicket(nn.Module):
    """ESRGAN's dense block of five convolutions."""

    def __init__(self, channels=8, growth=4):
        super().__init__()
        self.k1, self.k2 = c3(channels, growth), c3(channels + growth, growth)
        self.k3 = c3(channels + 2 * growth, channels)
        self.act = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x):
        a = self.act(self.k1(x))
        b = self.act(self.k2(torch.cat((x, a), 1)))
        c = self.k3(torch.cat((x, a, b), 1))
        return c * 0.5 + x


class Forest(nn.Module):
    """Residual in residual."""

    def __init__(self, channels=8):
        super().__init__()
        self.t1, self.t2 = Thicket(channels), Thicket(channels)

    def forward(self, x):
        return self.t2(self.t1(x)) * 0.5 + x


@net("rrdb", (2, 3, 16, 16))
class ForestNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.trunk, self.trunk_conv = c3(3, 8), nn.Sequential(Forest(), Forest()), c3(8, 8)
        self.up, self.last = c3(8, 8), c3(8, 3)

    def forward(self, x):
        fea = self.first(x)
        fea = fea + self.trunk_conv(self.trunk(fea))
        fea = F.leaky_relu(self.up(F.interpolate(fea, scale_factor=2, mode="nearest")), 0.2)
        return self.last(fea)


class Mirror(nn.Module):
    """CycleGAN's block: reflection padding and instance norms in a Sequential."""

    def __init__(self, channels):
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels), nn.ReLU(True),
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels),
        )  # fmt: skip

    def forward(self, x):
        return x + self.conv_block(x)


@net("resnet-generator")
class MirrorNet(nn.Module):
    """All in one Sequential."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(
            nn.ReflectionPad2d(3), nn.Conv2d(3, 8, 7), nn.InstanceNorm2d(8), nn.ReLU(True),
            c3(8, 12, 2), nn.InstanceNorm2d(12), nn.ReLU(True),
            Mirror(12), Mirror(12), Mirror(12),
            nn.ConvTranspose2d(12, 8, 3, 2, 1, 1), nn.InstanceNorm2d(8), nn.ReLU(True),
            nn.ReflectionPad2d(3), nn.Conv2d(8, 3, 7), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x):
        return self.model(x)


@net("gan-generator", (2, 10, 1, 1))
class Conjure(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(10, 12, 4, 1, 0, bias=False), nn.BatchNorm2d(12), nn.ReLU(True),
            nn.ConvTranspose2d(12, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(True),
            nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z):
        return self.main(z)


@net("gan-discriminator")
class Judge(nn.Module):
    def __init__(self):
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        self.main = nn.Sequential(
            norm(nn.Conv2d(3, 8, 4, 2, 1)), nn.LeakyReLU(0.2, inplace=True),
            norm(nn.Conv2d(8, 12, 4, 2, 1)), nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(12, 1, 8),
        )  # fmt: skip

    def forward(self, x):
        return self.main(x).view(-1).sigmoid()
