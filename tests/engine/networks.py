"""Networks whose norms matter: what other tools fold, replace, wrap and move."""

import torch
from torch import nn

from tests.oracle import E_LAMBDA


def image(side=32, batch=2, seed=1):
    return torch.randn((batch, 3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(model, x=None):
    with torch.no_grad():
        return model(image() if x is None else x)


def with_statistics(model):
    """Float64, with norm statistics that matter."""
    noise = torch.Generator().manual_seed(7)
    model.double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor, low in ((module.running_mean, -0.3), (module.running_var, 0.5), (module.weight, 0.6)):
                    tensor.copy_(torch.rand(tensor.shape, generator=noise, dtype=tensor.dtype) * 0.8 + low)
    return model.eval()


def resnet18():
    import torchvision

    torch.manual_seed(3)
    return with_statistics(torchvision.models.resnet18())


class ConvBlock(nn.Module):
    def __init__(self, before=8, after=8):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Folding(ConvBlock):
    """Like RepVGG and its kin: `fold` puts the norm into the convolution."""

    def fold(self):
        self.conv = nn.utils.fusion.fuse_conv_bn_eval(self.conv, self.bn)
        self.bn = nn.Identity()


class Net(nn.Module):
    def __init__(self, kind=ConvBlock):
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), kind(), kind()
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.two(self.one(self.stem(x))).mean((2, 3)))


def small(kind=ConvBlock):
    torch.manual_seed(3)
    return with_statistics(Net(kind))


def recipe(*paths):
    return {"e_lambda": E_LAMBDA, "rules": [{"path": path, "after": "output"} for path in paths]}


def every_conv(model):
    return [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)]


class Op(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.d = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        y = self.c(x) * 2
        return self.d(y) + y
