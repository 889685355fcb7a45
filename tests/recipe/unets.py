"""Three U-Nets with the class names and shapes of decoders that people use, in a few channels."""

import torch
from torch import nn
from torch.nn import functional


def convs(inside, outside):
    layers = [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]
    return nn.Sequential(
        *layers, nn.Conv2d(outside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
    )


class DoubleConv(nn.Module):
    def __init__(self, inside, outside):
        super().__init__()
        self.double_conv = convs(inside, outside)

    def forward(self, x):
        return self.double_conv(x)


class Up(nn.Module):
    """A transposed convolution, padded to the skip, then two convolutions."""

    def __init__(self, inside, outside):
        super().__init__()
        self.up = nn.ConvTranspose2d(inside, inside // 2, 2, stride=2)
        self.conv = DoubleConv(inside, outside)

    def forward(self, x1, x2):
        x1 = self.up(x1)
        rows, columns = x2.size()[2] - x1.size()[2], x2.size()[3] - x1.size()[3]
        x1 = functional.pad(x1, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return self.conv(torch.cat([x2, x1], dim=1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.inc = DoubleConv(3, 8)
        self.down1, self.down2 = DoubleConv(8, 16), DoubleConv(16, 32)
        self.up1, self.up2 = Up(32, 16), Up(16, 8)
        self.outc = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down1(functional.max_pool2d(x1, 2))
        x3 = self.down2(functional.max_pool2d(x2, 2))
        return self.outc(self.up2(self.up1(x3, x2), x1))


class UnetDecoderBlock(nn.Module):
    """Interpolation and an optional skip."""

    def __init__(self, inside, skip, outside):
        super().__init__()
        self.conv = convs(inside + skip, outside)

    def forward(self, x, skip=None):
        x = functional.interpolate(x, scale_factor=2, mode="nearest")
        return self.conv(x if skip is None else torch.cat([x, skip], dim=1))


class UnetDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([UnetDecoderBlock(16, 8, 8), UnetDecoderBlock(8, 0, 4)])

    def forward(self, features):
        x, *skips = features[::-1]
        for index, block in enumerate(self.blocks):
            x = block(x, skips[index] if index < len(skips) else None)
        return x


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.decoder = UnetDecoder()
        self.segmentation_head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        first = self.stem(x)
        return self.segmentation_head(self.decoder([first, self.down(first)]))


class UpCat(nn.Module):
    """The order of arguments and the volumetric convolutions of medical networks."""

    def __init__(self, inside, skip, outside):
        super().__init__()
        self.upsample = nn.ConvTranspose3d(inside, inside // 2, 2, stride=2)
        self.conv = nn.Sequential(
            nn.Conv3d(inside // 2 + skip, outside, 3, padding=1), nn.InstanceNorm3d(outside), nn.LeakyReLU()
        )

    def forward(self, x, encoded):
        return self.conv(torch.cat([encoded, self.upsample(x)], dim=1))


class BasicUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_0, self.down_1 = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 8, 3, stride=2, padding=1)
        self.upcat_1 = UpCat(8, 4, 4)
        self.final_conv = nn.Conv3d(4, 2, 1)

    def forward(self, x):
        first = self.conv_0(x)
        return self.final_conv(self.upcat_1(self.down_1(first), first))
